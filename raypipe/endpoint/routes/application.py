"""The FastAPI application over a Service: every route, and every error as JSON of one form; without Ray."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from raypipe import __version__
from raypipe.endpoint.http import STATUSES, HttpError, as_http_error
from raypipe.endpoint.routes.catalogue import add_catalogue_routes
from raypipe.endpoint.routes.inference import add_inference_routes
from raypipe.endpoint.routes.operations import add_operations_routes
from raypipe.endpoint.routes.responses import JsonResponse
from raypipe.endpoint.schemas import ErrorAnswer, VideoUri
from raypipe.endpoint.service import Service
from raypipe.errors import RaypipeError

_ABOUT = "Recommendations from an index of videos, and embeddings and labels of videos that it does not hold."
_SHOWN = 200


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
        most = {
            ("RecommendRequest", "history"): limits.max_history,
            ("RecommendBatch", "requests"): limits.max_batch,
            ("SimilarBatch", "video_ids"): limits.max_batch,
        }
        for (model, name), number in most.items():
            models[model]["properties"][name]["maxItems"] = number
        return schema

    application.openapi = described  # type: ignore[method-assign]  # as FastAPI documents it
