"""The S3 client: one per process and AWS environment, with its limits, retries and errors."""

import asyncio
import functools
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from http import HTTPStatus
from typing import Any, TypeVar

import aiohttp
import s3fs
from aiobotocore.session import AioSession  # type: ignore[import-untyped]
from botocore import exceptions as boto  # type: ignore[import-untyped]
from fsspec.asyn import get_loop

from raypipe import errors
from raypipe.storage.s3_access import ANONYMOUS, REQUEST_CHECKSUMS, REQUEST_PAYER, S3Access
from raypipe.text import one_line

# A request that fails with a transient error is retried until RETRY_SECONDS after the first attempt. One attempt takes
# at most REQUEST_SECONDS. Within an attempt, the client itself makes up to MAX_ATTEMPTS requests in quick succession.
RETRY_SECONDS = 60.0
REQUEST_SECONDS = 60.0
MIN_BYTES_PER_SECOND = 1_048_576  # large puts may take longer than REQUEST_SECONDS: their size at this rate is added
UNREACHABLE_SECONDS = 10.0  # instead of RETRY_SECONDS if nothing listens: enough for a restart, but short after a typo
MAX_ATTEMPTS = 3
CONNECT_TIMEOUT_SECONDS = 5.0
READ_TIMEOUT_SECONDS = 15.0
MAX_PAUSE_SECONDS = 8.0
MAX_CONNECTIONS = 64

