"""Which videos a request may be answered with: filters and exclusions as bitmaps that faiss takes as they are."""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raypipe.search.conditions import Bitmap, Condition, bitmap_of, mask_of, parse
from raypipe.search.query import Filters

if TYPE_CHECKING:
    from raypipe.search.items import Items

CACHE_BYTES = 268_435_456
_FEW = 16  # so many videos to an eligible one, or more: most bytes of a bitmap hold none


@dataclass(frozen=True)
class Eligible:
    """A bit for each of ``size`` videos, the lowest bit of a byte first, and how many are set."""

    bitmap: Bitmap  # [ceil(size / 8)], not writable; bits past the size are 0
    count: int
    size: int

    def positions(self) -> npt.NDArray[np.int64]:
        """The eligible positions, ascending."""
        if self.count * _FEW < self.size:  # bytes that hold none are passed over whole
            held = np.flatnonzero(self.bitmap != 0)
            bits = np.flatnonzero(mask_of(self.bitmap[held], 8 * len(held)))
            positions: npt.NDArray[np.int64] = held[bits >> 3] * 8 + bits % 8
            return positions
        return np.flatnonzero(mask_of(self.bitmap, self.size))

    def contains(self, positions: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
        """Whether each position is eligible; one that does not exist, such as the -1 of faiss, is not."""
        held: npt.NDArray[np.bool_] = (positions >= 0) & (positions < self.size)
        there = positions[held].astype(np.int64)
        held[held] = (self.bitmap[there >> 3] >> (there & 7).astype(np.uint8)) & 1
        return held


class FilterMasks:
    """The masks of the filters asked for lately, at most ``cache_size`` and 256 MiB of them; any thread may ask."""

    def __init__(self, items: "Items", *, cache_size: int = 256) -> None:
        self._items = items
        self._capacity = max(1, min(cache_size, CACHE_BYTES // max(1, len(items) // 8)))
        self._cache: OrderedDict[tuple[Condition, ...], Eligible] = OrderedDict()
        self._lock = threading.Lock()

    def eligible(self, filters: Filters, *, exclude: Iterable[int] = ()) -> Eligible | None:
        """Videos that pass every filter, but those at the excluded positions; None where that is every video.

        Raises:
            QueryError: a filter names no column, or compares it with what it does not hold.
        """
        excluded = np.unique(np.asarray(exclude if isinstance(exclude, np.ndarray) else list(exclude), np.int64))
        if not filters and not len(excluded):
            return None
        found = self._cached(parse(self._items, filters))
        return _without(found, excluded) if len(excluded) else found

    def _cached(self, conditions: tuple[Condition, ...]) -> Eligible:
        with self._lock:
            if (found := self._cache.get(conditions)) is not None:
                self._cache.move_to_end(conditions)
                return found
        if len(conditions) > 1:  # each alone is likely to be asked for again, beside others
            bitmap = np.bitwise_and.reduce([self._cached((condition,)).bitmap for condition in conditions])
        else:
            bitmap = bitmap_of(self._items, conditions)
        found = _eligible(bitmap, int(np.bitwise_count(bitmap).sum(dtype=np.int64)), len(self._items))
        with self._lock:
            self._cache[conditions] = found
            while len(self._cache) > self._capacity:
                self._cache.popitem(last=False)
        return found


def _without(eligible: Eligible, excluded: npt.NDArray[np.int64]) -> Eligible:
    gone = excluded[eligible.contains(excluded)]
    bitmap = eligible.bitmap.copy()
    np.bitwise_and.at(bitmap, gone >> 3, ~(np.uint8(1) << (gone & 7).astype(np.uint8)))
    return _eligible(bitmap, eligible.count - len(gone), eligible.size)


def _eligible(bitmap: Bitmap, count: int, size: int) -> Eligible:
    bitmap.flags.writeable = False  # it may be in the cache, and in another thread's search
    return Eligible(bitmap, count, size)
