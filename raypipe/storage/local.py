"""The storage for local and mounted folders."""

import errno
import logging
import os
import secrets
import stat as stat_module
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from raypipe import errors
from raypipe.storage.base import StoredObject, check_etag, check_size

CHUNK_BYTES = 1_048_576
_TEMPORARY = (".raypipe-", ".tmp")  # listings here skip these; Spark, DuckDB and pyarrow skip names with a leading dot
_log = logging.getLogger(__name__)


def list_objects(root: str, prefix: str, *, skipped: list[str] | None = None) -> Iterator[StoredObject]:
    """Yield the regular files below ``root``, folder by folder in name order. Links are followed.

    Files whose name is not UTF-8 are skipped with a warning, because such a name does not fit into a Parquet string or
    a URI. Files that cannot be examined, such as dangling links, are also skipped with a warning, and their paths are
    appended to ``skipped``.
    """
    skipped = [] if skipped is None else skipped
    folder, _, name_prefix = prefix.rpartition("/")
    key_prefix = f"{folder}/" if folder else ""
    start = os.path.join(root, folder)  # noqa: PTH118 - pathlib would change the names
    status = _status(start, "list")
    if status is not None and stat_module.S_ISDIR(status.st_mode):
        yield from _walk(start, key_prefix, name_prefix, frozenset(), skipped)
    elif status is None and (link := _dangling_link(Path(start))):
        _log.warning("Skipped %r: the target of link %r does not exist.", start, str(link))
        skipped.append(start.rstrip("/"))


def _status(path: str, action: str) -> os.stat_result | None:
    """Return the ``stat`` result of a path, or None if the path does not exist."""
    try:
        return os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        msg = f"Cannot {action} {path!r}: {error.strerror}. Check its permissions."
        raise errors.StorageError(msg) from error


def _dangling_link(path: Path) -> Path | None:
    """Return the first dangling link among a path and its parents, or None if there is no such link.

    A link to a disk that is not mounted is dangling.
    """
    return next((one for one in (path, *path.parents) if one.is_symlink() and not one.exists()), None)


def _walk(
    folder: str, key_prefix: str, name_prefix: str, above: frozenset[tuple[int, int]], skipped: list[str]
) -> Iterator[StoredObject]:
    try:
        status = os.stat(folder)  # noqa: PTH116
        with os.scandir(folder) as scan:
            entries = sorted((entry for entry in scan if entry.name.startswith(name_prefix)), key=lambda e: e.name)
    except OSError as error:
        msg = f"Cannot list {folder!r}: {error.strerror}. Check its permissions."
        raise errors.StorageError(msg) from error
    above |= {(status.st_dev, status.st_ino)}
    for entry in entries:
        if any("\ud800" <= sign <= "\udfff" for sign in entry.name):  # bytes that are not UTF-8
            _log.warning("Skipped %r: its name is not UTF-8. Rename it to include it.", entry.path)
            continue
        try:
            status = entry.stat()
        except OSError as error:
            _log.warning("Skipped %r: %s.", entry.path, error.strerror)  # a dangling link, or just deleted
            skipped.append(entry.path)
            continue
        is_temporary = entry.name.startswith(_TEMPORARY[0]) and entry.name.endswith(_TEMPORARY[1])
        if stat_module.S_ISDIR(status.st_mode):
            if (status.st_dev, status.st_ino) not in above:  # otherwise a link to a parent, and an endless loop
                yield from _walk(entry.path, f"{key_prefix}{entry.name}/", "", above, skipped)
        elif stat_module.S_ISREG(status.st_mode) and not is_temporary:
            yield StoredObject(entry.path, f"{key_prefix}{entry.name}", status.st_size, etag_of(status))


def stat(uri: str) -> StoredObject | None:
    """Return the regular file at a path, or None if there is no regular file."""
    status = _status(uri, "examine")
    if status is None or not stat_module.S_ISREG(status.st_mode):
        return None
    return StoredObject(uri, uri.rpartition("/")[2], status.st_size, etag_of(status))


def read(uri: str, *, tail_bytes: int | None) -> bytes:
    """Return the content of a file. If ``tail_bytes`` is not None, return at most that many bytes from its end."""
    with open_input(uri) as file, _object_problems(uri):
        if tail_bytes is not None:
            file.seek(max(0, file.seek(0, os.SEEK_END) - tail_bytes))
        return file.read()


