"""Write objects on S3: only once (``If-None-Match: *``, in one request or in parts), replaced, or deleted."""

import math
from contextlib import suppress
from functools import partial
from typing import Any

from raypipe.storage.s3_client import FAILURES, call, client, code_of, split, status_of, storage_error

SINGLE_PUT_BYTES = 104_857_600  # S3 takes 5 GiB in one request, but a broken connection loses all of it
PART_BYTES = 67_108_864
MAX_PARTS = 10_000
_PRECONDITION_FAILED = 412


def put_new(uri: str, data: bytes) -> bool:
    """Create the object; 412 says that it is there."""
    s3 = client()
    bucket, key = split(uri)
    try:
        call(lambda: _put(s3, {"Bucket": bucket, "Key": key}, data), size_bytes=len(data))
    except FAILURES as error:
        if status_of(error) == _PRECONDITION_FAILED:
            return False
        if code_of(error) == "NoSuchUpload":
            return False  # completed by an attempt whose reply was lost
        raise storage_error(error, uri, "create", permission="s3:PutObject") from error
    return True


def put(uri: str, data: bytes) -> None:
    """Create or replace the object, in one request."""
    bucket, key = split(uri)
    try:
        call(partial(client().put_object, Bucket=bucket, Key=key, Body=data), size_bytes=len(data))
    except FAILURES as error:
        raise storage_error(error, uri, "write", permission="s3:PutObject") from error


def delete(uri: str) -> None:
    """Delete the object; S3 says the same of one that is not there."""
    bucket, key = split(uri)
    try:
        call(partial(client().delete_object, Bucket=bucket, Key=key))
    except FAILURES as error:
        raise storage_error(error, uri, "delete", permission="s3:DeleteObject") from error


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
        with suppress(*FAILURES):  # a lifecycle rule removes what is left; the first error is the one to tell
            await s3.abort_multipart_upload(**upload)
        raise
