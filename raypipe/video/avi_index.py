"""Which frame number each packet of a damaged AVI has, from the index at the end of the file.

FFmpeg counts the packets that it finds, so after a loss it numbers them too low. Runs in the child process only.
"""

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
_CHUNK_HEADER_BYTES = 8
_MAX_CHUNKS = 1000  # at the top level of the file
_MAX_INDEX_BYTES = 256 * 1024**2
_ENTRY = np.dtype([("kind", "S4"), ("flags", "<u4"), ("offset", "<u4"), ("size", "<u4")])


@dataclass(frozen=True)
class FrameNumbers:
    """The number of each packet, P of them, and the packets before which others are lost."""

    numbers: Numbers  # [P]
    after_losses: list[int]


def find_lost_frames(file: BinaryIO, stream_index: int, places: Numbers) -> FrameNumbers | None:
    """Compare packets, which begin at ``places``, to the index of their stream.

    None if nothing is lost, or if the index does not list every packet: then it is damaged itself.
    """
    at = file.tell()
    try:
        movi, entries = _read_index(file)
    except (ValueError, struct.error):
        return None
    finally:
        file.seek(at)  # where FFmpeg takes it to be
    kinds = (f"{stream_index:02d}dc".encode(), f"{stream_index:02d}db".encode())
    entries = entries[np.isin(entries["kind"], kinds)]
    is_filled = entries["size"] > 0
    if is_filled.sum() <= len(places):
        return None
    for base in (movi, 0):  # offsets count from there, or from the start of the file
        begins = entries["offset"].astype(np.int64) + base + _CHUNK_HEADER_BYTES
        numbers = np.searchsorted(begins, places)
        if (np.diff(begins) > 0).all() and numbers.max() < len(begins) and (begins[numbers] == places).all():
            filled_before = np.cumsum(is_filled)[numbers]
            return FrameNumbers(numbers.astype(np.int64), (np.flatnonzero(np.diff(filled_before) > 1) + 1).tolist())
    return None


def _read_index(file: BinaryIO) -> tuple[int, "np.ndarray[tuple[int], np.dtype[np.void]]"]:
    """Return where the list of packets begins, and the entries of the index that follows it."""
    size = file.seek(0, os.SEEK_END)
    at, movi = 12, -1
    for _ in range(_MAX_CHUNKS):
        file.seek(at)
        kind, length = struct.unpack("<4sI", file.read(_CHUNK_HEADER_BYTES))
        if kind == b"LIST" and file.read(4) == b"movi":
            movi = at + _CHUNK_HEADER_BYTES
        if kind == b"idx1" and movi > 0 and length <= min(_MAX_INDEX_BYTES, size - at - _CHUNK_HEADER_BYTES):
            file.seek(at + _CHUNK_HEADER_BYTES)
            return movi, np.frombuffer(file.read(length // _ENTRY.itemsize * _ENTRY.itemsize), dtype=_ENTRY)
        at += _CHUNK_HEADER_BYTES + length + length % 2
    raise ValueError(at)