def open_input(uri: str) -> BinaryIO:
    """Open a regular file for reading. A pipe or device is refused at once instead of blocking."""
    with _object_problems(uri):
        descriptor = os.open(uri, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat_module.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            msg = f"{uri!r} is not a file."
            raise errors.ObjectUnreadableError(msg)
        return os.fdopen(descriptor, "rb")


def put_new(uri: str, data: bytes) -> bool:
    """Create a file atomically unless it exists. Return whether this call created it.

    The data is written to a hidden temporary file, which is then hard-linked to its final name.
    """
    target = Path(uri)
    if os.path.lexists(target):  # common in a resumed run; this check saves writing the data
        return False
    try:
        _write(target, data, place=os.link)
    except FileExistsError:
        return False
    return True


def put(uri: str, data: bytes) -> None:
    """Create or replace a file atomically.

    The data is written to a hidden temporary file, which is then renamed.
    """
    _write(Path(uri), data, place=os.replace)


def delete(uri: str) -> None:
    try:
        Path(uri).unlink(missing_ok=True)
    except OSError as error:
        msg = f"Cannot delete {uri!r}: {error.strerror}. Check its permissions."
        raise errors.StorageError(msg) from error


def _write(target: Path, data: bytes, *, place: Callable[[Path, Path], None]) -> None:
    """Write data to a hidden temporary file, and let ``place`` move it to ``target``.

    The temporary file is always removed. FileExistsError from ``place`` propagates.
    """
    temporary = target.with_name(f"{_TEMPORARY[0]}{secrets.token_hex(8)}{_TEMPORARY[1]}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # FileExistsError here means a file in place of a folder, not a lost race
        raise _cannot_create(str(target), error) from error
    try:
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            place(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise _cannot_create(str(target), error) from error


def _cannot_create(uri: str, error: OSError) -> errors.StorageError:
    if error.errno in {errno.EPERM, errno.ENOTSUP}:
        advice = "The file system may lack hard links, which create-only writes need. Choose another output."
    else:
        advice = "Check its permissions and free space, or choose another output."
    return errors.StorageError(f"Cannot create {uri!r}: {error.strerror}.", key=uri, remedy=advice)


def read_object(uri: str, *, etag: str, max_size_bytes: int, into: BinaryIO) -> int:
    """Copy a file into ``into``, and return its size in bytes.

    Raises:
        ObjectChangedError: the file has changed since it was listed, or changed while it was copied.
        ObjectTooLargeError: the file is larger than ``max_size_bytes``.
    """
    with open_input(uri) as file:
        status = os.fstat(file.fileno())
        check_etag(uri, etag_of(status), etag)
        check_size(uri, status.st_size, max_size_bytes)
        copied = 0
        while True:
            with _object_problems(uri):  # for errors of reading, not of writing
                chunk = file.read(CHUNK_BYTES)
            if not chunk:
                break
            into.write(chunk)
            copied += len(chunk)
        check_etag(uri, etag_of(os.fstat(file.fileno())), etag)
        return copied


def read_range(uri: str, *, etag: str, start: int, stop: int) -> bytes:
    """Return bytes ``start`` to ``stop - 1`` of a file.

    Raises:
        ObjectChangedError: the file has changed since it was listed.
    """
    with open_input(uri) as file:
        return read_open_range(file, uri, etag=etag, start=start, stop=stop)


def read_open_range(file: BinaryIO, uri: str, *, etag: str, start: int, stop: int) -> bytes:
    """Return bytes ``start`` to ``stop - 1`` of an open file. Raises the same errors as ``read_range``."""
    check_etag(uri, etag_of(os.fstat(file.fileno())), etag)
    with _object_problems(uri):
        data = os.pread(file.fileno(), stop - start, start)
    check_etag(uri, etag_of(os.fstat(file.fileno())), etag)
    if len(data) != stop - start:
        msg = f"{uri} returned {len(data)} of {stop - start} bytes at offset {start}."
        raise errors.ObjectUnreadableError(msg)
    return data


def etag_of(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _object_problems(uri: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        msg = f"{uri} does not exist."
        raise errors.ObjectMissingError(msg) from error
    except PermissionError as error:
        msg = f"Permission to read {uri} was denied. Check its permissions."
        raise errors.ObjectDeniedError(msg) from error
    except OSError as error:
        msg = f"Cannot read {uri}: {error.strerror}."
        raise errors.ObjectUnreadableError(msg) from error
