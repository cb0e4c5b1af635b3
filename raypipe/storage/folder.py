"""The storage interface for jobs: folders by URI, single objects by URI, and the videos in a folder."""

import builtins
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from fsspec.utils import glob_translate

from raypipe.errors import ConfigError, StorageError
from raypipe.storage import local, s3
from raypipe.storage.base import Storage, StoredObject

MARKER = ".raypipe"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?:://|::)")
# Files that are often stored next to videos. All other files may be videos: only their bytes show what they are.
SIDECAR_EXTENSIONS = frozenset(
    (
        *("json", "jsonl", "ndjson", "txt", "csv", "tsv", "parquet", "arrow", "avro", "orc", "xml", "md", "rst"),
        *("yaml", "yml", "toml", "ini", "html", "htm", "pdf", "log", "sql", "sqlite", "db", "sha256", "md5"),
        *("jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff", "svg", "heic", "avif"),
        *("srt", "vtt", "ass", "ssa", "sub", "idx", "nfo"),
        *("mp3", "wav", "flac", "m4a", "aac", "opus"),
        *("zip", "tar", "gz", "tgz", "bz2", "xz", "zst", "7z", "rar"),
        *("npy", "npz", "pt", "pth", "pkl", "safetensors", "onnx", "tfrecord"),
        *("py", "sh", "ipynb"),
    )
)
# A single object with one of these endings is probably a list of videos, in a format that raypipe does not read.
_UNREAD_LISTS = (
    *(".txt", ".tsv", ".json", ".ndjson", ".arrow", ".avro", ".orc", ".xml", ".yaml", ".yml"),
    *(
        f"{ending}{packed}"
        for ending in (".csv", ".tsv", ".txt", ".jsonl", ".json")
        for packed in (".gz", ".zst", ".bz2")
    ),
)
_GLOB = re.compile(r"[*?\[]")
Kind = Literal["folder", "object", "glob", "manifest", "nothing"]


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that may not exist yet. ``uri`` is normalised, and a local path is made absolute.

    Object names are relative to the folder. Nothing is cached: every call sends a request to the storage.

    Raises:
        ConfigError: raypipe does not support this kind of URI.
        StorageError: raised by any method if the storage denies access or cannot be reached, or the bucket does not
            exist.
        ObjectError: raised by ``read``, ``read_tail`` and ``open_input`` if the object is missing, denied or
            unreadable.
    """

    uri: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "uri", normalise(self.uri).rstrip("/") or "/")

    def __str__(self) -> str:
        return self.uri

    def child(self, name: str) -> str:
        """Return the URI of an object in this folder."""
        return f"{self.uri.rstrip('/')}/{name}"

    def list(self, prefix: str = "", *, skipped: builtins.list[str] | None = None) -> Iterator[StoredObject]:
        """Yield every object in and below this folder whose key begins with ``prefix``, in no guaranteed order.

        A folder that does not exist yields nothing. Files and folders that cannot be examined are left out, together
        with everything below them. Their URIs are appended to ``skipped``.
        """
        return storage_of(self.uri).list_objects(self.uri, prefix, skipped=skipped)

    def stat(self, name: str) -> StoredObject | None:
        """Return the size and etag of one object, or None if it does not exist."""
        return storage_of(self.uri).stat(self.child(name))

    def exists(self, name: str) -> bool:
        return self.stat(name) is not None

    def read(self, name: str) -> bytes:
        return storage_of(self.uri).read(self.child(name), tail_bytes=None)

    def read_tail(self, name: str, size_bytes: int) -> bytes:
        """Read the last ``size_bytes`` of an object, or all of it if it is smaller."""
        return storage_of(self.uri).read(self.child(name), tail_bytes=size_bytes)

    def open_input(self, name: str) -> BinaryIO:
        """Open an object for random access. Reads never return the content of a later version of the object."""
        return storage_of(self.uri).open_input(self.child(name))

    def put_new(self, name: str, data: bytes) -> bool:
        """Create an object atomically. Return False, and change nothing, if an object with this name exists.

        False can also mean that this call created the object, because a reply can be lost and the request retried. A
        caller that needs to know must read the object. No reader ever sees only a part of ``data``, even if this
        process is killed.
        """
        return storage_of(self.uri).put_new(self.child(name), data)

    def put(self, name: str, data: bytes) -> None:
        """Create or replace an object atomically. Use this for content that is read at any time, such as metrics."""
        storage_of(self.uri).put(self.child(name), data)

    def delete(self, name: str) -> None:
        """Delete an object. A missing object is not an error."""
        storage_of(self.uri).delete(self.child(name))

    def check_writable(self) -> None:
        """Check that objects can be created in this folder, and that the storage does not overwrite existing ones.

        The check creates the marker object ``.raypipe`` unless it exists, and does not delete it. Only the permission
        to create objects is needed.

        Raises:
            StorageError: no object can be created, or the storage would overwrite an existing object.
        """
        data = b"An output folder of raypipe.\n"
        if self.put_new(MARKER, data) and self.put_new(MARKER, data):
            msg = f"{self.uri} overwrites existing objects: the storage ignores create-only (If-None-Match: *)."
            raise StorageError(msg, key=self.uri, remedy="Upgrade that storage, or choose another output.")


def read_object(uri: str, *, etag: str, max_size_bytes: int, into: BinaryIO) -> int:
    """Copy an object into an empty, seekable file if its etag is still ``etag``. Return its size in bytes.

    Raises:
        ObjectMissingError: the object does not exist.
        ObjectChangedError: the object has another etag.
        ObjectDeniedError: access to the object is denied.
        ObjectTooLargeError: the object is larger than ``max_size_bytes``. Its body was not read.
        ObjectUnreadableError: reading the object failed after every retry.
        StorageError: no object can be read, for example because of bad credentials, or because the bucket or host does
            not exist.
    """
    return storage_of(uri).read_object(uri, etag=etag, max_size_bytes=max_size_bytes, into=into)


def read_range(uri: str, *, etag: str, start: int, stop: int) -> bytes:
    """Return bytes ``start`` to ``stop - 1`` of an object if its etag is still ``etag``.

    This raises the same errors as ``read_object``.
    """
    return storage_of(uri).read_range(uri, etag=etag, start=start, stop=stop)


def place_of(uri: str) -> tuple[Folder, str]:
    """Return the folder of an object, and the object's name in that folder.

    Raises:
        ConfigError: raypipe does not support this kind of URI.
    """
    parent, _, name = normalise(uri).rpartition("/")
    return Folder(parent or "/"), name


def read_uri(uri: str) -> bytes:
    """Return the content of an object.

    Raises:
        ConfigError: raypipe does not support this kind of URI.
        StorageError: the storage denies access or cannot be reached, or the bucket does not exist.
        ObjectError: the object is missing, denied or unreadable.
    """
    folder, name = place_of(Folder(uri).uri)
    return folder.read(name)


def normalise(uri: str) -> str:
    """Return the normal form of a URI.

    A local path is made absolute. ``file://`` and the ``a`` in ``s3a://`` are dropped. An S3 key stays unchanged.

    Raises:
        ConfigError: raypipe does not support this kind of URI.
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


