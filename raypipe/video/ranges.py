"""A file of which a part is there, whose reader asks for the rest as it needs it. Runs in the child process only."""

import io
import os
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from raypipe.video.protocol import Ranges

BLOCK_BYTES = 65_536
_MIN_WINDOW_BLOCKS, _MAX_WINDOW_BLOCKS = 4, 64  # of reading ahead
_MAX_ASKS = 64
_MAX_RANGES = 256
_NEAR_BLOCKS = 8  # what lies between two ranges costs less than a request of its own
_WHOLE_FRACTION = 0.5
Blocks = npt.NDArray[np.int64]


class RangedFile(io.RawIOBase):
    """Reads a sparse file; ``ask`` brings the byte ranges ``[start, stop)`` it is given, or does not return.

    Whoever reads on gets more with each request; whoever says what will be read gets just that. One that asks too
    often, or for most of the file, gets the whole file.
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

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Where the next read begins, anywhere in the file or behind it."""
        start_of = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        self._position = max(0, start_of[whence] + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - typeshed's WriteableBuffer exists for type checkers only
        """Read what is there, after it was asked for."""
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        self._bring(self._position // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
        count = os.preadv(self._file.fileno(), [memoryview(buffer)[: stop - self._position]], self._position)
        self._position += count
        return count

    def readall(self) -> bytes:
        """Read the rest, asked for at once."""
        self.expect([(self._position, self._size)])
        return super().readall()

    def expect(self, ranges: Ranges) -> None:
        """Ask at once for all byte ranges that will be read, each with the block that a reader takes too much."""
        wanted = self._is_there.copy()
        for start, stop in ranges:
            wanted[start // BLOCK_BYTES : -(-stop // BLOCK_BYTES) + 1] = True
        self._request(np.flatnonzero(wanted & ~self._is_there))

    def _bring(self, start: int, stop: int) -> None:
        """See that the blocks are there; what is read on and on is read ahead."""
        missing = np.flatnonzero(~self._is_there[start:stop])
        if not len(missing):
            return
        first = start + int(missing[0])
        self._window = min(2 * self._window, _MAX_WINDOW_BLOCKS) if first == self._next_missing else _MIN_WINDOW_BLOCKS
        self._next_missing = max(stop, first + self._window)
        self._request(first + np.flatnonzero(~self._is_there[first : self._next_missing]))

    def _request(self, blocks: Blocks) -> None:
        """Ask for these blocks, ascending, near ones in one range."""
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
    """Ascending numbers as ranges ``[start, stop)``; a small gap is taken along."""
    cuts = np.flatnonzero(np.diff(blocks) > _NEAR_BLOCKS)
    starts, stops = blocks[np.append(0, cuts + 1)], blocks[np.append(cuts, len(blocks) - 1)] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))
