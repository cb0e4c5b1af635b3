"""Stored videos whose parts are read for playback: all parts come from the same version of a video."""

import hashlib
import os
import threading
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple, Protocol

from raypipe.storage import StoredObject, read_range
from raypipe.storage.local import etag_of, read_open_range

_OTHER = "application/octet-stream"
_PLAYABLE = {
    **dict.fromkeys((".mp4", ".m4v"), "video/mp4"),
    ".webm": "video/webm",
    **dict.fromkeys((".mov", ".qt"), "video/quicktime"),
    ".mkv": "video/x-matroska",
    **dict.fromkeys((".ogv", ".ogg"), "video/ogg"),
    ".3gp": "video/3gpp",
}
_UNPLAYABLE = {
    **dict.fromkeys((".avi", ".divx"), "video/x-msvideo"),
    **dict.fromkeys((".wmv", ".asf"), "video/x-ms-wmv"),
    **dict.fromkeys((".flv", ".f4v"), "video/x-flv"),
    **dict.fromkeys((".ts", ".mts", ".m2ts"), "video/mp2t"),
    **dict.fromkeys((".mpg", ".mpeg", ".m2v", ".vob"), "video/mpeg"),
    **dict.fromkeys((".mxf", ".rm", ".rmvb", ".dv", ".nut", ".y4m"), _OTHER),
}
MEDIA_TYPES = sorted({*_PLAYABLE.values(), *_UNPLAYABLE.values(), _OTHER})


class PlayFormat(NamedTuple):
    """The media type of a video, and the reason why browsers do not play it, if they do not."""

    media_type: str
    reason: str | None

    @classmethod
    def of(cls, uri: str) -> "PlayFormat":
        """Return the format by the extension. If the extension is unknown, browsers may play the video."""
        extension = PurePosixPath(uri).suffix.lower()
        if extension in _UNPLAYABLE:
            return cls(_UNPLAYABLE[extension], f"Browsers do not play {extension[1:].upper()} files.")
        return cls(_PLAYABLE.get(extension, _OTHER), None)


class StoredVideo(Protocol):
    """A video whose parts can be read. ``read`` raises ObjectChangedError if it has changed since it was opened."""

    size_bytes: int
    tag: str  # identifies the version, in characters that URLs and headers can contain

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes ``start`` to ``stop - 1``."""

    def close(self) -> None:
        """Release the file after any read in another thread."""


class LocalVideo:
    """A video in an open local file."""

    def __init__(self, file: BinaryIO, uri: str) -> None:
        status = os.fstat(file.fileno())
        self.size_bytes = status.st_size
        self._etag = etag_of(status)
        self.tag = _tag_of(self._etag)
        self._uri = uri
        self._file = file
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> bytes:
        with self._lock:
            return read_open_range(self._file, self._uri, etag=self._etag, start=start, stop=stop)

    def close(self) -> None:
        with self._lock:
            self._file.close()


class BucketVideo:
    """A video in a bucket. Each read is one request for this version of the object."""

    def __init__(self, found: StoredObject) -> None:
        self.size_bytes = found.size_bytes
        self.tag = _tag_of(found.etag)
        self._found = found

    def read(self, start: int, stop: int) -> bytes:
        return read_range(self._found.uri, etag=self._found.etag, start=start, stop=stop)

    def close(self) -> None:
        """Do nothing, because no connection stays open between two reads."""


def _tag_of(etag: str) -> str:
    return hashlib.sha256(etag.encode()).hexdigest()[:32]
