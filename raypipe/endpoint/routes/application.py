"""The FastAPI application, and the routes for operating it: health, readiness, metrics, reload and the web page."""

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from raypipe import __version__
from raypipe.endpoint import schemas
from raypipe.endpoint.http import SECURITY_HEADERS, STATUSES, HttpError
from raypipe.endpoint.routes.catalogue import add_catalogue_routes
from raypipe.endpoint.routes.inference import add_inference_routes
from raypipe.endpoint.routes.playback import add_playback_routes
from raypipe.endpoint.routes.responses import JsonResponse, add_route
from raypipe.endpoint.schemas import ErrorAnswer, VideoUri
from raypipe.endpoint.service import Service

PAGE = Path(__file__).parents[1] / "page"
_PAGE_HEADERS = SECURITY_HEADERS | {"Cache-Control": "no-cache"}
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}  # independent of the system's MIME table
_READY: dict[int | str, dict[str, Any]] = {
    200: {"model": schemas.ReadyAnswer, "description": schemas.ReadyAnswer.__doc__},
    503: {"model": schemas.ReadyAnswer, "description": "There is no index to serve."},
}
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ABOUT = "Recommendations from an index of videos, and embeddings and labels of videos outside the index."
_SHOWN = 200


class PageFiles(StaticFiles):
    """Serves the files of the web page, with headers that keep other sites out.

    The ETag is a digest of the content. Size and mtime are not enough: two builds of a wheel may contain different
    files with the same size and mtime.
    """

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        path = Path(full_path)
        tag = f'"{hashlib.sha256(path.read_bytes()).hexdigest()[:32]}"'
        headers, kind = _PAGE_HEADERS | {"ETag": tag}, _TYPES.get(path.suffix)
        response = FileResponse(path, status_code, headers, kind, stat_result=stat_result)
        unchanged = self.is_not_modified(response.headers, Headers(scope=scope))
        return NotModifiedResponse(response.headers) if unchanged else response


_FILES = PageFiles(directory=PAGE)


def add_operations_routes(application: FastAPI, service: Service) -> None:
    add_route(application, service, "GET /healthz", health)
    add_route(application, service, "GET /readyz", ready, responses=_READY)
    add_route(application, service, "POST /v1/admin/reload", reload)
    add_route(application, service, "POST /v1/admin/rollback", rollback)
    add_route(application, service, "GET /metrics", metrics, include_in_schema=False)
    add_route(application, service, "GET /", page, include_in_schema=False)
    application.mount("/page", _FILES)


async def page(_: Service, request: Request) -> Response:
    """Return the web page."""
    return await _FILES.get_response("index.html", request.scope)


async def health(_: Service) -> schemas.HealthAnswer:
    """Report that the replica is alive."""
    return {"ok": True}


async def ready(service: Service) -> Response:
    """Report whether the replica can answer requests, and whether CURRENT names a version that cannot be served."""
    live, broken = service.index.live, service.index.broken
    answer = schemas.ReadyAnswer(ready=live is not None, version=live.version if live else None, broken=broken)
    return JsonResponse(answer, 200 if live else 503)


async def metrics(service: Service) -> Response:
    """Return the metrics for Prometheus."""
    return Response(service.metrics.text(), headers={"Content-Type": _METRICS_TYPE})


async def reload(service: Service) -> schemas.ReloadAnswer:
    """Serve the version that CURRENT names now. Other replicas follow within ``reload_seconds``."""
    live, changed = await asyncio.to_thread(service.index.reload)
    return {"version": live.version, "changed": changed}


async def rollback(service: Service) -> schemas.RollbackAnswer:
    """Roll back to the previous version: point CURRENT to it, and serve it."""
    live = await asyncio.to_thread(service.index.rollback)
    return {"version": live.version}


def build_application(service: Service) -> ASGIApp:
    """Build the ASGI application without FastAPI's middleware, because ``RequestLimits`` handles its exceptions."""
    described = FastAPI(
        title="raypipe",
        description=_ABOUT,
        version=__version__,
        docs_url=None,  # FastAPI's documentation pages load files from another host
        redoc_url=None,
        redirect_slashes=False,
        default_response_class=JsonResponse,
        responses={status: {"model": ErrorAnswer, "description": said} for status, (_, said) in STATUSES.items()},
    )
    for add_routes in (add_catalogue_routes, add_inference_routes, add_playback_routes, add_operations_routes):
        add_routes(described, service)
    _state_limits(described, service)
    router = AsyncExitStackMiddleware(described.router)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = described
        try:
            await router(scope, receive, send)
        except RequestValidationError as error:
            raise HttpError(422, _first_problem(error)) from None
        except HTTPException as error:
            code, message = STATUSES.get(error.status_code, STATUSES[400])[0], f"{error.detail}.".replace("..", ".")
            raise HttpError(error.status_code, message, code, error.headers or {}) from None

    return application


def _first_problem(error: RequestValidationError) -> str:
    """Describe the first invalid value as a sentence: where it is, the value, and what is expected."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    given = "" if first["type"] in {"missing", "json_invalid"} else f" is {repr(first.get('input'))[:_SHOWN]}"
    reason = str(first["msg"]).removeprefix("Value error, ")
    return f"{where}{given}: {reason[0].lower()}{reason[1:]}."


def _state_limits(application: FastAPI, service: Service) -> None:
    """Add the limits from this server's configuration to its OpenAPI description."""
    describe, limits = application.openapi, service.limits

    def described() -> dict[str, Any]:
        schema = describe()
        models = schema["components"]["schemas"]
        # No parameter has this type, so FastAPI does not know that a body may have it.
        models[VideoUri.__name__] = VideoUri.model_json_schema()
        models["RecommendRequest"]["properties"]["history"]["maxItems"] = limits.max_history
        models["RecommendBatch"]["properties"]["requests"]["maxItems"] = limits.max_batch
        models["SimilarBatch"]["properties"]["video_ids"]["maxItems"] = limits.max_batch
        return schema

    application.openapi = described  # type: ignore[method-assign]  # as FastAPI documents it
