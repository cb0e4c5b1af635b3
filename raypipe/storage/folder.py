"""A folder by URI, and single objects by URI: all that jobs ask of a storage."""

import builtins
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from raypipe.errors import ConfigError, StorageError
from raypipe.storage import local, s3
from raypipe.storage.base import Storage, StoredObject

MARKER = ".raypipe"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?:://|::)")


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that may not exist yet; ``uri`` is normalised, and a local path is made absolute.

    Names are relative to it. Nothing is cached: every call asks the storage.

    Raises:
        ConfigError: the URI is of a kind that raypipe does not read.
        StorageError: from any method: the storage refuses or cannot be reached, or there is no such bucket.
        ObjectError: from ``read``, ``read_tail`` and ``open_input``: the object is missing, denied or unreadable.
    """

    uri: str

    def __post_init__(self) -> None:
        """Normalise the URI."""
        object.__setattr__(self, "uri", normalise(self.uri).rstrip("/") or "/")

    def __str__(self) -> str:
        return self.uri

    def child(self, name: str) -> str:
        """Return the URI of an object in this folder."""
        return f"{self.uri.rstrip('/')}/{name}"

    def list(self, prefix: str = "", *, skipped: builtins.list[str] | None = None) -> Iterator[StoredObject]:
        """Yield every object in and below this folder whose key begins with ``prefix``, in no promised order.

        Nothing is yielded for a folder that does not exist. ``skipped`` gets the URIs of what exists but cannot be
        examined: it and everything below it are left out.
        """
        return storage_of(self.uri).list_objects(self.uri, prefix, skipped=skipped)

    def stat(self, name: str) -> StoredObject | None:
        """Return what the storage says about one object, None if there is none."""
        return storage_of(self.uri).stat(self.child(name))

    def exists(self, name: str) -> bool:
        """Tell whether there is an object of this name."""
        return self.stat(name) is not None

    def read(self, name: str) -> bytes:
        """Read a whole object."""
        return storage_of(self.uri).read(self.child(name), tail_bytes=None)

    def read_tail(self, name: str, size_bytes: int) -> bytes:
        """Read the last ``size_bytes`` of an object, or all of it if it is smaller."""
        return storage_of(self.uri).read(self.child(name), tail_bytes=size_bytes)

    def open_input(self, name: str) -> BinaryIO:
        """Open an object for random access, pinned to its present content."""
        return storage_of(self.uri).open_input(self.child(name))

    def put_new(self, name: str, data: bytes) -> bool:
        """Create an object in one step; False when one of that name is there already, which is left as it is.

        False may also mean that this very call made it: a reply can be lost and the request sent again. Whoever needs
        to know reads it. No reader ever sees a part of ``data``, even when this process is killed.
        """
        return storage_of(self.uri).put_new(self.child(name), data)

    def put(self, name: str, data: bytes) -> None:
        """Create an object or replace it in one step: for what others may read at any time, such as metrics."""
        storage_of(self.uri).put(self.child(name), data)

    def delete(self, name: str) -> None:
        """Delete an object; it is no error if it is gone."""
        storage_of(self.uri).delete(self.child(name))

    def check_writable(self) -> None:
        """Prove that objects can be created here, and only once each, by creating ``.raypipe`` unless it exists.

        This needs the permission to create and no other; the marker stays, and holds nothing. StorageError also means
        that the storage would overwrite an existing object.
        """
        data = b"An output folder of raypipe.\n"
        if self.put_new(MARKER, data) and self.put_new(MARKER, data):
            msg = f"{self.uri} overwrites an existing object although raypipe asks for create-only (If-None-Match: *)."
            raise StorageError(msg, key=self.uri, remedy="Upgrade that storage, or choose another output.")


def read_object(uri: str, *, etag: str, max_size_bytes: int, into: BinaryIO) -> int:
    """Copy an object into an empty, seekable file if its etag is still ``etag``; return its size in bytes.

    Raises:
        ObjectMissingError: it is gone.
        ObjectChangedError: it has another etag.
        ObjectDeniedError: it may not be read.
        ObjectTooLargeError: it is larger than ``max_size_bytes``; its body was not read.
        ObjectUnreadableError: the storage kept failing on it after every retry.
        StorageError: no object can be read: bad credentials, no such bucket, no such host.
    """
    return storage_of(uri).read_object(uri, etag=etag, max_size_bytes=max_size_bytes, into=into)


def read_range(uri: str, *, etag: str, start: int, stop: int) -> bytes:
    """Read bytes ``start`` to ``stop - 1`` of an object if its etag is still ``etag``; raises like ``read_object``."""
    return storage_of(uri).read_range(uri, etag=etag, start=start, stop=stop)


def place_of(uri: str) -> tuple[Folder, str]:
    """Return the folder of one object, and its name there; raises ConfigError like ``normalise``."""
    parent, _, name = normalise(uri).rpartition("/")
    return Folder(parent or "/"), name


def read_uri(uri: str) -> bytes:
    """Read a whole object; raises ConfigError like ``normalise``, and the rest like ``Folder.read``."""
    folder, name = place_of(Folder(uri).uri)
    return folder.read(name)


def normalise(uri: str) -> str:
    """Make a local path absolute, and drop ``file://`` and the ``a`` of ``s3a://``; an S3 key is left as it is.

    Raises:
        ConfigError: the URI is of a kind that raypipe does not read.
    """
    scheme = _SCHEME.match(uri)
    if scheme is None and uri:
        return os.path.abspath(os.path.expanduser(uri))  # noqa: PTH100, PTH111 - pathlib is lossy: it drops "//" and "./"
    if uri.startswith("file://"):
        return os.path.abspath(uri.removeprefix("file://"))  # noqa: PTH100
    if uri.startswith(("s3://", "s3a://")):
        path = uri.partition("://")[2]
        if path.partition("/")[0]:
            return f"s3://{path}"
        msg = f"{uri!r} names no bucket. Write s3://BUCKET/PREFIX."
        raise ConfigError(msg)
    msg = f"Cannot use {uri!r} as a storage. Choose one of s3://BUCKET/PREFIX, a local path or file:///PATH."
    raise ConfigError(msg)


def storage_of(uri: str) -> Storage:
    """Return the module that handles a normalised URI."""
    return s3 if uri.startswith("s3://") else local
