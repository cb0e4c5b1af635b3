"""Read the sample tables of an MP4 or MOV file, and skip the damage in a fragmented file (ISO/IEC 14496-12).

The tables give each packet's offset and display time without reading the packet. FFmpeg's own index has each packet's
offset and decoding time, and which packets edit lists cut. The tables add the display times.

FFmpeg goes from box to box, so one corrupt box header hides the rest of a fragmented file. But each fragment begins
with a box that can be recognised. So the damaged bytes before such a box are presented to FFmpeg as a box to skip.

Runs in the child process only.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream

from raypipe.video.container import Packet, SeekableReader, size_of
from raypipe.video.decode_request import Ranges
from raypipe.video.timeline import Flags, Ticks

Numbers = npt.NDArray[np.int64]
_MAX_MOOV_BYTES = 256 * 1024**2
_HEADER_BYTES = 8
_SEARCH_BYTES = 1024 * 1024
_MAX_BOXES = 1_000_000
_MAX_MOOF_BYTES = 16 * 1024**2
_FRAGMENT = struct.pack(">I4s", 16, b"mfhd")  # the first bytes inside a 'moof' box


@dataclass(frozen=True)
class SampleTable:
    """The P packets of one stream in file order. Times are in units of the stream's time base."""

    pts: Ticks  # [P]
    offset: Numbers  # [P] where each packet begins in the file
    size_bytes: Numbers  # [P]
    is_keyframe: Flags  # [P]
    is_shown: Flags  # [P]; False if an edit list cuts the packet

    def within(self, file_bytes: int) -> Flags:
        """Return a mask [P] of the packets that are completely inside a file of ``file_bytes`` bytes."""
        return self.offset + self.size_bytes <= file_bytes

    def only(self, chosen: Flags) -> "SampleTable":
        return SampleTable(**{name: column[chosen] for name, column in vars(self).items()})

    def extent(self, start: int, stop: int) -> tuple[int, int]:
        """Return the byte offsets at which the range that holds packets ``start`` to ``stop - 1`` begins and ends."""
        offsets, sizes = self.offset[start:stop], self.size_bytes[start:stop]
        return int(offsets.min()), int((offsets + sizes).max())


def read_samples(file: BinaryIO, stream: VideoStream, first: Packet, *, max_samples: int) -> SampleTable | None:
    """Return the stream's packets, or None if the tables do not give them.

    This happens if the file has fragments, if samples are repeated, if the tables are damaged, or if there are more
    than ``max_samples`` samples. ``first`` is the stream's first packet, which aligns the tables' times with FFmpeg's
    times.
    """
    if not 0 < len(stream.index_entries) <= max_samples:
        return None
    try:
        return _join(stream, _sample_tables(_read_moov(file), stream.id), first)
    except (ValueError, IndexError, KeyError, struct.error, OverflowError):
        return None


def _join(stream: VideoStream, tables: dict[bytes, memoryview], first: Packet) -> SampleTable | None:
    entries = stream.index_entries[:]
    offset = np.array([entry.pos for entry in entries], dtype=np.int64)
    dts = np.array([entry.timestamp for entry in entries], dtype=np.int64)
    sizes = _sample_sizes(tables[b"stsz"], len(entries))
    stored = _sample_offsets(tables, sizes)
    order = np.argsort(stored, kind="stable")
    sample = order[np.clip(np.searchsorted(stored[order], offset), 0, len(order) - 1)]
    if (stored[sample] != offset).any() or len(np.unique(offset)) != len(offset) or (sizes[sample] <= 0).any():
        return None
    shift = _composition_offsets(tables.get(b"ctts"), len(sizes))[sample]
    at = np.flatnonzero(offset == (first.pos if first.pos is not None else -1))
    if len(at) != 1 or first.pts is None:
        return None
    return SampleTable(
        pts=dts + shift + (first.pts - int(dts[at[0]]) - int(shift[at[0]])),
        offset=offset,
        size_bytes=sizes[sample],
        is_keyframe=np.array([entry.is_keyframe for entry in entries], dtype=np.bool_),
        is_shown=np.array([not entry.is_discard for entry in entries], dtype=np.bool_),
    )


