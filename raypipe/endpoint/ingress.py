"""The ingress: the one deployment that HTTP reaches, with the index and every search inside its own process."""

import asyncio
import logging
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from raypipe.config import ServeConfig
from raypipe.endpoint.access import TOKEN_VARIABLE, Access, check_host, digest_of
from raypipe.endpoint.cache import cache_of
from raypipe.endpoint.http_errors import RETRY_AFTER_SECONDS, HttpError, overloaded
from raypipe.endpoint.lane import Lane
from raypipe.endpoint.limits import Application, Limits, Receive, Scope, Send
from raypipe.endpoint.live import LiveIndex
from raypipe.endpoint.logs import RequestLog, join_serve_log, log_folder
from raypipe.endpoint.metrics import Metrics
from raypipe.endpoint.routes import build_application
from raypipe.endpoint.service import EmbeddedVideo, Service
from raypipe.endpoint.sources import Prefixes, Source
from raypipe.search.query import Query
from raypipe.search.versions import Versions
from raypipe.storage import Folder

_logger = logging.getLogger(__name__)


class Entrance:
    """The ASGI application that Serve is given: it hands each request to the replica's own, made in its process."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the start and end of the replica."""
        if scope["type"] == "lifespan":
            await _live_and_end(receive, send)
            return
        replica: Any = serve.get_replica_context().servable_object
        await replica.application(scope, receive, send)


async def _live_and_end(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


class Api:
    """The ingress: validates, limits, searches the index inside its own process, and asks the models where need be."""

    def __init__(
        self,
        config: ServeConfig,
        *,
        token_digest: bytes | None,
        fingerprint: str | None,
        embedder: DeploymentHandle[Any] | None,
        classifier: DeploymentHandle[Any] | None,
    ) -> None:
        join_serve_log()
        own_token = os.environ.get(TOKEN_VARIABLE)
        token_digest = token_digest or digest_of(own_token)
        check_host(_listening_host(config.host), own_token, is_known=token_digest is not None)
        folder = Folder(config.index)
        cache = cache_of(folder.uri, config.cache)
        index = LiveIndex(Versions(folder), cache, reload_seconds=config.reload_seconds)
        metrics = Metrics(index)
        self._service = Service(
            index=index,
            lane=Lane(),
            metrics=metrics,
            limits=config.limits,
            prefixes=Prefixes(config.embedder.allowed_prefixes),
            embedder=None if embedder is None else _RemoteEmbedder(embedder, fingerprint or "", metrics),
            classifier=None if classifier is None else _RemoteClassifier(classifier, metrics),
        )
        replica = serve.get_replica_context().replica_id.unique_id
        self._log = RequestLog(log_folder() / f"raypipe_requests_{replica}.jsonl")
        index.start()
        self.application: Application = Limits(
            build_application(self._service),
            config=config.limits,
            access=Access(token_digest),
            watcher=metrics,
            log=self._log,
            echo_request_id=False,  # Serve does
        )

    async def check_health(self) -> None:
        """Answer one query; raise where that fails, or where nothing follows the index any more."""
        self._log.flush()
        index = self._service.index
        index.check()
        if index.live is not None:
            await self._service.lane.run("health", index.live.index.recommend, Query(top_k=1))

    def __del__(self) -> None:
        """Follow the index no longer."""
        if hasattr(self, "_log"):
            self._service.index.close()
            self._service.lane.close()
            self._log.flush()


class _RemoteEmbedder:
    """The deployment that embeds."""

    def __init__(self, handle: DeploymentHandle[Any], fingerprint: str, metrics: Metrics) -> None:
        self.fingerprint = fingerprint
        self._handle = handle
        self._metrics = metrics

    async def embed(self, source: Source) -> EmbeddedVideo:
        answer: tuple[EmbeddedVideo, int] = await _ask("embedder", self._handle.embed.remote(source))
        self._metrics.batched("embedder", answer[1])
        return answer[0]


class _RemoteClassifier:
    """The deployment that classifies."""

    def __init__(self, handle: DeploymentHandle[Any], metrics: Metrics) -> None:
        self._handle = handle
        self._metrics = metrics

    async def classify(self, frame_embeddings: npt.NDArray[np.float16]) -> list[tuple[str, float]]:
        request = self._handle.classify.remote(frame_embeddings)
        answer: tuple[list[tuple[str, float]], int] = await _ask("classifier", request)
        self._metrics.batched("classifier", answer[1])
        return answer[0]


async def _ask(what: str, response: Any) -> Any:  # noqa: ANN401 - Serve's handles are not typed by method
    """What a deployment says; an error that it foresaw is a value, and is raised here.

    Raises:
        HttpError: that error; 429 where too many wait; 500 for one that nobody foresaw; 503 where no replica is there.
    """
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
        _logger.warning("The %s is not there: %s", what, error)
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        raise HttpError(503, f"The {what} is not there now. Try again.", headers=headers) from None
    if isinstance(answer, HttpError):
        raise answer
    return answer


def _listening_host(configured: str) -> str:
    """The host that Serve's proxies listen on, which a cluster's own configuration may have set otherwise."""
    try:
        controller: Any = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        options: Any = ray.get(controller.get_http_config.remote())
    except (AttributeError, ValueError, RayError):
        return configured
    return configured if options.host is None else str(options.host)
