"""List the objects of an input that may be videos."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from fsspec.utils import glob_translate

from raypipe.errors import ConfigError
from raypipe.storage.base import StoredObject
from raypipe.storage.folder import Folder, storage_of

# What is stored next to videos in a bucket. All else is planned: its bytes, not its name, tell whether it is a video.
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
# A single object with one of these endings is meant as a list of videos, in a format that raypipe does not read.
_UNREAD_LISTS = (".txt", ".tsv", ".json", ".ndjson", ".arrow", ".avro", ".orc", ".xml", ".yaml", ".yml")
_GLOB = re.compile(r"[*?\[]")
Kind = Literal["folder", "object", "glob", "manifest", "nothing"]


@dataclass
class Listed:
    """What kind of input was listed. It is filled in during the listing, and final when the listing ends.

    ``hidden`` are URIs that the listing leaves out, with everything below them, although they may exist.
    """

    uri: str = ""  # of the input, normalised
    kind: Kind = "nothing"
    hidden: list[str] = field(default_factory=list)

    def covers(self, video_uri: str) -> bool:
        """Tell whether the listing would contain a video with this URI if it existed."""
        if self.kind not in {"glob", "manifest"} and not _is_below(video_uri, self.uri):
            return False
        if self.kind == "folder":
            key = video_uri.removeprefix(self.uri).lstrip("/")
            if not key or not _may_be_video(key):
                return False  # the folder's own name, or a name that listings skip
        return not any(_is_below(video_uri, hidden) for hidden in self.hidden)


def _is_below(uri: str, place: str) -> bool:
    return uri == place or uri.startswith(f"{place.rstrip('/')}/")


def list_videos(input_uri: str, *, exclude_under: str = "", listed: Listed | None = None) -> Iterator[StoredObject]:
    """Yield what may be a video; ``key`` is relative to the input folder, or a glob's part before its first wildcard.

    A folder yields all but hidden names, sidecar files (by extension) and what is below ``exclude_under``; a single
    object or a glob (``*``, ``?``, ``[…]``, ``**`` for any folders) yields what it names. An input that exists as it is
    written is never taken for a glob. An input that names nothing yields nothing. The result is noted in ``listed``.

    Raises:
        ConfigError: the URI is wrong, the input is the folder to exclude, or a list of videos in an unknown format.
        StorageError: the bucket is missing, or the storage refuses or cannot be reached.
    """
    folder = Folder(input_uri)
    excluded = Folder(exclude_under).uri if exclude_under else ""
    if folder.uri == excluded:
        msg = f"Input and output are both {excluded!r}."
        remedy = f"Give the output its own folder, such as {excluded}/embeddings."
        raise ConfigError(msg, key="output", value=excluded, remedy=remedy)
    # An output around the input excludes nothing.
    skipped = f"{excluded}/" if excluded.startswith(folder.child("")) else None
    listed = listed or Listed()
    listed.uri = folder.uri
    if skipped:
        listed.hidden.append(excluded)
    for stored in folder.list(skipped=listed.hidden):
        listed.kind = "folder"
        if _may_be_video(stored.key) and not (skipped and stored.uri.startswith(skipped)):
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


def _may_be_video(key: str) -> bool:
    *folders, name = key.split("/")
    if any(part.startswith((".", "_SUCCESS")) for part in (*folders, name)):
        return False
    stem, dot, extension = name.rpartition(".")
    return not (stem and dot and extension.lower() in SIDECAR_EXTENSIONS)


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
