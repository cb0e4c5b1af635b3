"""Find the fragments of an MP4 behind damage (ISO/IEC 14496-12). Runs in the child process only.

FFmpeg goes from box to box, so one corrupt header hides the rest of the file. Each fragment begins with a box of its
own, which can be recognised; the damaged bytes before it are then shown to FFmpeg as a box to skip.
"""

import io
import os
import struct
from dataclasses import replace
from typing import BinaryIO

import numpy as np

from raypipe.video.index import VideoIndex, with_lost_spans
from raypipe.video.protocol import Ranges
from raypipe.video.timeline import Ticks

_SEARCH_BYTES = 1024 * 1024
_MAX_BOXES = 1_000_000
_MAX_MOOF_BYTES = 16 * 1024**2
_HEADER_BYTES = 8
_FRAGMENT = struct.pack(">I4s", 16, b"mfhd")  # what 'moof' begins with


def find_damage(file: BinaryIO) -> Ranges:
    """Return the byte ranges of a fragmented MP4 in which the boxes are damaged: up to a sound fragment or the end.

    A file that was cut short inside a box is not damaged.
    """
    size_bytes = file.seek(0, os.SEEK_END)
    damage: list[tuple[int, int]] = []
    at = 0
    has_fragments = False
    for _ in range(_MAX_BOXES):
        stop = _sound_box(file, at, size_bytes)
        if stop is None:
            if not has_fragments and not (has_fragments := _is_fragmented(file, size_bytes)):
                break
            stop = _next_fragment(file, at + 1, size_bytes)
            if stop is None:
                if _has_kind(_read(file, at, _HEADER_BYTES)):
                    break
                stop = size_bytes
            damage.append((at, stop))
        if stop >= size_bytes:
            break
        at = stop
    return damage


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _sound_box(file: BinaryIO, at: int, size_bytes: int) -> int | None:
    """Return where a box ends; None if it is missing or damaged."""
    header = _read(file, at, 16)
    if len(header) < _HEADER_BYTES:
        return size_bytes
    size, kind = struct.unpack_from(">I4s", header)
    least = _HEADER_BYTES
    if size == 1 and len(header) == 16:  # noqa: PLR2004 - with a 64-bit size
        (size,), least = struct.unpack_from(">Q", header, 8), 16
    elif not size and kind in {b"mdat", b"free"}:
        size = size_bytes - at
    if size < least or at + size > size_bytes or not _has_kind(header):
        return None
    if kind == b"moof" and not _is_sound_moof(_read(file, at, min(size, _MAX_MOOF_BYTES))):
        return None
    return int(at + size)


def _has_kind(header: bytes) -> bool:
    kind = header[4:8]
    return kind.isascii() and kind.decode("ascii").isprintable()


def _is_sound_moof(data: bytes) -> bool:
    """Whether a fragment's boxes fit into each other and one of them lists samples."""
    tracks = _children(data[_HEADER_BYTES:]) if data[8:16] == _FRAGMENT else None
    if not tracks:
        return False
    boxes = [_children(body) for kind, body in tracks if kind == b"traf"]
    return any(boxes) and all(box is not None and any(kind == b"tfhd" for kind, _ in box) for box in boxes)


def _children(data: bytes) -> list[tuple[bytes, bytes]] | None:
    boxes = []
    at = 0
    while at < len(data):
        if at + _HEADER_BYTES > len(data):
            return None
        size, kind = struct.unpack_from(">I4s", data, at)
        if not _HEADER_BYTES <= size <= len(data) - at:
            return None
        boxes.append((kind, data[at + _HEADER_BYTES : at + size]))
        at += size
    return boxes


def _is_fragmented(file: BinaryIO, size_bytes: int) -> bool:
    return _next_fragment(file, 0, size_bytes) is not None


def _next_fragment(file: BinaryIO, start: int, size_bytes: int) -> int | None:
    """Return where the next sound fragment begins."""
    overlap = _HEADER_BYTES + len(_FRAGMENT)
    at = start
    while at < size_bytes:
        data = _read(file, at, _SEARCH_BYTES + overlap)
        found = data.find(b"moof" + _FRAGMENT)
        while found >= 0:
            box = at + found - 4
            if box >= start and _sound_box(file, box, size_bytes) is not None:
                return box
            found = data.find(b"moof" + _FRAGMENT, found + 1)
        at += _SEARCH_BYTES
    return None


class SkippingFile(io.RawIOBase):
    """A file in which a box to skip stands where its boxes are damaged."""

    def __init__(self, file: BinaryIO, damage: Ranges) -> None:
        self._file = file
        self._headers = [(start, _box_to_skip(stop - start)) for start, stop in damage]

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Where the next read begins."""
        return self._file.seek(offset, whence)

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read the file with the headers laid over it."""
        at = self._file.tell()
        data = self._file.read(len(buffer))
        view = memoryview(buffer)
        view[: len(data)] = data
        for start, header in self._headers:
            first, last = max(at, start), min(at + len(data), start + len(header))
            if first < last:
                view[first - at : last - at] = header[first - start : last - start]
        return len(data)


def _box_to_skip(size: int) -> bytes:
    return struct.pack(">I4s", size, b"free") if size < 2**32 else struct.pack(">I4sQ", 1, b"free", size)


def with_losses(index: VideoIndex, places: Ticks, damage: Ranges, *, size_bytes: int) -> VideoIndex:
    """Add to an index what damage hides, where packets [P] begin in the file.

    Damage between frames is the time between them. Of damage up to the end the time is estimated from the file's size.
    """
    if not damage:
        return index
    losses = [int(np.argmax(places >= stop)) for _, stop in damage if (places >= stop).any()]
    index = with_lost_spans(index, losses)
    start, stop = damage[-1]
    duration = index.end_seconds * size_bytes / start if stop == size_bytes and start else index.end_seconds
    return replace(index, duration_seconds=duration)