T = TypeVar("T")
FAILURES = (boto.BotoCoreError, boto.ClientError, aiohttp.ClientError, OSError)
_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.SSOError,
    boto.ProfileNotFound,
    boto.ConfigParseError,
)
_UNREACHABLE = (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError, boto.SSLError)
_CREDENTIAL_ADVICE = "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or AWS_PROFILE."
_BUCKET_ADVICE = "Check the bucket's name, AWS_ENDPOINT_URL and AWS_DEFAULT_REGION."
_PUBLIC_ADVICE = f"For a public bucket, set {ANONYMOUS}=BUCKET; if the requester pays, set {REQUEST_PAYER}=requester."
_REDIRECTS = ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect")
_ADVICE = {  # error codes that do not depend on the object -> remedy
    **dict.fromkeys(("AccountProblem", "AllAccessDisabled"), "Check the AWS account."),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"), "Renew the credentials."),
    **dict.fromkeys(("InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch"), _CREDENTIAL_ADVICE),
    **dict.fromkeys((*_REDIRECTS, "InvalidBucketName"), _BUCKET_ADVICE),
    "NoSuchBucket": "Check its name, or create it.",
    "RequestTimeTooSkewed": "Set this machine's clock.",
}
_CONDITION_ADVICE = (
    "raypipe needs a store with create-only writes (PUT with If-None-Match: *), because a plain PUT can replace what "
    "another driver wrote. Upgrade this store, or choose another output."
)
_CHECKSUM_ADVICE = f"Set {REQUEST_CHECKSUMS}=when_required: this store rejects the checksums of newer S3 clients."
_CHECKSUM_WORDS = (  # in errors of servers that do not know the checksums of newer clients
    *("x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer", "crc32", "aws-chunked", "streaming-unsigned"),
    *("content-sha256", "xamzcontentsha256mismatch"),
)
_KINDS: dict[int, type[errors.ObjectError]] = {  # error types by HTTP status
    **dict.fromkeys((401, 403), errors.ObjectDeniedError),
    **dict.fromkeys((404, 410), errors.ObjectMissingError),
    412: errors.ObjectChangedError,
}
_THROTTLE_STATUSES = frozenset({429, 503})
_THROTTLE_CODES = {"RequestLimitExceeded", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"}
_PASSING = frozenset({409, 425, 429, 500, 502, 503, 504})  # transient; 409: another request for that key is in flight
_client_lock, _throttle_lock = threading.Lock(), threading.Lock()
_throttles = [0]
_log = logging.getLogger(__name__)


def client() -> Any:  # noqa: ANN401 - botocore builds the class of a client at run time
    """Return the S3 client of this process and AWS environment. The client's methods are coroutines.

    Raises:
        StorageError: the AWS settings in the environment are wrong.
        ConfigError: a variable of ``S3Access`` has an unknown value.
    """
    try:
        return _filesystem().s3
    except FAILURES as error:
        raise storage_error(error, "s3://", "connect to") from error


def call(request: Callable[[], Coroutine[Any, Any, T]], *, size_bytes: int = 0) -> T:
    """Make a request, and retry it while it fails with transient errors. Return its result.

    ``size_bytes`` is the size of the data that the request sends. An attempt with more data gets more time.
    """
    began = time.monotonic()
    failures = 0
    while True:
        try:
            return wait(request(), size_bytes=size_bytes)
        except FAILURES as error:
            patience = UNREACHABLE_SECONDS if _is_unreachable(error) else RETRY_SECONDS
            if not _may_pass(error) or time.monotonic() - began >= patience:
                raise
            if not failures:
                _log.warning("S3: %s Retrying for up to %g s.", _reason(error), patience)
            failures += 1
        pause(failures)


def start(coroutine: Coroutine[Any, Any, T], *, size_bytes: int = 0) -> Future[T]:
    """Start a coroutine of the client on fsspec's thread, with a time limit.

    The client itself has no time limit while it waits for "100 Continue" or for a peer that does not read.
    """
    seconds = REQUEST_SECONDS + size_bytes / MIN_BYTES_PER_SECOND
    return asyncio.run_coroutine_threadsafe(asyncio.wait_for(coroutine, seconds), get_loop())


def wait(coroutine: Coroutine[Any, Any, T], *, size_bytes: int = 0) -> T:
    """Run a coroutine of the client on fsspec's thread, and wait for its result in the calling thread."""
    future = start(coroutine, size_bytes=size_bytes)
    try:
        return future.result()
    finally:
        future.cancel()  # a no-op unless this thread was interrupted


def split(uri: str) -> tuple[str, str]:
    """Return the bucket and the key of a URI. The key may be empty. Percent-escapes in the key are kept."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def pause(failures: int) -> None:
    """Sleep before a retry: longer after each failure, with jitter so that workers do not retry in step."""
    time.sleep(min(2.0 ** (failures - 1), MAX_PAUSE_SECONDS) * random.random())  # noqa: S311


def _filesystem() -> s3fs.S3FileSystem:
    environment = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    limits = (MAX_ATTEMPTS, CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS)
    access = S3Access.of_environment()
    with _client_lock:
        return _new_filesystem(os.getpid(), environment, access, limits)


@functools.lru_cache(maxsize=8)
def _new_filesystem(
    pid: int,  # noqa: ARG001 - connections do not survive a fork
    environment: tuple[tuple[str, str], ...],  # noqa: ARG001 - read by botocore when the client is made
    access: S3Access,
    limits: tuple[int, float, float],
) -> s3fs.S3FileSystem:
    max_attempts, connect_timeout, read_timeout = limits
    session = AioSession()
    session.register("needs-retry.s3", _count_throttle)
    access.apply_to(session)
    return s3fs.S3FileSystem(
        skip_instance_cache=True,  # that cache keeps one instance per thread
        use_listings_cache=False,
        session=session,
        config_kwargs={
            "retries": {"mode": "adaptive", "total_max_attempts": max_attempts},
            "connect_timeout": connect_timeout,
            "read_timeout": read_timeout,
            "max_pool_connections": MAX_CONNECTIONS,
        },
    )


def _count_throttle(response: tuple[object, dict[str, Any]] | None, **_: object) -> None:
    """Count an attempt of a request if the server throttled it.

    botocore calls this after each attempt. ``response`` is None if there was no reply.
    """
    if response is None:
        return
    parsed = response[1]
    status = parsed.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if status in _THROTTLE_STATUSES or parsed.get("Error", {}).get("Code") in _THROTTLE_CODES:
        with _throttle_lock:
            _throttles[0] += 1


def take_throttles() -> int:
    """Return the number of throttled replies since the last call, including replies to requests that were retried."""
    with _throttle_lock:
        count, _throttles[0] = _throttles[0], 0
    return count


def code_of(error: Exception) -> str:
    """Return the error code in the storage's reply, or "" without one. Replies to HEAD requests have no code."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def status_of(error: Exception) -> int:
    """Return the HTTP status of an error, or 0 if there was no reply."""
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _response(error: Exception) -> dict[str, Any]:
    return getattr(error, "response", None) or {}


def storage_error(error: Exception, uri: str, action: str, *, permission: str = "") -> errors.StorageError:
    """Return an error that says in one line why ``action`` on ``uri`` failed, and what to do about it.

    ``permission`` is the S3 permission that the action needs.
    """
    if isinstance(error, _CREDENTIALS):
        advice = f"{_CREDENTIAL_ADVICE} {_PUBLIC_ADVICE}"
    elif (refused := _refused_header(error)) is not None:
        advice = refused
    elif isinstance(error, _UNREACHABLE):
        advice = "Check AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and the network."
    elif (code := code_of(error)) in _ADVICE:
        advice = _ADVICE[code]
    elif status_of(error) in {401, 403}:
        grant = f"Grant {permission} to these credentials." if permission else _CREDENTIAL_ADVICE
        advice = grant if permission == "s3:PutObject" else f"{grant} {_PUBLIC_ADVICE}"
    elif isinstance(error, boto.ParamValidationError):
        advice = _BUCKET_ADVICE
    else:
        advice = "Run the same command again. If it keeps failing, ask the operator of the storage."
    bucket, _ = split(uri)
    where = f"{uri} (bucket {bucket!r})" if bucket else "S3"
    return errors.StorageError(f"Cannot {action} {where}: {_reason(error)}", key=uri, remedy=advice)


def _refused_header(error: Exception) -> str | None:
    """Return what to do if the server does not know a header of the request, or None if that is not the reason.

    Servers report it in different ways. Some name the header, others only say that something is not implemented.
    """
    reply = _response(error).get("Error", {})
    said = " ".join(map(str, reply.values())).lower()
    if any(word in said for word in _CHECKSUM_WORDS):
        return _CHECKSUM_ADVICE
    if "if-none-match" in said:
        return _CONDITION_ADVICE
    if status_of(error) == HTTPStatus.NOT_IMPLEMENTED or code_of(error) == "NotImplemented":
        return f"{_CONDITION_ADVICE} If it does support them, it may reject checksums: {_CHECKSUM_ADVICE}"
    return None


def object_error(error: Exception, uri: str) -> errors.RaypipeError:
    """Convert an exception from reading an object to an ObjectError.

    If reading any other object would fail in the same way, return a StorageError instead.
    """
    if (
        isinstance(error, (*_CREDENTIALS, boto.ParamValidationError))
        or code_of(error) in _ADVICE
        or _is_unreachable(error)
    ):
        return storage_error(error, uri, "read")
    return _KINDS.get(status_of(error), errors.ObjectUnreadableError)(f"{uri}: {_reason(error)}")


def _may_pass(error: Exception) -> bool:
    if status_of(error):
        return status_of(error) in _PASSING or code_of(error) in {"RequestTimeout", "SlowDown", "Throttling"}
    if isinstance(error, (boto.SSLError, boto.ProxyConnectionError)):
        return False  # the settings are wrong
    return isinstance(error, (boto.HTTPClientError, boto.ConnectionError, aiohttp.ClientError, OSError))


def _is_unreachable(error: Exception) -> bool:
    """Return whether no connection to the endpoint could be made. A connection that breaks later does not count."""
    if isinstance(error, boto.EndpointConnectionError):
        return isinstance(error.kwargs.get("error"), aiohttp.ClientConnectorError)
    return isinstance(error, _UNREACHABLE)


def _reason(error: Exception) -> str:
    message = str(_response(error).get("Error", {}).get("Message") or str(error) or type(error).__name__)
    line = one_line(message).rstrip(".")
    code = code_of(error)
    return f"{line} ({code})." if code and code != line else f"{line}."
