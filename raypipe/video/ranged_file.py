"""A partially fetched file that requests missing parts as they are read. Runs in the child process only."""

import io
import os
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from raypipe.video.container import SeekableReader
from raypipe.video.decode_request import Ranges

BLOCK_BYTES = 65_536
_MIN_WINDOW_BLOCKS, _MAX_WINDOW_BLOCKS = 4, 64  # limits of the read-ahead
_MAX_ASKS = 64
_MAX_RANGES = 256
_NEAR_BLOCKS = 8  # fetching a gap this small costs less than another request
_WHOLE_FRACTION = 0.5
Blocks = npt.NDArray[np.int64]


class RangedFile(SeekableReader):
    """Reads a file of which only some parts are present, and fetches missing parts when they are read.

    ``there`` holds the byte ranges that are present. ``ask`` fetches byte ranges ``[start, stop)``. If it cannot, it
    does not return.

    In sequential reads, each request fetches more than the previous one. ``expect`` fetches known ranges in one
    request. After too many requests, or if one request covers most of the file, the whole file is fetched.
    """

    def __init__(self, file: BinaryIO, *, there: Ranges, ask: Callable[[Ranges], None]) -> None:
        self._file = file
        self._ask = ask
        self._size = os.fstat(file.fileno()).st_size
        self._position = 0
        self._is_there = np.zeros(-(-self._size // BLOCK_BYTES), dtype=np.bool_)
        self._window = _MIN_WINDOW_BLOCKS
        self._next_missing = -1
        self._asks = 0
        for start, stop in there:
            self._is_there[-(-start // BLOCK_BYTES) : stop // BLOCK_BYTES if stop < self._size else None] = True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position of the next read, and return it. A position beyond the end is allowed."""
        start_of = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        self._position = max(0, start_of[whence] + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - typeshed's WriteableBuffer exists for type checkers only
        """Fetch the missing blocks, then read into a buffer. Return the number of bytes read."""
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        self._fetch(self._position // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
        count = os.preadv(self._file.fileno(), [memoryview(buffer)[: stop - self._position]], self._position)
        self._position += count
        return count

    def readall(self) -> bytes:
        """Fetch the rest of the file in one request, and read it."""
        self.expect([(self._position, self._size)])
        return super().readall()

    def expect(self, ranges: Ranges) -> None:
        """Fetch all given byte ranges in one request.

        One more block is fetched after each range, because readers read slightly more than the range.
        """
        wanted = self._is_there.copy()
        for start, stop in ranges:
            wanted[start // BLOCK_BYTES : -(-stop // BLOCK_BYTES) + 1] = True
        self._request(np.flatnonzero(wanted & ~self._is_there))

    def _fetch(self, start: int, stop: int) -> None:
        """Fetch the missing blocks from ``start`` to ``stop - 1``, and read ahead.

        The read-ahead grows while the reads are sequential.
        """
        missing = np.flatnonzero(~self._is_there[start:stop])
        if not len(missing):
            return
        first = start + int(missing[0])
        self._window = min(2 * self._window, _MAX_WINDOW_BLOCKS) if first == self._next_missing else _MIN_WINDOW_BLOCKS
        self._next_missing = max(stop, first + self._window)
        self._request(first + np.flatnonzero(~self._is_there[first : self._next_missing]))

    def _request(self, blocks: Blocks) -> None:
        """Fetch the blocks with these numbers, in ascending order. Blocks close together are fetched as one range."""
        if not len(blocks):
            return
        self._asks += 1
        ranges = _runs(blocks)
        asked = sum(stop - start for start, stop in ranges)
        if self._asks > _MAX_ASKS or len(ranges) > _MAX_RANGES or asked > _WHOLE_FRACTION * len(self._is_there):
            ranges = _runs(np.flatnonzero(~self._is_there))
            ranges = ranges if len(ranges) <= _MAX_RANGES else [(0, len(self._is_there))]
        self._ask([(start * BLOCK_BYTES, min(stop * BLOCK_BYTES, self._size)) for start, stop in ranges])
        for start, stop in ranges:
            self._is_there[start:stop] = True


def _runs(blocks: Blocks) -> list[tuple[int, int]]:
    """Group ascending block numbers into ranges ``[start, stop)``. Small gaps between blocks are filled."""
    cuts = np.flatnonzero(np.diff(blocks) > _NEAR_BLOCKS)
    starts, stops = blocks[np.append(0, cuts + 1)], blocks[np.append(cuts, len(blocks) - 1)] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))
