"""The packets of an MP4 or MOV from its sample tables, so that no packet is read to know them (ISO/IEC 14496-12).

FFmpeg's own index has each packet's place, decoding time and edit lists; the tables add when it is shown. Runs in the
child process only.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream

if TYPE_CHECKING:
    import av

Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
_MAX_MOOV_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class Samples:
    """The packets of one stream in file order, P of them; times are in units of the stream's time base."""

    pts: Numbers  # [P]
    offset: Numbers  # [P] where each begins in the file
    size_bytes: Numbers  # [P]
    is_keyframe: Flags  # [P]
    is_shown: Flags  # [P]: False where an edit list cuts it

    def within(self, file_bytes: int) -> Flags:
        """[P] which of them a file of so many bytes holds whole."""
        inside: Flags = self.offset + self.size_bytes <= file_bytes
        return inside

    def only(self, chosen: Flags) -> "Samples":
        """Those that are chosen."""
        return Samples(**{name: column[chosen] for name, column in vars(self).items()})

    def extent(self, start: int, stop: int) -> tuple[int, int]:
        """The bytes of the file that hold packets ``start`` to ``stop - 1``."""
        offsets = self.offset[start:stop]
        return int(offsets.min()), int((offsets + self.size_bytes[start:stop]).max())


def read_samples(file: BinaryIO, stream: VideoStream, first: "av.Packet[Any]", *, max_samples: int) -> Samples | None:
    """The stream's packets, or None where the tables do not tell: fragments, repeated samples, damage.

    ``first`` is the stream's first packet, at which the two sources are held together.
    """
    if not 0 < len(stream.index_entries) <= max_samples:
        return None
    try:
        tables = _sample_tables(_read_moov(file), stream.id)
        return _join(stream, tables, first)
    except (ValueError, IndexError, KeyError, struct.error, OverflowError):
        return None


def _join(stream: VideoStream, tables: dict[bytes, memoryview], first: "av.Packet[Any]") -> Samples | None:
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
    return Samples(
        pts=dts + shift + (first.pts - int(dts[at[0]]) - int(shift[at[0]])),
        offset=offset,
        size_bytes=sizes[sample],
        is_keyframe=np.array([entry.is_keyframe for entry in entries], dtype=np.bool_),
        is_shown=np.array([not entry.is_discard for entry in entries], dtype=np.bool_),
    )


def _read_moov(file: BinaryIO) -> memoryview:
    """The body of the box that holds all tables."""
    at = 0
    while len(head := _read_at(file, at, 16)) >= 8:  # noqa: PLR2004 - size and kind of a box
        size, kind = struct.unpack_from(">I4s", head)
        header = 8
        if size == 1:
            (size,), header = struct.unpack_from(">Q", head, 8), 16
        if kind == b"moov":
            body = memoryview(_read_at(file, at + header, min(size - header, _MAX_MOOV_BYTES)))
            if len(body) != size - header:
                break
            return body
        if size < header:
            break
        at += size
    raise ValueError(at)


def _read_at(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    while len(data) >= 8:  # noqa: PLR2004 - size and kind
        size, kind = struct.unpack_from(">I4s", data)
        header = 8
        if size == 1:
            (size,), header = struct.unpack_from(">Q", data, 8), 16
        size = size or len(data)
        if not header <= size <= len(data):
            raise ValueError(size)
        yield kind, data[header:size]
        data = data[size:]


def _sample_tables(moov: memoryview, track_id: int) -> dict[bytes, memoryview]:
    """The boxes of 'stbl' of one track; raises KeyError where the movie has fragments or no such track."""
    boxes = list(_boxes(moov))
    if any(kind == b"mvex" for kind, _ in boxes):
        raise KeyError(track_id)
    for trak in (dict(_boxes(body)) for kind, body in boxes if kind == b"trak"):
        header = trak[b"tkhd"]
        if struct.unpack_from(">I", header, 20 if header[0] else 12)[0] == track_id:
            return dict(_boxes(dict(_boxes(dict(_boxes(trak[b"mdia"]))[b"minf"]))[b"stbl"]))
    raise KeyError(track_id)


def _numbers(box: memoryview, kind: str, *, at: int, count: int, columns: int = 1) -> Numbers:
    """``count`` rows of big-endian numbers."""
    return np.frombuffer(box, dtype=kind, offset=at, count=count * columns).astype(np.int64).reshape(count, columns)


def _sample_sizes(box: memoryview, min_samples: int) -> Numbers:
    each, count = struct.unpack_from(">II", box, 4)
    if not each:
        return _numbers(box, ">u4", at=12, count=count)[:, 0]
    if count > 2 * min_samples:  # so that a number in a header is not gigabytes
        raise ValueError(count)
    return np.full(count, each, dtype=np.int64)


def _sample_offsets(tables: dict[bytes, memoryview], sizes: Numbers) -> Numbers:
    """Where each sample begins: chunk by chunk, one sample behind the other."""
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
    offsets: Numbers = np.repeat(chunks - before[starts], stops - starts) + before[:-1]
    return offsets


def _composition_offsets(box: memoryview | None, num_samples: int) -> Numbers:
    """How long after its decoding time each sample is shown."""
    offsets = np.zeros(num_samples, dtype=np.int64)
    if box is None:
        return offsets
    counts, values = _numbers(box, ">i4", at=8, count=struct.unpack_from(">I", box, 4)[0], columns=2).T
    if (counts < 0).any() or counts.sum() > num_samples:
        raise ValueError(counts)
    told = np.repeat(values, counts)
    offsets[: len(told)] = told
    return offsets
