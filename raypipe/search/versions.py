"""The versions of an index in a folder: each immutable and whole or not there, one of them current."""

import builtins
import datetime as dt
import json
import mmap
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from raypipe.errors import IndexVersionError, ObjectError, ObjectMissingError
from raypipe.search.fetching import REMEDY, check_files, fetch_files, size_and_sha256
from raypipe.search.items import ITEMS, THUMBNAILS
from raypipe.search.projection import PROJECTION
from raypipe.storage import Folder
from raypipe.storage.s3_put import SINGLE_PUT_BYTES

CURRENT, VERSIONS, MANIFEST = "CURRENT", "versions", "manifest.json"
SEARCH, VECTORS = "index.faiss", "vectors.npy"
FILES = (SEARCH, VECTORS, PROJECTION, ITEMS, THUMBNAILS)
FORMAT = 1
_ID = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}")


class _File(BaseModel):
    model_config = ConfigDict(strict=True)

    size_bytes: int = Field(ge=0)
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Manifest(BaseModel):
    """What every reader relies on; a manifest may say more."""

    model_config = ConfigDict(strict=True, extra="allow")

    format: Literal[1]
    id: str
    previous: Annotated[str, StringConstraints(pattern=rf"^{_ID.pattern}$")] | None
    num_videos: int = Field(ge=1)
    dim: int = Field(ge=1)
    embedding_dim: int = Field(ge=1)
    kind: str
    # A name becomes a path, and whoever wrote the manifest may not be who reads it.
    files: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")], _File]


def new_version_id() -> str:
    """An id that sorts by the time of its making."""
    return f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


