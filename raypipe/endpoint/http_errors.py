"""Errors as a caller sees them: a status, a code for programs, one line for people."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from raypipe.errors import (
    IndexVersionError,
    ObjectDeniedError,
    ObjectError,
    ObjectMissingError,
    ObjectTooLargeError,
    QueryError,
    StorageError,
)

RETRY_AFTER_SECONDS = 1
CODES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
    429: "overloaded",
    500: "internal",
    501: "not_available",
    503: "unavailable",
    504: "deadline_exceeded",
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


@dataclass
class HttpError(Exception):
    """A request ends with this answer; ``code`` is the status's own unless it says more."""

    status: int
    message: str
    code: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Fill in the code."""
        self.code = self.code or CODES[self.status]
        super().__init__(self.message)

    def __reduce__(self) -> tuple[type["HttpError"], tuple[object, ...]]:
        """Travel between processes whole."""
        return type(self), (self.status, self.message, self.code, dict(self.headers))


def overloaded(what: str) -> HttpError:
    """Too much at once; the caller may try again soon."""
    message = f"{what} Try again after {RETRY_AFTER_SECONDS} s."
    return HttpError(429, message, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


def not_available(what: str) -> HttpError:
    """This server was not set up for it."""
    return HttpError(501, what)


def as_http_error(error: Exception) -> HttpError:
    """What a caller is told of an exception; nothing of one that nobody foresaw."""
    if isinstance(error, HttpError):
        return error
    for kind, status, code in _KNOWN:
        if isinstance(error, kind):
            return HttpError(status, str(error), code)
    return HttpError(500, "The server failed on this request. Its log says why, under this request's id.")


def error_body(problem: HttpError, request_id: str) -> bytes:
    """The JSON of an error."""
    error = {"code": problem.code, "message": problem.message}
    return json.dumps({"error": error, "request_id": request_id}).encode()
