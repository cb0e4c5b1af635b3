"""The storage contract, which the modules ``local`` and ``s3`` implement as functions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from raypipe.errors import ObjectChangedError, ObjectTooLargeError


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object, as listed."""

    uri: str  # as read_object() takes it, unescaped
    key: str  # relative to the listed folder, with "/" between its parts
    size_bytes: int
    etag: str  # S3: without quotes; a local file: its modification time in ns and its size, both in hex


def check_etag(uri: str, found: str, etag: str) -> None:
    if found != etag:
        msg = f"{uri} changed: its etag is {found}, expected {etag}."
        raise ObjectChangedError(msg)


def check_size(uri: str, size_bytes: int, max_size_bytes: int) -> None:
    if size_bytes > max_size_bytes:
        msg = f"{uri} has {size_bytes} bytes; the limit is {max_size_bytes}."
        raise ObjectTooLargeError(msg, key=uri, value=size_bytes)


class Storage(Protocol):
    """The functions of a storage. Every ``uri`` and ``root`` is normalised; a ``root`` does not end in a slash."""

    def list_objects(self, root: str, prefix: str, *, skipped: list[str] | None = None) -> Iterator[StoredObject]:
        """Yield every object below ``root`` whose key begins with ``prefix``, in no guaranteed order.

        The listing ends only when it is complete, never because the storage failed. Files and folders that cannot be
        examined are left out, with everything below them; their URIs are appended to ``skipped``.
        """

    def stat(self, uri: str) -> StoredObject | None:
        """Return the object, with the last part of its URI as its key; None if it does not exist."""

    def read(self, uri: str, *, tail_bytes: int | None) -> bytes:
        """Read the whole object, or at most its last ``tail_bytes``."""

    def open_input(self, uri: str) -> BinaryIO:
        """Open the object for random access."""

    def put_new(self, uri: str, data: bytes) -> bool:
        """Create the object unless it exists; return whether this call created it."""

    def put(self, uri: str, data: bytes) -> None:
        """Create or replace the object atomically."""

    def delete(self, uri: str) -> None:
        """Delete the object; a missing object is not an error."""

    def read_object(self, uri: str, *, etag: str, max_size_bytes: int, into: BinaryIO) -> int:
        """Copy the object into ``into`` if it still has this etag, and return its size in bytes."""

    def read_range(self, uri: str, *, etag: str, start: int, stop: int) -> bytes:
        """Read bytes ``start`` to ``stop - 1`` if the object still has this etag. It must be at least that long."""
