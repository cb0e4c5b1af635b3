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

_ADVICE = "Roll back, or build again."

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
            size_bytes = path.stat().st_size
            found = size_and_sha256(path) if size_bytes == said["size_bytes"] else (size_bytes, "")
        except OSError as error:
            msg = f"{path} cannot be read: {error.strerror}. {_ADVICE}"
            raise IndexVersionError(msg) from None
        if found != (said["size_bytes"], said["sha256"]):
            what = f"has {found[0]} bytes, not {said['size_bytes']}" if not found[1] else "is not the file that was put"
            msg = f"{path} {what}. {_ADVICE}"
            raise IndexVersionError(msg)


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
        msg = f"Cannot keep an index in {target}: {error.strerror}. Check its permissions and free space."
        raise IndexVersionError(msg) from None


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
        msg = f"{str(error).rstrip('.')}. {_ADVICE}"
        raise IndexVersionError(msg) from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the kernel lets go of when this process dies."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
