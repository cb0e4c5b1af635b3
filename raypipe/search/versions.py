"""The versions of an index in a folder. Each version is immutable, and either complete or absent. One is current."""

import builtins
import datetime as dt
import fcntl
import hashlib
import json
import mmap
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from raypipe import schema
from raypipe.errors import IndexVersionError, ObjectError, ObjectMissingError
from raypipe.search.items import ITEMS, THUMBNAILS
from raypipe.search.projection import PROJECTION
from raypipe.storage import Folder, read_object
from raypipe.storage.s3 import SINGLE_PUT_BYTES
from raypipe.text import one_line

CURRENT, VERSIONS, MANIFEST = "CURRENT", "versions", "manifest.json"
SEARCH, VECTORS = "index.faiss", "vectors.npy"
EMBEDDINGS = "embeddings.npy"
VIEWS, SUCCESSORS = "views.npy", "successors.arrow"
TOWER, TOWER_VECTORS, TOWER_LENGTHS = "ranker.safetensors", "ranker.npy", "ranker_lengths.npy"
TOWER_SEARCH, TOWER_PROJECTION = "ranker.faiss", "ranker_projection.safetensors"
FILES = (SEARCH, VECTORS, PROJECTION, ITEMS, THUMBNAILS)
# of versions of few videos, of int8 embeddings, and of versions that were built with a history or a ranker
OPTIONAL_FILES = (
    EMBEDDINGS,
    schema.INT8_NETWORK,
    VIEWS,
    SUCCESSORS,
    TOWER,
    TOWER_VECTORS,
    TOWER_LENGTHS,
    TOWER_SEARCH,
    TOWER_PROJECTION,
)
FITTED = "fitted_events.npy"  # hashes of events, which only evaluate reads
FORMAT = 1
REMEDY = "Roll back, or build the index again."
_ID = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}")

Files: TypeAlias = Mapping[str, Mapping[str, Any]]  # file name -> its size_bytes and sha256, as in a manifest


class _StoredFile(BaseModel):
    model_config = ConfigDict(strict=True)

    size_bytes: int = Field(ge=0)
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Manifest(BaseModel):
    """The fields of a manifest that every reader needs. A manifest may contain more fields."""

    model_config = ConfigDict(strict=True, extra="allow")

    format: Literal[1]
    id: str
    previous: Annotated[str, StringConstraints(pattern=rf"^{_ID.pattern}$")] | None
    num_videos: int = Field(ge=1)
    dim: int = Field(ge=1)
    embedding_dim: int = Field(ge=1)
    kind: str
    # Names become paths, so they are restricted: the writer of a manifest may not be trusted.
    files: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")], _StoredFile]


def new_version_id() -> str:
    """Return a new version id. Ids sort by creation time."""
    return f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


def cache_folder(given: str | None) -> Path:
    """Return the folder that caches versions from a bucket: the given folder, or one in the user's cache."""
    return Path(given or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "raypipe", "index")).expanduser()