def _read_moov(file: BinaryIO) -> memoryview:
    """Return the body of the 'moov' box, which holds all tables.

    Raises:
        ValueError: there is no complete 'moov' box.
    """
    at = 0
    while len(head := _read(file, at, 16)) >= _HEADER_BYTES:
        kind, header, size = box_header(head)
        if kind == b"moov":
            body = memoryview(_read(file, at + header, min(size - header, _MAX_MOOV_BYTES)))
            if len(body) == size - header:
                return body
        if kind == b"moov" or size < header:
            break
        at += size
    raise ValueError(at)


def box_header(data: bytes | memoryview) -> tuple[bytes, int, int]:
    """Return the kind of a box, the size of its header, and its total size.

    A total size of 0 means that the box extends to the end of the file.
    """
    size, kind = struct.unpack_from(">I4s", data)
    if size == 1:
        return kind, 16, struct.unpack_from(">Q", data, 8)[0]
    return kind, _HEADER_BYTES, size


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    while len(data) >= _HEADER_BYTES:
        kind, header, size = box_header(data)
        size = size or len(data)
        if not header <= size <= len(data):
            raise ValueError(size)
        yield kind, data[header:size]
        data = data[size:]


def _sample_tables(moov: memoryview, track_id: int) -> dict[bytes, memoryview]:
    """Return the boxes inside the 'stbl' box of one track, by their kind.

    Raises:
        KeyError: the file has fragments, or does not have this track.
    """
    boxes = list(_boxes(moov))
    if any(kind == b"mvex" for kind, _ in boxes):
        raise KeyError(track_id)
    for trak in (dict(_boxes(body)) for kind, body in boxes if kind == b"trak"):
        header = trak[b"tkhd"]
        if struct.unpack_from(">I", header, 20 if header[0] else 12)[0] == track_id:
            return dict(_boxes(dict(_boxes(dict(_boxes(trak[b"mdia"]))[b"minf"]))[b"stbl"]))
    raise KeyError(track_id)


def _numbers(box: memoryview, kind: str, *, at: int, count: int, columns: int = 1) -> Numbers:
    """Return ``count`` rows of ``columns`` big-endian numbers of type ``kind``, read from offset ``at`` of a box."""
    return np.frombuffer(box, dtype=kind, offset=at, count=count * columns).astype(np.int64).reshape(count, columns)


def _sample_sizes(box: memoryview, min_samples: int) -> Numbers:
    each, count = struct.unpack_from(">II", box, 4)
    if not each:
        return _numbers(box, ">u4", at=12, count=count)[:, 0]
    if count > 2 * min_samples:  # a wrong count in a header must not allocate gigabytes
        raise ValueError(count)
    return np.full(count, each, dtype=np.int64)


def _sample_offsets(tables: dict[bytes, memoryview], sizes: Numbers) -> Numbers:
    """Return the file offset of each sample. Inside a chunk, samples follow each other without gaps."""
    box, kind = (tables[b"co64"], ">u8") if b"co64" in tables else (tables[b"stco"], ">u4")
    chunks = _numbers(box, kind, at=8, count=struct.unpack_from(">I", box, 4)[0])[:, 0]
    box = tables[b"stsc"]
    first, per_chunk, _ = _numbers(box, ">u4", at=8, count=struct.unpack_from(">I", box, 4)[0], columns=3).T
    runs = np.diff(np.append(first, len(chunks) + 1))
    if first[0] != 1 or (runs < 0).any() or per_chunk.max() > len(sizes):
        raise ValueError(runs)
    counts = np.repeat(per_chunk, runs)
    stops = np.minimum(np.cumsum(counts), len(sizes))
    if not len(stops) or stops[-1] != len(sizes):
        raise ValueError(stops)
    starts = np.append(0, stops[:-1])
    before = np.append(0, np.cumsum(sizes))
    return np.asarray(np.repeat(chunks - before[starts], stops - starts) + before[:-1], np.int64)


