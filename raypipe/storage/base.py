"""What a storage can do, whichever it is: the contract that ``local`` and ``s3`` fulfil with the same functions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object as a listing saw it."""

    uri: str  # read_object() takes it as it is: nothing in it is escaped
    key: str  # relative to the listed folder, "/" between its parts
    size_bytes: int
    etag: str  # S3: without its quotes; a local file: its modification time in ns and its size, both in hex


class Storage(Protocol):
    """Every ``uri`` and ``root`` is normalised; a ``root`` ends in no slash."""

    def list_objects(self, root: str, prefix: str, *, skipped: list[str] | None = None) -> Iterator[StoredObject]:
        """Every object below ``root`` whose key begins with ``prefix``, in no promised order.

        It ends when all were given, and never because the storage failed. ``skipped`` gets the URIs of what is there
        and cannot be looked at: it and all below it are left out.
        """

    def stat(self, uri: str) -> StoredObject | None:
        """The object, its key the last part of its URI; None when there is none."""

    def read(self, uri: str, *, tail_bytes: int | None) -> bytes:
        """The whole object, or at most its last ``tail_bytes``."""

    def open_input(self, uri: str) -> BinaryIO:
        """Open for random access."""

    def put_new(self, uri: str, data: bytes) -> bool:
        """Create the object unless it exists; True when this call created it."""

    def put(self, uri: str, data: bytes) -> None:
        """Create the object or replace it, whole."""

    def delete(self, uri: str) -> None:
        """Delete the object; one that is gone is no error."""

    def read_object(self, uri: str, *, etag: str, max_size_bytes: int, into: BinaryIO) -> int:
        """Copy the object into ``into`` if it still has this etag, and return its size in bytes."""

    def read_range(self, uri: str, *, etag: str, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop - 1`` of the object, which has so many, if it still has this etag."""
