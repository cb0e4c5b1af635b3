"""The ingress replica: the only deployment that HTTP requests reach. It holds the index and runs every search."""

import asyncio
import datetime as dt
import logging
import os
import sys
import time
from collections.abc import Mapping
from functools import partial
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import orjson
import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.types import Receive, Scope, Send

from raypipe.config import ServeConfig
from raypipe.endpoint.http import RETRY_AFTER_SECONDS, HttpError, overloaded
from raypipe.endpoint.index_watcher import IndexWatcher, cache_of
from raypipe.endpoint.limits import TOKEN_VARIABLE, Access, RequestLimits, check_host, digest_of
from raypipe.endpoint.metrics import EndpointMetrics
from raypipe.endpoint.play_links import PlayLinks
from raypipe.endpoint.routes.application import build_application
from raypipe.endpoint.service import Scheduler, Service
from raypipe.endpoint.uploads import Prefixes
from raypipe.runs.ray_private import serve_controller
from raypipe.search.query import Query
from raypipe.search.versions import Versions
from raypipe.storage import Folder

DEPLOYMENT = "Api"  # the metrics of Ray Serve and the Grafana dashboard use this name
SERVE_LOGGER = "ray.serve"
_LINES_KEPT = 256  # buffered for up to a second, because a write per request would cost more than some responses
_FLUSH_SECONDS = 1.0
_MAX_LOG_BYTES = 104_857_600  # per file; one older file is kept
_JSON_LINE = orjson.OPT_UTC_Z | orjson.OPT_OMIT_MICROSECONDS
_logger = logging.getLogger(__name__)


class ReplicaApplication:
    """The ASGI application for Serve. It passes each request to the application that its replica has built."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        replica: Any = serve.get_replica_context().servable_object
        await replica.application(scope, receive, send)


class Replica:
    """Checks requests, searches the index in its own process, and calls the models for new videos.

    The key that signs links to videos is derived from the token or, without a token, from ``play_secret``.
    """

    def __init__(
        self,
        config: ServeConfig,
        *,
        token_digest: bytes | None,
        play_secret: bytes,
        fingerprint: str | None,
        embedder: DeploymentHandle[Any] | None,
        classifier: DeploymentHandle[Any] | None,
    ) -> None:
        _join_serve_log()
        own_token = os.environ.get(TOKEN_VARIABLE)
        token_digest = token_digest or digest_of(own_token)
        check_host(_listening_host(config.host), own_token, is_known=token_digest is not None)
        folder = Folder(config.index)
        index = IndexWatcher(
            Versions(folder),
            cache_of(folder.uri, config.cache),
            reload_seconds=config.reload_seconds,
            calibrates=embedder is not None,
        )
        metrics = EndpointMetrics(index)
        self._service = Service(
            index=index,
            scheduler=Scheduler(),
            metrics=metrics,
            limits=config.limits,
            prefixes=Prefixes(config.embedder.allowed_prefixes),
            embed=None if embedder is None else partial(_ask, "embedder", embedder.embed, metrics),
            embed_fingerprint=fingerprint,
            classify=None if classifier is None else partial(_ask, "classifier", classifier.classify, metrics),
            play_links=PlayLinks(token_digest or play_secret),
        )
        replica = serve.get_replica_context().replica_id.unique_id
        self._log = RequestLog(log_folder() / f"raypipe_requests_{replica}.jsonl")
        index.start()
        self.application = RequestLimits(
            build_application(self._service),
            config=config.limits,
            access=Access(token_digest),
            metrics=metrics,
            log=self._log,
            echo_request_id=False,  # Serve does
        )

    async def check_health(self) -> None:
        """Flush the log and answer one query. Raise if that fails, or if the thread that polls CURRENT has ended."""
        self._log.flush()
        index = self._service.index
        index.check()
        if index.live is not None:
            await self._service.scheduler.run("health", index.live.index.recommend, Query(top_k=1))

    def __del__(self) -> None:
        if hasattr(self, "_log"):
            self._service.index.close()
            self._service.scheduler.close()
            self._log.close()


async def _ask(what: str, method: Any, metrics: EndpointMetrics, video: object, **options: object) -> Any:  # noqa: ANN401 - Serve's handles are not typed by method
    """Call a model deployment for one video, and return its result.

    Raises:
        HttpError: the error that the model returned as a value. Also 429 if too many requests wait, 500 for an
            unexpected error, and 503 if no replica is available.
    """
    response = method.remote(video, **options)
    try:
        answer = await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except BackPressureError:
        waiting = f"Too many requests wait for the {what}."
        raise overloaded(waiting) from None
    except RayTaskError as error:
        _logger.warning("The %s failed: %s", what, error)
        raise HttpError(500, f"The {what} failed on this video.") from None
    except (RayError, RayServeException) as error:
        _logger.warning("The %s is not available: %s", what, error)
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        raise HttpError(503, f"The {what} is not available now. Retry later.", headers=headers) from None
    if isinstance(answer, HttpError):
        raise answer
    result, batch_size = answer
    metrics.batched(what, batch_size)
    return result


def _listening_host(configured: str) -> str:
    """Return the host that Serve's proxies listen on.

    If Serve was already running, its own configuration overrides the configured host.
    """
    if (controller := serve_controller()) is None:
        return configured
    try:
        options: Any = ray.get(controller.get_http_config.remote())
    except (AttributeError, RayError):
        return configured
    return configured if options.host is None else str(options.host)


class RequestLog:
    """Appends one JSON line per request to a file. A line never contains the request's token, query or body.

    Lines are buffered. They are written when enough have accumulated, with the first line after a second, or by
    ``flush``.
    """

    def __init__(self, path: Path, *, max_bytes: int = _MAX_LOG_BYTES) -> None:
        self._file = _RequestFile(path, maxBytes=max_bytes, backupCount=1, encoding="utf-8", delay=True)
        self._file.namer = lambda _: str(path.with_suffix(".1.jsonl"))
        self._lines: list[str] = []
        self._written_at = 0.0

    def __call__(self, record: Mapping[str, object]) -> None:
        line = orjson.dumps({"time": dt.datetime.now(dt.UTC), **record}, option=_JSON_LINE)
        self._lines.append(line.decode())
        if len(self._lines) >= _LINES_KEPT or time.time() - self._written_at > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the buffered lines. A full disk loses lines, but does not fail requests."""
        self._written_at = time.time()
        if self._lines:
            self._file.handle(logging.makeLogRecord({"msg": "\n".join(self._lines)}))
            self._lines.clear()

    def close(self) -> None:
        self.flush()
        self._file.close()


class _RequestFile(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - the signature of logging
        """Log a one-line warning. The default would print a traceback."""
        _logger.warning("Cannot write %s: %s", self.baseFilename, sys.exception())


def log_folder() -> Path:
    """Return the folder of this replica's Serve log, which Ray's dashboard shows, or else the current folder."""
    for handler in logging.getLogger(SERVE_LOGGER).handlers:
        file = getattr(handler, "target", handler)
        if isinstance(file, logging.FileHandler):
            return Path(file.baseFilename).parent
    return Path.cwd()


def _join_serve_log() -> None:
    """Write raypipe's own messages to Ray Serve's log of this replica."""
    own, serves = logging.getLogger("raypipe"), logging.getLogger(SERVE_LOGGER)
    own.handlers, own.propagate = serves.handlers, False
    own.setLevel(serves.getEffectiveLevel())
