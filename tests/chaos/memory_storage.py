"""S3's semantics in memory: what is stored, as a value, and a storage on it."""

import functools
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from raypipe.errors import ObjectChangedError, ObjectMissingError
from raypipe.storage import StoredObject

BUCKET = "s3://model/"
Reply = Any  # of a listing a tuple, of a put whether it created, of a read the bytes, None where nothing is there


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a storage, whole: S3 answers a listing, a read or a put as of one moment."""

    operation: str  # "list", "stat", "read" or "put"
    key: str  # a listing's whole prefix
    data: bytes = b""


@dataclass(frozen=True)
class Bucket:
    """What is stored: a value, so that two ways to the same content are the same bucket."""

    objects: frozenset[tuple[str, bytes]] = frozenset()
    is_create_only: bool = True  # False: a storage that ignores If-None-Match, which raypipe refuses to write to

    def holds(self, key: str) -> bool:
        """Whether there is such an object."""
        return any(key == held for held, _ in self.objects)

    def answer(self, request: Request) -> tuple["Bucket", Reply]:
        """The bucket after a request, and the reply to it."""
        stored = dict(self.objects)
        if request.operation == "list":
            keys = sorted(key for key in stored if key.startswith(request.key))
            return self, tuple(_describe(key, stored[key]) for key in keys)
        if request.operation == "put":
            if request.key in stored and self.is_create_only:
                return self, False
            stored[request.key] = request.data
            return Bucket(frozenset(stored.items()), self.is_create_only), True
        data = stored.get(request.key)
        if request.operation == "stat":
            return self, None if data is None else _describe(request.key, data)
        return self, data


@functools.cache
def _describe(key: str, data: bytes) -> StoredObject:
    return StoredObject(BUCKET + key, key, len(data), hashlib.md5(data, usedforsecurity=False).hexdigest())


class MemoryStorage:
    """``raypipe.storage.base.Storage`` whose calls are answered by ``answer``, one after the other."""

    def answer(self, request: Request) -> Reply:
        """The reply; subclasses say where from."""
        raise NotImplementedError

    def list_objects(self, root: str, prefix: str, *, skipped: list[str] | None = None) -> Iterator[StoredObject]:  # noqa: ARG002
        """Everything below ``root`` as of one moment."""
        start = len(root) + 1 - len(BUCKET)
        for found in self.answer(Request("list", f"{root}/{prefix}".removeprefix(BUCKET))):
            yield StoredObject(found.uri, found.key[start:], found.size_bytes, found.etag)

    def stat(self, uri: str) -> StoredObject | None:
        """The object, or None."""
        found: StoredObject | None = self.answer(Request("stat", uri.removeprefix(BUCKET)))
        return found

    def read(self, uri: str, *, tail_bytes: int | None) -> bytes:
        """The whole object, or its end."""
        data: bytes | None = self.answer(Request("read", uri.removeprefix(BUCKET)))
        if data is None:
            raise ObjectMissingError(uri)
        return data if tail_bytes is None else data[max(0, len(data) - tail_bytes) :]

    def open_input(self, uri: str) -> BinaryIO:
        """The object as of now: nothing replaces what a job stores."""
        return io.BytesIO(self.read(uri, tail_bytes=None))

    def put_new(self, uri: str, data: bytes) -> bool:
        """Create it, unless it exists."""
        return bool(self.answer(Request("put", uri.removeprefix(BUCKET), data)))

    def put(self, uri: str, data: bytes) -> None:
        """No commit replaces an object."""
        raise AssertionError(uri, len(data))

    def delete(self, uri: str) -> None:
        """No commit deletes an object."""
        raise AssertionError(uri)

    def read_object(self, uri: str, *, etag: str, max_size_bytes: int, into: BinaryIO) -> int:
        """The object, if it has this etag."""
        data = self.read(uri, tail_bytes=None)
        if _describe("", data).etag != etag or len(data) > max_size_bytes:
            raise ObjectChangedError(uri)
        return into.write(data)

    def read_range(self, uri: str, *, etag: str, start: int, stop: int) -> bytes:
        """No commit reads a part of a video."""
        raise AssertionError(uri, etag, start, stop)


class StoredStorage(MemoryStorage):
    """Answers from a bucket, and keeps what becomes of it."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket

    def answer(self, request: Request) -> Reply:
        """The reply as of now."""
        self.bucket, reply = self.bucket.answer(request)
        return reply