class Versions:
    """The versions of one index. ``raypipe index`` writes them, and ``raypipe serve`` reads them.

    Any number of processes may read and write at once.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def current(self) -> str | None:
        """Return the id of the current version, or None if there is none yet.

        Raises:
            IndexVersionError: ``CURRENT`` does not contain an id.
        """
        try:
            data = self.folder.read(CURRENT)
        except ObjectMissingError:
            return None
        except ObjectError as error:
            raise IndexVersionError(str(error)) from None
        return self._checked_id(data.decode(errors="replace").strip(), of=CURRENT)

    def require_current(self) -> str:
        """Return the id of the current version.

        Raises:
            IndexVersionError: there is no current version.
        """
        if (version := self.current()) is None:
            msg = f"{self.folder} does not contain an index."
            raise IndexVersionError(msg, key=str(self.folder), remedy="Run raypipe index with this folder as --output.")
        return version

    def list(self) -> builtins.list[str]:
        """Return the ids of all versions that have a manifest, oldest first."""
        ends = f"/{MANIFEST}"
        keys = [stored.key for stored in self.folder.list(f"{VERSIONS}/") if stored.key.endswith(ends)]
        ids = [key.removeprefix(f"{VERSIONS}/").removesuffix(ends) for key in keys]
        return sorted(version for version in ids if _ID.fullmatch(version))

    def read_manifest(self, version: str) -> dict[str, Any]:
        """Read and validate the manifest of a version.

        Raises:
            IndexVersionError: there is no such version, or its manifest is corrupt.
        """
        name = self._name(version, MANIFEST)
        try:
            manifest = json.loads(self.folder.read(name))
            checked = _Manifest.model_validate(manifest)
        except ObjectMissingError:
            msg = f"{self.folder} has no version {version}."
            choices = self.list()[::-1]
            raise IndexVersionError(msg, key=str(self.folder), value=version, choices=choices) from None
        except ObjectError as error:
            raise IndexVersionError(str(error)) from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise self._corrupt(name, f"{where!r}: {first['msg']}") from None
        except (ValueError, RecursionError) as error:
            raise self._corrupt(name, one_line(error)) from None
        if checked.id != version:
            raise self._corrupt(name, f"its id is {checked.id!r}")
        if missing := [file for file in FILES if file not in checked.files]:
            raise self._corrupt(name, f"its files do not include {', '.join(missing)}")
        if MANIFEST in checked.files:
            raise self._corrupt(name, f"its files include {MANIFEST} itself")
        return dict(manifest)

    def put(self, version: str, local_dir: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Store the files of a version, then its manifest, and return the stored manifest.

        The manifest lists the files, and its ``previous`` is the current version. The new version becomes current only
        when ``set_current`` is called.

        Raises:
            IndexVersionError: this version already has a file with other contents.
        """
        files = {}
        for name in (*FILES, *(name for name in OPTIONAL_FILES if (local_dir / name).exists())):
            size_bytes, sha256 = _size_and_sha256(local_dir / name)
            files[name] = {"size_bytes": size_bytes, "sha256": sha256}
            self._put_file(self._name(version, name), local_dir / name, size_bytes)
        if (local_dir / FITTED).exists():
            size_bytes, sha256 = _size_and_sha256(local_dir / FITTED)
            manifest = {**manifest, "fitted_events": {"size_bytes": size_bytes, "sha256": sha256}}
            self._put_file(self._name(version, FITTED), local_dir / FITTED, size_bytes)
        whole = {**manifest, "format": FORMAT, "id": version, "previous": self.current(), "files": files}
        data = json.dumps(whole, indent=1, allow_nan=False).encode()
        name = self._name(version, MANIFEST)
        if not self.folder.put_new(name, data) and self.folder.read(name) != data:
            raise self._taken(name)
        return self.read_manifest(version)

    def _put_file(self, name: str, path: Path, size_bytes: int) -> None:
        if size_bytes <= SINGLE_PUT_BYTES:
            created = self.folder.put_new(name, path.read_bytes())
        else:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                # A multipart upload only uses the length and slices of the mapped file. Slices are bytes.
                created = self.folder.put_new(name, cast("bytes", mapped))
        if not created:  # the response to an earlier attempt was lost, or another process chose the same id
            found = self.folder.stat(name)
            if found is None or found.size_bytes != size_bytes:
                raise self._taken(name)

    def set_current(self, version: str) -> None:
        """Make a version the current one.

        Raises:
            IndexVersionError: the version or one of its files is missing, or a file has the wrong size. The current
                version does not change.
        """
        for name, said in self.read_manifest(version)["files"].items():
            found = self.folder.stat(self._name(version, name))
            if found is None or found.size_bytes != said["size_bytes"]:
                uri, expected = self.folder.child(self._name(version, name)), said["size_bytes"]
                value = None if found is None else found.size_bytes
                msg = f"{uri} {'is missing' if found is None else f'has {value} bytes, not {expected}'}."
                raise IndexVersionError(msg, key=uri, value=value, expected=expected, remedy=REMEDY)
        self.folder.put(CURRENT, f"{version}\n".encode())

    def read_fitted_events(self, version: str) -> bytes | None:
        """Return the file with the hashes of the events that a version was fitted on, or None if it has none.

        Raises:
            IndexVersionError: the file is missing or corrupt.
        """
        if (said := self.read_manifest(version).get("fitted_events")) is None:
            return None
        name = self._name(version, FITTED)
        try:
            data = self.folder.read(name)
        except ObjectError as error:
            raise IndexVersionError(str(error)) from None
        if hashlib.sha256(data).hexdigest() != said["sha256"]:
            raise self._corrupt(name, "its SHA-256 differs")
        return data

    def rollback(self) -> str:
        """Make the previous version current again, and return its id.

        Raises:
            IndexVersionError: there is no previous version, or it is incomplete. The current version does not change.
        """
        version = self.require_current()
        previous: str | None = self.read_manifest(version)["previous"]
        if previous is None:
            uri = self.folder.child(self._name(version, MANIFEST))
            others = [other for other in reversed(self.list()) if other != version]
            msg = f"{self.folder}: there is no version before {version} to roll back to."
            raise IndexVersionError(msg, key=uri, choices=others)
        self.set_current(previous)
        return previous

    def folder_of(self, version: str) -> Folder:
        """Return the folder with the files of a version."""
        return Folder(self.folder.child(f"{VERSIONS}/{self._checked_id(version, of=VERSIONS)}"))

    def fetch(self, version: str, cache: Path) -> Path:
        """Return a local folder that contains the verified files of a version.

        The files of an index in a bucket are downloaded to ``cache``. The files of a local index are used in place.

        Raises:
            IndexVersionError: there is no such version, a file is missing or corrupt, or the cache cannot be written.
            StorageError: the storage denies access or cannot be reached.
        """
        manifest = self.read_manifest(version)
        source = self.folder_of(version)
        if not source.uri.startswith("s3://"):
            _check_files(Path(source.uri), manifest["files"])
            return Path(source.uri)
        target = cache / version
        try:
            _download_version(source, manifest, target)
        except OSError as error:
            msg = f"Cannot cache an index in {target}: {error.strerror}."
            remedy = "Check its permissions and free space."
            raise IndexVersionError(msg, key=str(target), remedy=remedy) from None
        return target

    def _name(self, version: str, name: str) -> str:
        return f"{VERSIONS}/{self._checked_id(version, of=VERSIONS)}/{name}"

    def _checked_id(self, version: str, *, of: str) -> str:
        if not _ID.fullmatch(version):
            uri = self.folder.child(of)
            msg = f"{uri}: {version[:100]!r} is not a version id. An id looks like 20240531T120000-0a1b2c3d."
            raise IndexVersionError(msg, key=uri, value=version)
        return version

    def _corrupt(self, name: str, reason: str) -> IndexVersionError:
        uri = self.folder.child(name)
        return IndexVersionError(f"{uri} is corrupt: {reason}.", key=uri, remedy=REMEDY)

    def _taken(self, name: str) -> IndexVersionError:
        uri = self.folder.child(name)
        msg = f"{uri} already exists with other contents."
        return IndexVersionError(msg, key=uri, remedy="Run the same command again.")


