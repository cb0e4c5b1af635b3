"""The FastAPI application over a Service: no Ray here, and a test calls it as it is."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from raypipe import __version__
from raypipe.endpoint import api, responses
from raypipe.endpoint.catalogue_routes import CatalogueRoutes
from raypipe.endpoint.http_errors import CODES, HttpError, as_http_error, error_body
from raypipe.endpoint.limits import Application
from raypipe.endpoint.page_routes import PageRoutes
from raypipe.endpoint.service import Service
from raypipe.endpoint.shortcut import Shortcut
from raypipe.endpoint.video_routes import VideoRoutes
from raypipe.errors import RaypipeError

_ABOUT = "Recommendations from an index of videos, and embeddings and labels of videos that it does not hold."
_SHOWN = 200
_STATUSES = {
    400: "The request cannot be read.",
    401: "The token is missing or wrong.",
    403: "It is not allowed.",
    404: "There is no such thing.",
    405: "The endpoint has no such method.",
    409: "No version of the index can be served that way.",
    413: "The body is too large.",
    415: "The body is of another kind than the endpoint takes.",
    422: "A value is out of its range, of another type, or names what there is not.",
    429: "Too much at once; Retry-After says when to come again.",
    500: "The server failed.",
    501: "This server was not set up for it.",
    503: "There is nothing to serve now.",
    504: "It was not done within the deadline.",
}


def build_application(service: Service) -> Application:
    """Make the application: every endpoint, and every error as JSON of one form."""
    catalogue = CatalogueRoutes(service)
    return Shortcut(_describe(service, catalogue), catalogue)


def _describe(service: Service, catalogue: CatalogueRoutes) -> FastAPI:
    application = FastAPI(
        title="raypipe",
        description=_ABOUT,
        version=__version__,
        docs_url=None,  # their pages load from another host
        redoc_url=None,
        redirect_slashes=False,
        responses={status: {"model": responses.ErrorAnswer, "description": said} for status, said in _STATUSES.items()},
    )
    application.include_router(catalogue.router, prefix="/v1")
    application.include_router(VideoRoutes(service).router, prefix="/v1")
    application.include_router(PageRoutes(service).router)
    for kind in (RequestValidationError, HTTPException, RaypipeError, HttpError):
        application.add_exception_handler(kind, _refuse)
    _state_limits(application, service)
    return application


async def _refuse(request: Request, error: Exception) -> Response:
    problem = _problem_of(error)
    request_id = getattr(request.state, "request_id", "")
    body = error_body(problem, request_id)
    return Response(body, problem.status, dict(problem.headers), media_type="application/json")


def _problem_of(error: Exception) -> HttpError:
    if isinstance(error, RequestValidationError):
        return HttpError(422, _first_problem(error))
    if isinstance(error, HTTPException):
        code = CODES.get(error.status_code, "invalid_request")
        return HttpError(error.status_code, f"{error.detail}.".replace("..", "."), code, headers=error.headers or {})
    return as_http_error(error)


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
        models[api.VideoUri.__name__] = api.VideoUri.model_json_schema()
        most = {
            ("RecommendRequest", "history"): limits.max_history,
            ("RecommendBatch", "requests"): limits.max_batch,
            ("SimilarBatch", "video_ids"): limits.max_batch,
        }
        for (model, name), number in most.items():
            models[model]["properties"][name]["maxItems"] = number
        return schema

    application.openapi = described  # type: ignore[method-assign]  # as FastAPI documents it
