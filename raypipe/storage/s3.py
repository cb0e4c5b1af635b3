"""Amazon S3 and compatible servers as a storage.

Keys are passed to the client unchanged: s3fs's own path functions would interpret ``?versionId=`` and trailing slashes.
"""

import io
import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, BinaryIO

from botocore.exceptions import FlexibleChecksumError  # type: ignore[import-untyped]

from raypipe import errors
from raypipe.storage.base import StoredObject, check_etag, check_size
from raypipe.storage.s3_client import (
    FAILURES,
    call,
    client,
    code_of,
    object_error,
    pause,
    split,
    status_of,
    storage_error,
    wait,
)
from raypipe.storage.s3_list import list_objects as list_objects  # noqa: PLC0414 - a function of the protocol

BODY_ATTEMPTS = 4
CHUNK_BYTES = 1_048_576
SINGLE_PUT_BYTES = 104_857_600  # S3 takes 5 GiB in one request, but a broken connection loses all of it
PART_BYTES = 67_108_864
MAX_PARTS = 10_000
_PARTIAL_CONTENT, _NOT_FOUND, _PRECONDITION_FAILED, _RANGE_NOT_SATISFIABLE = 206, 404, 412, 416  # HTTP status
_NO_ETAG = "the reply has no etag, although S3 always sends one."


def stat(uri: str) -> StoredObject | None:
    """Return the object, or None if it does not exist.

    This sends a HEAD request. Error replies to it have a status but no reason.
    """
    bucket, key = split(uri)
    if not key:
        return None
    try:
        head = call(partial(client().head_object, Bucket=bucket, Key=key))
    except FAILURES as error:
        if status_of(error) == _NOT_FOUND:
            return None
        raise storage_error(error, uri, "examine", permission="s3:GetObject and s3:ListBucket") from error
    if "ETag" not in head:
        msg = f"Cannot examine {uri}: {_NO_ETAG} Ask the operator of the storage, or check proxies in front of it."
        raise errors.StorageError(msg)
    return StoredObject(uri, key.rpartition("/")[2], head["ContentLength"], head["ETag"].strip('"'))


def read(uri: str, *, tail_bytes: int | None) -> bytes:
    """Return the content of an object, or at most its last ``tail_bytes``, in one request.

    If the body breaks off, the request is retried from the start.
    """
    if tail_bytes is None:
        return _get(uri)
    try:
        return _get(uri, Range=f"bytes=-{tail_bytes}")
    except errors.ObjectUnreadableError as error:
        if isinstance(error.__cause__, Exception) and status_of(error.__cause__) == _RANGE_NOT_SATISFIABLE:
            return b""  # an empty object has no last byte
        raise


def open_input(uri: str) -> BinaryIO:
    """Open an object. Each read is one request, which fails if the object has changed since it was opened."""
    found = stat(uri)
    if found is None:
        msg = f"{uri} does not exist."
        raise errors.ObjectMissingError(msg)
    return io.BufferedReader(_RangeReader(found), CHUNK_BYTES)


class _RangeReader(io.RawIOBase):
    def __init__(self, found: StoredObject) -> None:
        self._found = found
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

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
    """Stream an object into ``into``, and return its size in bytes.

    If the body breaks off, the next request resumes where it stopped, and requires the same etag.
    """
    received = failures = 0
    while True:
        resume = {"Range": f"bytes={received}-"} if received else {}
        reply = _open(uri, IfMatch=f'"{etag}"', **resume)
        if reply["ResponseMetadata"]["HTTPStatusCode"] != _PARTIAL_CONTENT:
            received = into.seek(0)
            into.truncate()
        body = reply["Body"]
        try:
            check_etag(uri, reply["ETag"].strip('"'), etag)  # a storage may ignore If-Match
            size = received + reply["ContentLength"]
            check_size(uri, size, max_size_bytes)
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
            received = 0  # nothing is left to resume, and the received data cannot be trusted
        pause(failures)


def read_range(uri: str, *, etag: str, start: int, stop: int) -> bytes:
    """Read a part of an object in one request. The request fails if the object has changed since it was listed."""

    def check(reply: dict[str, Any]) -> None:
        check_etag(uri, reply["ETag"].strip('"'), etag)  # a storage may ignore If-Match
        if reply["ContentLength"] != stop - start:  # a storage may ignore Range
            msg = f"{uri} would return {reply['ContentLength']} bytes instead of the {stop - start} requested."
            raise errors.ObjectUnreadableError(msg)

    return _get(uri, check, Range=f"bytes={start}-{stop - 1}", IfMatch=f'"{etag}"')


def put_new(uri: str, data: bytes) -> bool:
    """Create the object unless it exists. Return whether this call created it.

    S3 reports an existing object as status 412.
    """
    s3 = client()
    bucket, key = split(uri)
    try:
        call(lambda: _put(s3, {"Bucket": bucket, "Key": key}, data), size_bytes=len(data))
    except FAILURES as error:
        if status_of(error) == _PRECONDITION_FAILED or code_of(error) == "NoSuchUpload":
            return False  # NoSuchUpload: an attempt whose reply was lost has completed the upload
        raise storage_error(error, uri, "create", permission="s3:PutObject") from error
    return True


def put(uri: str, data: bytes) -> None:
    """Create or replace the object in one request."""
    bucket, key = split(uri)
    try:
        call(partial(client().put_object, Bucket=bucket, Key=key, Body=data), size_bytes=len(data))
    except FAILURES as error:
        raise storage_error(error, uri, "write", permission="s3:PutObject") from error


def delete(uri: str) -> None:
    """Delete the object. A missing object is not an error: S3 sends the same reply."""
    bucket, key = split(uri)
    try:
        call(partial(client().delete_object, Bucket=bucket, Key=key))
    except FAILURES as error:
        raise storage_error(error, uri, "delete", permission="s3:DeleteObject") from error


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
    raise errors.ObjectUnreadableError(msg)


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
        except errors.ObjectError:
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
    """Read one chunk. Return its bytes, and the error that cut it short or None.

    The small pieces of the body are gathered into chunks, because each call costs a thread switch.
    """
    chunk = bytearray()
    try:
        while len(chunk) < CHUNK_BYTES and (piece := await body.read(CHUNK_BYTES - len(chunk))):
            chunk += piece
    except FAILURES as error:
        return bytes(chunk), error
    return bytes(chunk), None


async def _put(s3: Any, target: dict[str, str], data: bytes) -> None:  # noqa: ANN401 - a class made at run time
    if len(data) <= SINGLE_PUT_BYTES:
        await s3.put_object(**target, Body=data, IfNoneMatch="*")
        return
    upload = {**target, "UploadId": (await s3.create_multipart_upload(**target))["UploadId"]}
    size = max(PART_BYTES, math.ceil(len(data) / MAX_PARTS))
    parts = []
    try:
        for number, offset in enumerate(range(0, len(data), size), start=1):
            reply = await s3.upload_part(**upload, PartNumber=number, Body=data[offset : offset + size])
            parts.append({"PartNumber": number, "ETag": reply["ETag"]})
        await s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*")
    except BaseException:
        with suppress(*FAILURES):  # a lifecycle rule removes leftover parts; report the first error
            await s3.abort_multipart_upload(**upload)
        raise
