"""Bring the files of a version of an index to this machine, and hold every byte of them against their manifest."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raypipe.errors import IndexVersionError, ObjectError, ObjectMissingError
from raypipe.storage import Folder, read_object

REMEDY = "Roll back, or build the index again."

Files = Mapping[str, Mapping[str, Any]]  # as a manifest names them: size_bytes and sha256 of each


def cache_folder(given: str | None) -> Path:
    """Where versions from a bucket are kept on this machine: the given folder, or one below the user's cache."""
    return Path(given or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "raypipe", "index")).expanduser()


def size_and_sha256(path: Path) -> tuple[int, str]:
    """Read a file once, in pieces."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def check_files(place: Path, files: Files) -> None:
    """Read every file in ``place``.

    Raises:
        IndexVersionError: one is missing, or is not the file that the manifest names.
    """
    for name, said in files.items():
        path = place / name
        try:
            _require(path, "size in bytes", path.stat().st_size, said["size_bytes"])
            _require(path, "SHA-256", size_and_sha256(path)[1], said["sha256"])
        except OSError as error:
            msg = f"{path} cannot be read: {error.strerror}."
            raise IndexVersionError(msg, key=str(path), remedy=REMEDY) from error


def _require(path: Path, name: str, found: object, expected: object) -> None:
    if found != expected:
        msg = f"{path} has changed: its {name} is {found}, not {expected}."
        raise IndexVersionError(msg, key=str(path), value=found, expected=expected, remedy=REMEDY)


def fetch_files(source: Folder, files: Files, *, target: Path, also: Mapping[str, bytes]) -> None:
    """Have the files in ``target``, and small ones of given content: all of them, or there is no such folder.

    Of several processes one downloads, and the others wait. What a killed one left is removed by the next.

    Raises:
        IndexVersionError: one is missing or is not what the manifest says, or this machine cannot keep them.
        StorageError: the storage refuses or cannot be reached.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f".{target.name}.lock")):
            if _has(target, files, also):
                return
            temporary = target.with_name(f".{target.name}.tmp")
            for folder in (temporary, target):
                if folder.exists():
                    shutil.rmtree(folder)
            temporary.mkdir()
            for name, said in files.items():
                _download(source, name, said["size_bytes"], temporary / name)
            check_files(temporary, files)
            for name, data in also.items():
                (temporary / name).write_bytes(data)
            temporary.rename(target)
    except OSError as error:
        msg = f"Cannot keep an index in {target}: {error.strerror}."
        raise IndexVersionError(msg, key=str(target), remedy="Check its permissions and free space.") from None


def _has(target: Path, files: Files, also: Mapping[str, bytes]) -> bool:
    try:
        check_files(target, files)
        return all((target / name).read_bytes() == data for name, data in also.items())
    except (IndexVersionError, OSError):
        return False


def _download(source: Folder, name: str, size_bytes: int, path: Path) -> None:
    try:
        found = source.stat(name)
        if found is None:
            msg = f"{source.child(name)} does not exist."
            raise ObjectMissingError(msg)
        with path.open("xb+") as file:
            read_object(found.uri, etag=found.etag, max_size_bytes=size_bytes, into=file)
    except ObjectError as error:
        msg = f"{str(error).rstrip('.')}."
        raise IndexVersionError(msg, key=source.child(name), remedy=REMEDY) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the kernel lets go of when this process dies."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
