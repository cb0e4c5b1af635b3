"""Amazon S3 and what speaks its protocol as a storage.

Keys go to the client as they are: s3fs's own path functions take ``?versionId=`` and a last slash for something else.
"""

import io
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO

from botocore.exceptions import FlexibleChecksumError  # type: ignore[import-untyped]

from raypipe.errors import (
    ObjectChangedError,
    ObjectError,
    ObjectMissingError,
    ObjectTooLargeError,
    ObjectUnreadableError,
    StorageError,
)
from raypipe.storage.base import StoredObject
from raypipe.storage.s3_client import (
    FAILURES,
    call,
    client,
    object_error,
    pause,
    split,
    status_of,
    storage_error,
    wait,
)
from raypipe.storage.s3_list import list_objects
from raypipe.storage.s3_put import delete, put, put_new

__all__ = ["delete", "list_objects", "open_input", "put", "put_new", "read", "read_object", "read_range", "stat"]

BODY_ATTEMPTS = 4
CHUNK_BYTES = 1_048_576
_RANGE_NOT_SATISFIABLE = 416
_PARTIAL_CONTENT = 206
_NO_ETAG = "the reply has no etag, which S3 always gives."


def stat(uri: str) -> StoredObject | None:
    """Ask with a HEAD, whose errors have a status and no reason."""
    bucket, key = split(uri)
    if not key:
        return None
    try:
        head = call(partial(client().head_object, Bucket=bucket, Key=key))
    except FAILURES as error:
        if status_of(error) == 404:  # noqa: PLR2004
            return None
        raise storage_error(error, uri, "look at", permission="s3:GetObject and s3:ListBucket") from error
    if "ETag" not in head:
        msg = f"Cannot look at {uri}: {_NO_ETAG} Ask who runs that storage, or what lies before it."
        raise StorageError(msg)
    return StoredObject(uri, key.rpartition("/")[2], head["ContentLength"], head["ETag"].strip('"'))


def read(uri: str, *, tail_bytes: int | None) -> bytes:
    """Read in one request, again from the start when its body breaks off."""
    if tail_bytes is None:
        return _get(uri)
    try:
        return _get(uri, Range=f"bytes=-{tail_bytes}")
    except ObjectUnreadableError as error:
        if isinstance(error.__cause__, Exception) and status_of(error.__cause__) == _RANGE_NOT_SATISFIABLE:
            return b""  # an empty object has no last byte
        raise


def open_input(uri: str) -> BinaryIO:
    """Open an object whose every read is one request, which fails when the object has changed since."""
    found = stat(uri)
    if found is None:
        msg = f"{uri} does not exist."
        raise ObjectMissingError(msg)
    return io.BufferedReader(_RangeReader(found), CHUNK_BYTES)


class _RangeReader(io.RawIOBase):
    def __init__(self, found: StoredObject) -> None:
        self._found = found
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start_of = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._found.size_bytes}
        self._position = start_of[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - typeshed's WriteableBuffer exists for type checkers only
        end = min(self._position + len(buffer), self._found.size_bytes)
        if end <= self._position:
            return 0
        data = read_range(self._found.uri, etag=self._found.etag, start=self._position, stop=end)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def read_object(uri: str, *, etag: str, max_size_bytes: int, into: BinaryIO) -> int:
    """Stream into ``into``; a body that breaks off is resumed where it stopped, from the same etag or not at all."""
    received = failures = 0
    while True:
        resume = {"Range": f"bytes={received}-"} if received else {}
        reply = _open(uri, IfMatch=f'"{etag}"', **resume)
        if reply["ResponseMetadata"]["HTTPStatusCode"] != _PARTIAL_CONTENT:
            received = into.seek(0)
            into.truncate()
        body = reply["Body"]
        try:
            _check_reply(uri, reply, etag=etag, max_size_bytes=max_size_bytes - received)
            size = received + reply["ContentLength"]
            failure = None
            while failure is None:
                chunk, failure = _next_chunk(body)
                into.write(chunk)
                received += len(chunk)
                if not chunk and failure is None:
                    return received
        finally:
            wait(body.aclose())
        failures += 1
        if failures == BODY_ATTEMPTS:
            raise object_error(failure, uri) from failure
        if isinstance(failure, FlexibleChecksumError) or received == size:
            received = 0  # nothing is left to resume, and what came is not to be trusted
        pause(failures)


def read_range(uri: str, *, etag: str, start: int, stop: int) -> bytes:
    """Read a part in one request, which fails when the object has changed since it was listed."""

    def check(reply: dict[str, Any]) -> None:
        _check_etag(uri, reply, etag)
        if reply["ContentLength"] != stop - start:  # a storage may not know ranges
            msg = f"{uri} would give {reply['ContentLength']} bytes where {stop - start} were asked for."
            raise ObjectUnreadableError(msg)

    return _get(uri, check, Range=f"bytes={start}-{stop - 1}", IfMatch=f'"{etag}"')


def _check_reply(uri: str, reply: dict[str, Any], *, etag: str, max_size_bytes: int) -> None:
    _check_etag(uri, reply, etag)
    if reply["ContentLength"] > max_size_bytes:
        msg = f"{uri} has {reply['ContentLength']} bytes; the limit is {max_size_bytes}."
        raise ObjectTooLargeError(msg, key=uri, value=reply["ContentLength"])


def _check_etag(uri: str, reply: dict[str, Any], etag: str) -> None:
    found = reply["ETag"].strip('"')
    if found != etag:  # a storage may not know If-Match
        msg = f"{uri} changed: its etag is {found}, the plan says {etag}."
        raise ObjectChangedError(msg)


def _open(uri: str, **options: str) -> dict[str, Any]:
    bucket, key = split(uri)
    for failures in range(1, BODY_ATTEMPTS + 1):
        try:
            reply: dict[str, Any] = call(partial(client().get_object, Bucket=bucket, Key=key, **options))
        except FAILURES as error:
            raise object_error(error, uri) from error
        if "ETag" in reply:
            return reply
        wait(reply["Body"].aclose())
        pause(failures)
    msg = f"{uri}: {_NO_ETAG}"
    raise ObjectUnreadableError(msg)


def _get(uri: str, check: Callable[[dict[str, Any]], None] = lambda _: None, **options: str) -> bytes:
    failures = 0
    while True:
        reply = _open(uri, **options)
        try:
            check(reply)
            return wait(_drain(reply["Body"]), size_bytes=reply["ContentLength"])
        except FAILURES as error:
            failures += 1
            if failures == BODY_ATTEMPTS:
                raise object_error(error, uri) from error
        except ObjectError:
            wait(reply["Body"].aclose())
            raise
        pause(failures)


async def _drain(body: Any) -> bytes:  # noqa: ANN401 - the client's own stream
    try:
        return bytes(await body.read())
    finally:
        await body.aclose()


def _next_chunk(body: Any) -> tuple[bytes, Exception | None]:  # noqa: ANN401 - the client's own stream
    try:
        return wait(_read_chunk(body))
    except FAILURES as error:
        return b"", error


async def _read_chunk(body: Any) -> tuple[bytes, Exception | None]:  # noqa: ANN401 - the client's own stream
    """Gather what arrives in small pieces, so that threads change places once per chunk, up to an error."""
    chunk = bytearray()
    try:
        while len(chunk) < CHUNK_BYTES and (piece := await body.read(CHUNK_BYTES - len(chunk))):
            chunk += piece
    except FAILURES as error:
        return bytes(chunk), error
    return bytes(chunk), None
