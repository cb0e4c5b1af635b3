"""S3's semantics in memory: the stored objects as a value, and a storage that uses it."""

import functools
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from raypipe.errors import ObjectChangedError, ObjectMissingError
from raypipe.storage import StoredObject

BUCKET = "s3://model/"
Reply = Any  # list: a tuple; put: whether it created the object; read: bytes; no object: None


@dataclass(frozen=True, slots=True)
class Request:
    """One atomic storage call: S3 answers a list, read or put as of one moment."""

    operation: str  # "list", "stat", "read" or "put"
    key: str  # the whole prefix for a list
    data: bytes = b""


@dataclass(frozen=True)
class Bucket:
    """The stored objects as a value: two histories with the same content give equal buckets."""

    objects: frozenset[tuple[str, bytes]] = frozenset()
    is_create_only: bool = True  # False: a storage that ignores If-None-Match, to which raypipe refuses to write

    def holds(self, key: str) -> bool:
        """Return whether the object exists."""
        return any(key == held for held, _ in self.objects)

    def answer(self, request: Request) -> tuple["Bucket", Reply]:
        """Return the bucket after a request, and the reply."""
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
    """A ``raypipe.storage.base.Storage`` whose calls go to ``answer``, one at a time."""

    def answer(self, request: Request) -> Reply:
        """Return the reply; subclasses implement it."""
        raise NotImplementedError

    def list_objects(self, root: str, prefix: str, *, skipped: list[str] | None = None) -> Iterator[StoredObject]:  # noqa: ARG002
        """Yield every object below ``root`` as of one moment."""
        start = len(root) + 1 - len(BUCKET)
        for found in self.answer(Request("list", f"{root}/{prefix}".removeprefix(BUCKET))):
            yield StoredObject(found.uri, found.key[start:], found.size_bytes, found.etag)

    def stat(self, uri: str) -> StoredObject | None:
        """Return the object, or None."""
        found: StoredObject | None = self.answer(Request("stat", uri.removeprefix(BUCKET)))
        return found

    def read(self, uri: str, *, tail_bytes: int | None) -> bytes:
        """Return the whole object, or its end."""
        data: bytes | None = self.answer(Request("read", uri.removeprefix(BUCKET)))
        if data is None:
            raise ObjectMissingError(uri)
        return data if tail_bytes is None else data[max(0, len(data) - tail_bytes) :]

    def open_input(self, uri: str) -> BinaryIO:
        """Open the object as of now: nothing replaces an object that a job stores."""
        return io.BytesIO(self.read(uri, tail_bytes=None))

    def put_new(self, uri: str, data: bytes) -> bool:
        """Create the object unless it exists."""
        return bool(self.answer(Request("put", uri.removeprefix(BUCKET), data)))

    def put(self, uri: str, data: bytes) -> None:
        """Fail: no commit replaces an object."""
        raise AssertionError(uri, len(data))

    def delete(self, uri: str) -> None:
        """Fail: no commit deletes an object."""
        raise AssertionError(uri)

    def read_object(self, uri: str, *, etag: str, max_size_bytes: int, into: BinaryIO) -> int:
        """Read the object if it has this etag."""
        data = self.read(uri, tail_bytes=None)
        if _describe("", data).etag != etag or len(data) > max_size_bytes:
            raise ObjectChangedError(uri)
        return into.write(data)

    def read_range(self, uri: str, *, etag: str, start: int, stop: int) -> bytes:
        """Fail: no commit reads a part of a video."""
        raise AssertionError(uri, etag, start, stop)


class StoredStorage(MemoryStorage):
    """A storage that answers from one bucket and keeps its changes."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket

    def answer(self, request: Request) -> Reply:
        """Return the reply as of now."""
        self.bucket, reply = self.bucket.answer(request)
        return reply