def _composition_offsets(box: memoryview | None, num_samples: int) -> Numbers:
    """Return the delay between the decoding time and the display time of each sample."""
    offsets = np.zeros(num_samples, dtype=np.int64)
    if box is None:
        return offsets
    counts, values = _numbers(box, ">i4", at=8, count=struct.unpack_from(">I", box, 4)[0], columns=2).T
    if (counts < 0).any() or counts.sum() > num_samples:
        raise ValueError(counts)
    told = np.repeat(values, counts)
    offsets[: len(told)] = told
    return offsets


class BoxDamage(NamedTuple):
    """What is wrong with the boxes of a fragmented MP4."""

    ranges: Ranges = ()  # of bytes; each extends to the next intact fragment or to the end of the file
    ends_inside_box: bool = False  # the file was truncated, which no range covers


def find_damage(file: BinaryIO) -> BoxDamage:
    """Return the damage of a fragmented MP4. Files without fragments have none."""
    size_bytes = size_of(file)
    damage: list[tuple[int, int]] = []
    at, has_fragments = 0, False
    for _ in range(_MAX_BOXES):
        stop = _sound_box(file, at, size_bytes)
        if stop is None:
            has_fragments = has_fragments or _next_fragment(file, 0, size_bytes) is not None
            if not has_fragments:
                break
            stop = _next_fragment(file, at + 1, size_bytes)
            if stop is None:
                if _has_kind(_read(file, at, _HEADER_BYTES)):
                    return BoxDamage(damage, ends_inside_box=True)
                stop = size_bytes
            damage.append((at, stop))
        if stop >= size_bytes:
            break
        at = stop
    return BoxDamage(damage)


def _sound_box(file: BinaryIO, at: int, size_bytes: int) -> int | None:
    """Return the offset at which the box at ``at`` ends, or None if the box is missing or damaged."""
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
    """Return whether a 'moof' box is intact: its boxes are nested correctly, and each track in it has a header."""
    tracks = _children(data[_HEADER_BYTES:]) if data[8:16] == _FRAGMENT else None
    if not tracks:
        return False
    boxes = [_children(body) for kind, body in tracks if kind == b"traf"]
    return any(boxes) and all(box is not None and any(kind == b"tfhd" for kind, _ in box) for box in boxes)


def _children(data: bytes) -> list[tuple[bytes, bytes]] | None:
    boxes, at = [], 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at) if at + _HEADER_BYTES <= len(data) else (0, b"")
        if not _HEADER_BYTES <= size <= len(data) - at:
            return None
        boxes.append((kind, data[at + _HEADER_BYTES : at + size]))
        at += size
    return boxes


def _next_fragment(file: BinaryIO, start: int, size_bytes: int) -> int | None:
    """Return the offset of the first intact fragment at or after ``start``, or None if no such fragment exists."""
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


class SkippingFile(SeekableReader):
    """A file in which FFmpeg sees boxes to skip instead of the damaged byte ranges."""

    def __init__(self, file: BinaryIO, damage: Ranges) -> None:
        self._file = file
        self._headers: list[tuple[int, bytes]] = []
        for start, stop in damage:
            size = stop - start
            header = struct.pack(">I4s", size, b"free") if size < 2**32 else struct.pack(">I4sQ", 1, b"free", size)
            self._headers.append((start, header))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read the file. The first bytes of each damaged range are replaced by the header of a box to skip."""
        at = self._file.tell()
        data = self._file.read(len(buffer))
        view = memoryview(buffer)
        view[: len(data)] = data
        for start, header in self._headers:
            first, last = max(at, start), min(at + len(data), start + len(header))
            if first < last:
                view[first - at : last - at] = header[first - start : last - start]
        return len(data)
