"""HTTP as every part of the endpoint knows it: the names of endpoints, and errors with their codes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raypipe.endpoint.schemas import Error, ErrorAnswer
from raypipe.errors import (
    IndexVersionError,
    ObjectDeniedError,
    ObjectError,
    ObjectMissingError,
    ObjectTooLargeError,
    QueryError,
    StorageError,
)

UNLIMITED = frozenset({"healthz", "readyz", "metrics"})  # a probe must be answered even when the server is overloaded
LOADING = frozenset({"reload", "rollback"})  # of an index
LOAD_SECONDS = 900.0  # a large index comes from a bucket in minutes
PAGE, OTHER = "page", "other"
_BATCHED = frozenset({"similar", "recommend", "embed", "classify"})
_SINGLE = frozenset({"index", "videos", *_BATCHED})
_OF_ONE = {"video", "thumbnail", PAGE, OTHER}
NAMES = sorted({*_SINGLE, *(f"{name}_batch" for name in _BATCHED), *_OF_ONE, *LOADING, *UNLIMITED})

RETRY_AFTER_SECONDS = 1
STATUSES = {  # the code for programs, and what OpenAPI says
    400: ("invalid_request", "The request cannot be read."),
    401: ("unauthorized", "The token is missing or wrong."),
    403: ("forbidden", "It is not allowed."),
    404: ("not_found", "There is no such thing."),
    405: ("method_not_allowed", "The endpoint has no such method."),
    409: ("conflict", "No version of the index can be served that way."),
    413: ("body_too_large", "The body is too large."),
    415: ("unsupported_media_type", "The body is of another kind than the endpoint takes."),
    422: ("invalid_request", "A value is out of its range, of another type, or names what there is not."),
    429: ("overloaded", "Too much at once; Retry-After says when to come again."),
    500: ("internal", "The server failed."),
    501: ("not_available", "This server was not set up for it."),
    503: ("unavailable", "There is nothing to serve now."),
    504: ("deadline_exceeded", "It was not done within the deadline."),
}
_KNOWN: tuple[tuple[type[Exception], int, str], ...] = (
    (QueryError, 422, ""),
    (IndexVersionError, 409, ""),
    (ObjectMissingError, 404, ""),
    (ObjectDeniedError, 403, "forbidden_uri"),
    (ObjectTooLargeError, 413, ""),
    (ObjectError, 503, "storage_unavailable"),
    (StorageError, 503, "storage_unavailable"),
)


def path_of(scope: Mapping[str, Any]) -> str:
    """Return the path below the place where the application is mounted, as its router sees it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if path == root or path.startswith(f"{root}/") else path


def endpoint_of(method: str, path: str) -> str:
    """Return the name that limits, metrics and logs use for a request: one of few, whatever a caller asks for."""
    if not path.startswith("/v1/"):
        name = path[1:]
        if name in UNLIMITED:
            return name
        return PAGE if path == "/" or path.startswith("/page/") else OTHER
    name, _, rest = path[4:].partition("/")
    if name == "videos" and rest:
        return "thumbnail" if rest.endswith("/thumbnail") else "video"
    if name in _BATCHED and rest == "batch" and method == "POST":
        return f"{name}_batch"
    if name == "admin" and rest in LOADING:
        return rest
    return name if name in _SINGLE else OTHER


def is_video(endpoint: str) -> bool:
    """Return whether this endpoint decodes videos."""
    return endpoint.startswith(("embed", "classify"))


@dataclass
class HttpError(Exception):
    """Ends a request with this answer; ``code``, for programs, is by default the status's own."""

    status: int
    message: str
    code: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.code = self.code or STATUSES[self.status][0]
        super().__init__(self.message)

    def __reduce__(self) -> tuple[type["HttpError"], tuple[object, ...]]:
        """Keep every field when the error is pickled, as it is between deployments."""
        return type(self), (self.status, self.message, self.code, dict(self.headers))

    @property
    def answer(self) -> Error:
        return {"code": self.code, "message": self.message}

    def body(self, request_id: str) -> bytes:
        """Return the whole answer; json, unlike orjson, can write the lone surrogates that a message may quote."""
        answer: ErrorAnswer = {"error": self.answer, "request_id": request_id}
        return json.dumps(answer).encode()


def overloaded(what: str) -> HttpError:
    """Return the error for too many requests at once; the caller may retry soon."""
    message = f"{what} Try again after {RETRY_AFTER_SECONDS} s."
    return HttpError(429, message, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


def as_http_error(error: Exception) -> HttpError:
    """Return what a caller is told of an exception: no details of an unexpected one."""
    if isinstance(error, HttpError):
        return error
    for kind, status, code in _KNOWN:
        if isinstance(error, kind):
            return HttpError(status, str(error), code)
    return HttpError(500, "The server failed on this request. Its log says why, under this request's id.")