@dataclass
class Listed:
    """What a listing found out about its input. It is filled in during the listing, and final when the listing ends.

    ``kind`` is the kind of the input. ``hidden`` holds URIs that may exist, but that the listing leaves out, together
    with everything below them. ``skipped`` counts the files that are not taken for videos because of their names, by
    extension, such as ".json", or as "hidden".
    """

    uri: str = ""  # the input's URI, normalised
    kind: Kind = "nothing"
    hidden: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def covers(self, video_uri: str) -> bool:
        """Return whether the listing would contain a video with this URI if it existed."""
        if self.kind not in {"glob", "manifest"} and not _is_below(video_uri, self.uri):
            return False
        if self.kind == "folder":
            key = video_uri.removeprefix(self.uri).lstrip("/")
            if not key or _no_video(key):
                return False  # the folder's own name, or a name that listings skip
        return not any(_is_below(video_uri, hidden) for hidden in self.hidden)


def _is_below(uri: str, place: str) -> bool:
    return uri == place or uri.startswith(f"{place.rstrip('/')}/")


def list_videos(input_uri: str, *, exclude_under: str = "", listed: Listed | None = None) -> Iterator[StoredObject]:
    """Yield the objects of an input that may be videos.

    - A folder yields all objects except hidden names, sidecar files (by extension) and objects below ``exclude_under``.
    - A single object yields itself.
    - A glob yields its matches. It may contain ``*``, ``?``, ``[…]``, and ``**`` for any number of folders. An input
      that exists under its literal name is never taken for a glob.
    - An input that does not exist yields nothing.

    Each ``key`` is relative to the input folder or, for a glob, to the folder before the first wildcard. If ``listed``
    is given, it is filled in.

    Raises:
        ConfigError: the URI or glob is invalid, the input is the folder to exclude, or the input is a list of videos in
            an unknown format.
        StorageError: the bucket is missing, or the storage denies access or cannot be reached.
    """
    folder = Folder(input_uri)
    excluded = Folder(exclude_under).uri if exclude_under else ""
    if folder.uri == excluded:
        msg = f"Input and output are both {excluded!r}."
        remedy = f"Give the output its own folder, such as {excluded}/embeddings."
        raise ConfigError(msg, key="output", value=excluded, remedy=remedy)
    # An output that contains the input excludes nothing.
    excluded_prefix = f"{excluded}/" if excluded.startswith(folder.child("")) else None
    listed = listed or Listed()
    listed.uri = folder.uri
    if excluded_prefix:
        listed.hidden.append(excluded)
    for stored in folder.list(skipped=listed.hidden):
        listed.kind = "folder"
        if excluded_prefix and stored.uri.startswith(excluded_prefix):
            continue
        if reason := _no_video(stored.key):
            listed.skipped[reason] += 1
        else:
            yield stored
    if listed.kind == "folder":
        return
    if (only := storage_of(folder.uri).stat(folder.uri)) is not None:
        if only.uri.lower().endswith(_UNREAD_LISTS):
            msg = f"{only.uri} is not a video, and manifests of this format are not read."
            raise ConfigError(msg, key="input", value=only.uri, remedy="Give a .csv, .parquet or .jsonl manifest.")
        listed.kind = "object"
        yield only
    elif wildcard := _GLOB.search(folder.uri):
        listed.kind = "glob"
        yield from _glob(folder.uri, wildcard.start(), listed)


