"""Endpoint names and HTTP errors, which all modules of the server share."""

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
LOADING = frozenset({"reload", "rollback"})  # these may load an index
LOAD_SECONDS = 900.0  # downloading a large index takes minutes
PAGE, PLAY, OTHER = "page", "play", "other"
PLAY_PATH = "/v1/play"  # its requests have a signature instead of a token
_BATCHED = frozenset({"similar", "recommend", "embed", "classify"})
_OF_VIDEO = {"play_link": "/play", "thumbnail": "/thumbnail"}
_SINGLE = frozenset({"index", "videos", *_BATCHED})
_OF_ONE = {"video", "thumbnail", "play_link", PAGE, PLAY, OTHER}
NAMES = sorted({*_SINGLE, *(f"{name}_batch" for name in _BATCHED), *_OF_ONE, *LOADING, *UNLIMITED})

SECURITY_HEADERS = {  # keep other sites out of the page and its videos
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
RETRY_AFTER_SECONDS = 1
STATUSES = {  # the code for programs, and the description in OpenAPI
    400: ("invalid_request", "The request cannot be read."),
    401: ("unauthorized", "The token is missing or wrong."),
    403: ("forbidden", "The request is not allowed."),
    404: ("not_found", "The requested resource does not exist."),
    405: ("method_not_allowed", "The endpoint does not have this method."),
    409: ("conflict", "The requested version of the index cannot be served, or the video has changed."),
    413: ("body_too_large", "The body is too large."),
    415: ("unsupported_media_type", "The endpoint does not accept this content type."),
    416: ("range_not_satisfiable", "The range is outside the video, or the video is too long to send as a whole."),
    422: ("invalid_request", "A value is out of range, has the wrong type, or names something that does not exist."),
    429: ("overloaded", "Too many requests are in flight. Retry after the time in Retry-After."),
    500: ("internal", "The server failed."),
    501: ("not_available", "This server is not set up for this request."),
    503: ("unavailable", "There is no index to serve, or a service that the request needs is unavailable."),
    504: ("deadline_exceeded", "The request was not answered within its deadline."),
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
    """Return the path of a request relative to where the application is mounted, as its router sees it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if path == root or path.startswith(f"{root}/") else path


def endpoint_of(method: str, path: str) -> str:
    """Return the name of a request's endpoint for limits, metrics and logs.

    All paths are mapped to a few names, so that the number of metrics stays small.
    """
    if not path.startswith("/v1/"):
        name = path[1:]
        if name in UNLIMITED:
            return name
        return PAGE if path == "/" or path.startswith("/page/") else OTHER
    name, _, rest = path[4:].partition("/")
    if name == "videos" and rest:
        of_video = "play_link" if method == "POST" else "thumbnail"
        return of_video if rest.endswith(_OF_VIDEO[of_video]) else "video"
    if name in _BATCHED and rest == "batch" and method == "POST":
        return f"{name}_batch"
    if name == "admin" and rest in LOADING:
        return rest
    return name if name in _SINGLE or path == PLAY_PATH else OTHER


def is_video(endpoint: str) -> bool:
    """Return whether this endpoint decodes videos."""
    return endpoint.startswith(("embed", "classify"))


@dataclass
class HttpError(Exception):
    """An error that ends a request. ``code`` is for programs. The default is the code of the status in ``STATUSES``."""

    status: int
    message: str
    code: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.code = self.code or STATUSES[self.status][0]
        super().__init__(self.message)

    def __reduce__(self) -> tuple[type["HttpError"], tuple[object, ...]]:
        """Keep every field when the error is pickled. Errors are pickled to pass them between deployments."""
        return type(self), (self.status, self.message, self.code, dict(self.headers))

    @property
    def answer(self) -> Error:
        return {"code": self.code, "message": self.message}

    def body(self, request_id: str) -> bytes:
        """Return the response body. Unlike orjson, json can write the lone surrogates that a message may quote."""
        answer: ErrorAnswer = {"error": self.answer, "request_id": request_id}
        return json.dumps(answer).encode()


def overloaded(what: str) -> HttpError:
    """Return the error 429 for too many requests at once. It tells the caller when to retry."""
    message = f"{what} Retry after {RETRY_AFTER_SECONDS} s."
    return HttpError(429, message, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


def as_http_error(error: Exception) -> HttpError:
    """Convert an exception to the error that the caller sees. Details of an unexpected exception are hidden."""
    if isinstance(error, HttpError):
        return error
    for kind, status, code in _KNOWN:
        if isinstance(error, kind):
            return HttpError(status, str(error), code)
    return HttpError(500, "The server failed on this request. Search the server's log for the request id.")
