"""The FastAPI application, and the routes to operate it: health, readiness, metrics, the page."""

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from starlette.types import Scope

from raypipe import __version__
from raypipe.endpoint import schemas
from raypipe.endpoint.http import STATUSES, HttpError, as_http_error
from raypipe.endpoint.routes.catalogue import add_catalogue_routes
from raypipe.endpoint.routes.inference import add_inference_routes
from raypipe.endpoint.routes.responses import JsonResponse, add_route
from raypipe.endpoint.schemas import ErrorAnswer, VideoUri
from raypipe.endpoint.service import Service
from raypipe.errors import RaypipeError

PAGE = Path(__file__).parents[1] / "page"
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}  # whatever the system's table says
_READY: dict[int | str, dict[str, Any]] = {
    200: {"model": schemas.ReadyAnswer, "description": schemas.ReadyAnswer.__doc__},
    503: {"model": schemas.ReadyAnswer, "description": "There is no index to serve."},
}
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ABOUT = "Recommendations from an index of videos, and embeddings and labels of videos that it does not hold."
_SHOWN = 200


class PageFiles(StaticFiles):
    """The page's files with headers that keep other sites out.

    The tag is of the content: files of one size in two builds of a wheel may have the same time of change.
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
    """Give the page."""
    return await _FILES.get_response("index.html", request.scope)


async def health(_: Service) -> schemas.HealthAnswer:
    """Say that the replica lives."""
    return {"ok": True}


async def ready(service: Service) -> Response:
    """Say whether requests can be answered, and whether CURRENT names a version that cannot be served."""
    live, broken = service.index.live, service.index.broken
    answer = schemas.ReadyAnswer(ready=live is not None, version=live.version if live else None, broken=broken)
    return JsonResponse(answer, 200 if live else 503)


async def metrics(service: Service) -> Response:
    """Give what Prometheus reads."""
    return Response(service.metrics.text(), headers={"Content-Type": _METRICS_TYPE})


async def reload(service: Service) -> schemas.ReloadAnswer:
    """Serve what CURRENT names now; of several replicas the others follow within ``reload_seconds``."""
    live, changed = await asyncio.to_thread(service.index.reload)
    return {"version": live.version, "changed": changed}


async def rollback(service: Service) -> schemas.RollbackAnswer:
    """Go back to the version before, and let CURRENT name it."""
    live = await asyncio.to_thread(service.index.rollback)
    return {"version": live.version}


def build_application(service: Service) -> FastAPI:
    application = FastAPI(
        title="raypipe",
        description=_ABOUT,
        version=__version__,
        docs_url=None,  # their pages load from another host
        redoc_url=None,
        redirect_slashes=False,
        default_response_class=JsonResponse,
        responses={status: {"model": ErrorAnswer, "description": said} for status, (_, said) in STATUSES.items()},
    )
    for add_routes in (add_catalogue_routes, add_inference_routes, add_operations_routes):
        add_routes(application, service)
    for kind in (RequestValidationError, HTTPException, RaypipeError, HttpError, Exception):
        application.add_exception_handler(kind, _refuse)
    _state_limits(application, service)
    return application


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        problem = HttpError(422, _first_problem(error))
    elif isinstance(error, HTTPException):
        code = STATUSES.get(error.status_code, STATUSES[400])[0]
        problem = HttpError(error.status_code, f"{error.detail}.".replace("..", "."), code, error.headers or {})
    else:
        problem = as_http_error(error)
    body = problem.body(getattr(request.state, "request_id", ""))
    return Response(body, problem.status, dict(problem.headers), media_type="application/json")


def _first_problem(error: RequestValidationError) -> str:
    """Where a request is wrong, what stands there, and what should."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    given = "" if first["type"] in {"missing", "json_invalid"} else f" is {repr(first.get('input'))[:_SHOWN]}"
    reason = str(first["msg"]).removeprefix("Value error, ")
    return f"{where}{given}: {reason[0].lower()}{reason[1:]}."


def _state_limits(application: FastAPI, service: Service) -> None:
    """Let OpenAPI say what this server's configuration allows."""
    describe, limits = application.openapi, service.limits

    def described() -> dict[str, Any]:
        schema = describe()
        models = schema["components"]["schemas"]
        # No parameter is of this model: FastAPI does not see that a body may be one.
        models[VideoUri.__name__] = VideoUri.model_json_schema()
        models["RecommendRequest"]["properties"]["history"]["maxItems"] = limits.max_history
        models["RecommendBatch"]["properties"]["requests"]["maxItems"] = limits.max_batch
        models["SimilarBatch"]["properties"]["video_ids"]["maxItems"] = limits.max_batch
        return schema

    application.openapi = described  # type: ignore[method-assign]  # as FastAPI documents it
