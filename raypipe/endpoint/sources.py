"""Videos that callers send or name: bytes, or a URI below a prefix that the configuration allows, and nowhere else."""

import os
import stat
import tempfile
from collections.abc import Sequence
from typing import BinaryIO, NewType, TypeAlias

from raypipe.endpoint.http_errors import HttpError
from raypipe.errors import ConfigError, ObjectDeniedError, ObjectMissingError, ObjectTooLargeError
from raypipe.storage import Folder, read_object

AllowedUri = NewType("AllowedUri", str)  # made by Prefixes alone
Source: TypeAlias = bytes | AllowedUri
_CHUNK_BYTES = 1_048_576
_IN_MEMORY_BYTES = 1024**3
_CONTROL = frozenset(map(chr, [*range(32), 127]))


class Prefixes:
    """The folders below which callers may name videos: ``s3://bucket/prefix`` or local ones.

    Raises:
        ConfigError: a prefix is no folder that raypipe reads.
    """

    def __init__(self, prefixes: Sequence[str]) -> None:
        self._folders = tuple(Folder(prefix).uri.rstrip("/") + "/" for prefix in prefixes)

    def allow(self, uri: str) -> AllowedUri:
        """Return the URI in its one normal form; nothing is looked at, no host is asked.

        Raises:
            HttpError: 403, it is not below a prefix.
        """
        try:
            normal = Folder(uri).uri
        except ConfigError:
            normal = ""
        parts = normal.removeprefix("s3://").strip("/").split("/")
        is_plain = _CONTROL.isdisjoint(normal) and not {"", ".", ".."} & set(parts) and not uri.endswith("/")
        if is_plain and any(normal.startswith(folder) for folder in self._folders):
            return AllowedUri(normal)
        message = f"{_shown(uri)} is not below a prefix that this server reads videos from."
        raise HttpError(403, message, "forbidden_uri")

    def open(self, source: Source, *, max_size_bytes: int) -> BinaryIO:
        """Copy the video into a nameless buffer, which the caller closes.

        Raises:
            HttpError: 403, the URI is not below a prefix, or leads out of it by a link.
            ObjectError: it is missing, too large, or cannot be read.
            StorageError: the storage refuses or cannot be reached.
        """
        buffer = _nameless_buffer(len(source) if isinstance(source, bytes) else max_size_bytes)
        try:
            if isinstance(source, bytes):
                buffer.write(source)
            else:
                self._copy(self.allow(source), buffer, max_size_bytes)
        except BaseException:
            buffer.close()
            raise
        buffer.seek(0)
        return buffer

    def _copy(self, uri: AllowedUri, into: BinaryIO, max_size_bytes: int) -> None:
        if not uri.startswith("s3://"):
            folder = next(folder for folder in self._folders if uri.startswith(folder))
            _copy_beneath(folder, uri[len(folder) :], into, max_size_bytes)
            return
        parent, _, name = uri.rpartition("/")
        found = Folder(parent).stat(name)
        if found is None:
            raise _missing(uri)
        read_object(uri, etag=found.etag, max_size_bytes=max_size_bytes, into=into)


def _nameless_buffer(most_bytes: int) -> BinaryIO:
    """Memory for what is surely small enough, a file without a name for the rest."""
    if most_bytes <= _IN_MEMORY_BYTES:
        return os.fdopen(os.memfd_create("raypipe-video"), "w+b")
    return tempfile.TemporaryFile()


def _copy_beneath(folder: str, name: str, into: BinaryIO, max_size_bytes: int) -> None:
    """Copy a file that is reached from the folder without a link: each step is taken from the one before it."""
    uri = folder + name
    *folders, last = name.split("/")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in folders:
            at = _step(at, part, flags | os.O_DIRECTORY)
        descriptor = _step(at, last, flags | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(uri) from None
    except OSError as error:  # a link (ELOOP), or no permission
        msg = f"{_shown(uri)} may not be read: {error.strerror}."
        raise ObjectDeniedError(msg, key=uri) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise _missing(uri)
    with os.fdopen(descriptor, "rb") as file:
        copied = 0
        while chunk := file.read(_CHUNK_BYTES):
            copied += len(chunk)
            if copied > max_size_bytes:
                msg = f"{_shown(uri)} has {status.st_size} bytes; the limit is {max_size_bytes}."
                raise ObjectTooLargeError(msg, key=uri, value=status.st_size, expected=max_size_bytes)
            into.write(chunk)


def _step(at: int, part: str, flags: int) -> int:
    try:
        return os.open(part, flags, dir_fd=at)
    finally:
        os.close(at)


def _missing(uri: str) -> ObjectMissingError:
    return ObjectMissingError(f"{_shown(uri)} does not exist.", key=uri)


def _shown(uri: str) -> str:
    return repr(uri if len(uri) <= 200 else f"{uri[:200]}…")  # noqa: PLR2004 - a line's worth
