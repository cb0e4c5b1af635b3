"""The storage interface, which the modules ``local`` and ``s3`` implement as functions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from raypipe.errors import ObjectChangedError, ObjectTooLargeError


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object in a storage, as listings return it."""

    uri: str  # not percent-encoded, as read_object() expects it
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
    """The functions of a storage module.

    Callers pass only normalised URIs as ``uri`` and ``root``. A ``root`` does not end in a slash.
    """

    def list_objects(self, root: str, prefix: str, *, skipped: list[str] | None = None) -> Iterator[StoredObject]:
        """Yield every object below ``root`` whose key begins with ``prefix``, in no guaranteed order.

        If the storage fails, this raises an error, so a listing that ends without an error is complete. Files and
        folders that cannot be examined are left out, together with everything below them. Their URIs are appended to
        ``skipped``.
        """

    def stat(self, uri: str) -> StoredObject | None:
        """Return the object, or None if it does not exist. Its key is the last part of its URI."""

    def read(self, uri: str, *, tail_bytes: int | None) -> bytes:
        """Return the content of the object, or only its last ``tail_bytes`` bytes if that is not None."""

    def open_input(self, uri: str) -> BinaryIO:
        """Open the object for random access."""

    def put_new(self, uri: str, data: bytes) -> bool:
        """Create the object unless it exists. Return whether this call created it."""

    def put(self, uri: str, data: bytes) -> None:
        """Create or replace the object atomically."""

    def delete(self, uri: str) -> None:
        """Delete the object. A missing object is not an error."""

    def read_object(self, uri: str, *, etag: str, max_size_bytes: int, into: BinaryIO) -> int:
        """Copy the object into ``into`` if it still has this etag, and return its size in bytes."""

    def read_range(self, uri: str, *, etag: str, start: int, stop: int) -> bytes:
        """Return bytes ``start`` to ``stop - 1`` if the object still has this etag.

        The object must have at least ``stop`` bytes.
        """