def _no_video(key: str) -> str:
    """Return why listings skip a file with this name: "hidden", or its extension. Return "" if it may be a video."""
    *folders, name = key.split("/")
    if any(part.startswith((".", "_SUCCESS")) for part in (*folders, name)):
        return "hidden"
    stem, dot, extension = name.lower().rpartition(".")
    return f".{extension}" if stem and dot and extension in SIDECAR_EXTENSIONS else ""


def _glob(uri: str, wildcard: int, listed: Listed) -> Iterator[StoredObject]:
    root, _, prefix = uri[:wildcard].rpartition("/")
    pattern = uri[len(root) + 1 :]
    try:
        matches = re.compile(glob_translate(pattern)).match
    except (ValueError, re.error) as error:
        msg = f"{uri!r} is not a pattern: {error}."
        remedy = "'**' stands alone between slashes; [[] is a literal [."
        raise ConfigError(msg, key="input", value=uri, remedy=remedy) from None
    for stored in Folder(root or "/").list(prefix, skipped=listed.hidden):
        if matches(stored.key):
            yield stored


def anonymous_file(size_bytes: int, *, in_memory_bytes: int) -> BinaryIO:
    """Return an unnamed file for ``size_bytes`` of content.

    It is in memory if ``size_bytes`` is at most ``in_memory_bytes``, otherwise on disk.
    """
    if size_bytes <= in_memory_bytes:
        return os.fdopen(os.memfd_create("raypipe-video"), "w+b")
    return tempfile.TemporaryFile()