class Versions:
    """What ``raypipe index`` puts and ``raypipe serve`` reads; any number of processes may do either at once."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def current(self) -> str | None:
        """The id of the live version, None where there is none yet.

        Raises:
            IndexVersionError: ``CURRENT`` names none.
        """
        try:
            data = self.folder.read(CURRENT)
        except ObjectMissingError:
            return None
        except ObjectError as error:
            raise IndexVersionError(str(error)) from None
        return self._checked_id(data.decode(errors="replace").strip(), of=CURRENT)

    def require_current(self) -> str:
        """The id of the live version.

        Raises:
            IndexVersionError: there is none.
        """
        if (version := self.current()) is None:
            msg = f"{self.folder} holds no index."
            raise IndexVersionError(msg, key=str(self.folder), remedy="Run raypipe index with it as --output.")
        return version

    def read_manifest(self, version: str) -> dict[str, Any]:
        """What a version says of itself, checked.

        Raises:
            IndexVersionError: there is no such version, or its manifest is damaged.
        """
        place = self.folder.child(self._name(version, MANIFEST))
        try:
            data = self.folder.read(self._name(version, MANIFEST))
            manifest = json.loads(data)
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
            raise _damaged(place, f"{where!r}: {first['msg']}") from None
        except (ValueError, RecursionError) as error:
            raise _damaged(place, " ".join(str(error).split())) from None
        missing = [name for name in FILES if name not in checked.files]
        if checked.id != version:
            raise _damaged(place, f"it is of {checked.id!r}")
        if missing:
            raise _damaged(place, f"its files lack {', '.join(missing)}")
        if MANIFEST in checked.files:
            raise _damaged(place, f"its files include {MANIFEST} itself")
        return dict(manifest)

    def put(self, version: str, local_dir: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Put the files of ``FILES`` and then the manifest, to which it adds them; return that manifest.

        ``previous`` becomes the version that is live now. It is not made the live one: ``set_current`` does that.

        Raises:
            IndexVersionError: a file of that version is there already, and is another.
        """
        files = {}
        for name in FILES:
            size_bytes, sha256 = size_and_sha256(local_dir / name)
            files[name] = {"size_bytes": size_bytes, "sha256": sha256}
            self._put_file(self._name(version, name), local_dir / name, size_bytes)
        whole = {**manifest, "format": FORMAT, "id": version, "previous": self.current(), "files": files}
        data = json.dumps(whole, indent=1, allow_nan=False).encode()
        if not self.folder.put_new(self._name(version, MANIFEST), data):
            self._refuse_unless(self.folder.read(self._name(version, MANIFEST)) == data, self._name(version, MANIFEST))
        return self.read_manifest(version)

    def _put_file(self, name: str, path: Path, size_bytes: int) -> None:
        if size_bytes <= SINGLE_PUT_BYTES:
            created = self.folder.put_new(name, path.read_bytes())
        else:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                # Put in parts: of one so large, a storage takes the length, and slices, which are bytes.
                created = self.folder.put_new(name, cast("bytes", mapped))
        if not created:  # a reply was lost, or another had the same id
            found = self.folder.stat(name)
            self._refuse_unless(found is not None and found.size_bytes == size_bytes, name)

    def _refuse_unless(self, same: bool, name: str) -> None:  # noqa: FBT001 - read at its calls
        if not same:
            uri = self.folder.child(name)
            msg = f"{uri} exists already and is a different file."
            raise IndexVersionError(msg, key=uri, remedy="Run the same command again.")

    def fetch(self, version: str, cache: Path) -> Path:
        """A folder of this machine with every file of a version, checked: in the cache, or where a local index is.

        Raises:
            IndexVersionError: there is no such version, or it is not whole.
            StorageError: the storage refuses or cannot be reached.
        """
        manifest = self.read_manifest(version)
        source = Folder(self.folder.child(f"{VERSIONS}/{version}"))
        if not source.uri.startswith("s3://"):
            check_files(Path(source.uri), manifest["files"])
            return Path(source.uri)
        target = cache / version
        fetch_files(source, manifest["files"], target=target, also={MANIFEST: json.dumps(manifest).encode()})
        return target

    def set_current(self, version: str) -> None:
        """Make a version the live one.

        Raises:
            IndexVersionError: it is not there, or lacks a file; the live one stays.
        """
        for name, said in self.read_manifest(version)["files"].items():
            found = self.folder.stat(self._name(version, name))
            if found is None or found.size_bytes != said["size_bytes"]:
                uri, expected = self.folder.child(self._name(version, name)), said["size_bytes"]
                value = None if found is None else found.size_bytes
                msg = f"{uri} {'is missing' if found is None else f'has {value} bytes, not {expected}'}."
                raise IndexVersionError(msg, key=uri, value=value, expected=expected, remedy=REMEDY)
        self.folder.put(CURRENT, f"{version}\n".encode())

    def rollback(self) -> str:
        """Make the version live that was so before the live one, and return its id.

        Raises:
            IndexVersionError: there is none before it, or that is not whole; the live one stays.
        """
        version = self.require_current()
        previous: str | None = self.read_manifest(version)["previous"]
        if previous is None:
            uri = self.folder.child(self._name(version, MANIFEST))
            others = [other for other in reversed(self.list()) if other != version]
            msg = f"{self.folder}: {version} has no version before it to go back to."
            raise IndexVersionError(msg, key=uri, choices=others)
        self.set_current(previous)
        return previous

    def list(self) -> builtins.list[str]:
        """The ids of all versions that have a manifest, the oldest first."""
        ends = f"/{MANIFEST}"
        keys = [stored.key for stored in self.folder.list(f"{VERSIONS}/") if stored.key.endswith(ends)]
        ids = [key.removeprefix(f"{VERSIONS}/").removesuffix(ends) for key in keys]
        return sorted(version for version in ids if _ID.fullmatch(version))

    def _name(self, version: str, name: str) -> str:
        return f"{VERSIONS}/{self._checked_id(version, of=VERSIONS)}/{name}"

    def _checked_id(self, version: str, *, of: str) -> str:
        if not _ID.fullmatch(version):
            uri = self.folder.child(of)
            msg = f"{uri}: {version[:100]!r} is not a version id. An id looks like 20240531T120000-0a1b2c3d."
            raise IndexVersionError(msg, key=uri, value=version)
        return version


def _damaged(uri: str, reason: str) -> IndexVersionError:
    return IndexVersionError(f"{uri} is damaged: {reason}.", key=uri, remedy=REMEDY)