def _check_files(place: Path, files: Files) -> None:
    """Compare the size and SHA-256 of every file in ``place`` with the manifest.

    Raises:
        IndexVersionError: a file is missing or cannot be read, or its size or SHA-256 differs.
    """
    for name, said in files.items():
        path = place / name
        try:
            _require(path, "size in bytes", path.stat().st_size, said["size_bytes"])
            _require(path, "SHA-256", _size_and_sha256(path)[1], said["sha256"])
        except OSError as error:
            msg = f"{path} cannot be read: {error.strerror}."
            raise IndexVersionError(msg, key=str(path), remedy=REMEDY) from error


def _require(path: Path, name: str, found: object, expected: object) -> None:
    if found != expected:
        msg = f"{path} has changed: its {name} is {found}, not {expected}."
        raise IndexVersionError(msg, key=str(path), value=found, expected=expected, remedy=REMEDY)


def _size_and_sha256(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def _download_version(source: Folder, manifest: Mapping[str, Any], target: Path) -> None:
    """Download the files and the manifest of a version to the folder ``target``.

    The folder only appears once it is complete and verified. If several processes call this, one downloads and the
    others wait. If a process was killed, the next one deletes the incomplete download.
    """
    files, manifest_data = manifest["files"], json.dumps(manifest).encode()
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel releases it if this process dies
        if _is_complete(target, files, manifest_data):
            return
        temporary = target.with_name(f".{target.name}.tmp")
        for folder in (temporary, target):
            if folder.exists():
                shutil.rmtree(folder)
        temporary.mkdir()
        for name, said in files.items():
            _download(source, name, said["size_bytes"], temporary / name)
        _check_files(temporary, files)
        (temporary / MANIFEST).write_bytes(manifest_data)
        temporary.rename(target)


def _is_complete(target: Path, files: Files, manifest_data: bytes) -> bool:
    try:
        _check_files(target, files)
        return (target / MANIFEST).read_bytes() == manifest_data
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
