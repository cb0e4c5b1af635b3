"""The nearest vectors to a query, among all or those that filters leave: faiss finds them, exact scores rank them.

A query is answered alone, in one thread, whatever others it comes with: so a batch gives what each alone would give.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from raypipe.config import IndexSettings
from raypipe.errors import IndexVersionError
from raypipe.search import quantised
from raypipe.search.exact import ROUNDING, Floats, Positions, Vectors, best, dots
from raypipe.search.filters import Eligible
from raypipe.search.quantised import FaissIndex, Kind
from raypipe.search.trials import RANK, least_nprobe, make_trials

SCANNED = 5_000  # so few eligible vectors are compared one by one, sooner than faiss has found the best of them
_CODES_PER_VECTOR = 16  # that faiss passes over, most of them not eligible, in the time of one such comparison
_POOL: dict[Kind, tuple[int, int]] = {"flat": (1, 8), "ivf_sq8": (1, 30), "compact": (10, 400)}  # times top_k, plus
_NEARLY_ALL = 0.9  # of the vectors: what so weak a filter leaves is searched as if there were none
_CHANGE = 0.05  # of the results, that more lists may still exchange when they are enough

Ranked: TypeAlias = tuple[Floats, Positions]  # scores and positions, the best first
_NOTHING: Ranked = np.empty(0, np.float32), np.empty(0, np.int64)


class Ann:
    """Approximate nearest neighbours by the dot product; any thread may search."""

    def __init__(
        self,
        index: FaissIndex,
        vectors: Vectors,
        *,
        nprobe: int,
        trained_on: int | None = None,
        recall_at_10: float = math.nan,
    ) -> None:
        self._index = index
        self._vectors = vectors.view(np.ndarray)  # rows of a memmap are slower to take
        self.kind: Kind = quantised.kind_of(index)
        self.nlist = 1 if self.kind == "flat" else int(index.nlist)
        self.nprobe = min(nprobe, self.nlist)
        self.trained_on = len(vectors) if trained_on is None else trained_on
        self.recall_at_10 = recall_at_10

    @staticmethod
    def kind_for(num_videos: int, *, settings: IndexSettings) -> Kind:
        """The kind that ``build`` makes of so many vectors."""
        return quantised.kind_for(num_videos, settings)

    @classmethod
    def build(cls, vectors: Vectors, *, settings: IndexSettings, base: "Ann | None" = None) -> "Ann":
        """Index vectors ``[N, d]`` of unit length; with ``base`` as that has learned to, where it is of the same kind.

        ``nprobe`` becomes the least that finds 98 % of the true neighbours of a sample of queries.
        """
        kind = quantised.kind_for(len(vectors), settings)
        if base is not None and (base.kind, base.dim) == (kind, vectors.shape[1]):
            index, trained_on = quantised.emptied(base._index), base.trained_on  # noqa: SLF001 - of its own class
        else:
            index, trained_on = quantised.new_index(vectors, kind=kind, seed=settings.seed), len(vectors)
        quantised.fill(index, vectors)
        ann = cls(index, vectors, nprobe=1, trained_on=trained_on)
        ann._calibrate(settings.seed)
        return ann

    @classmethod
    def open(
        cls,
        path: Path,
        vectors: Vectors,
        *,
        nprobe: int,
        trained_on: int | None = None,
        recall_at_10: float = math.nan,
    ) -> "Ann":
        """Read what ``save`` wrote.

        Raises:
            IndexVersionError: it is no index of faiss, or not of these vectors.
        """
        index = quantised.read(path)
        if (index.ntotal, index.d) != vectors.shape:
            found = index.ntotal, index.d
            msg = f"The index {path} holds {found[0]} vectors of {found[1]} numbers; its vectors are {vectors.shape}."
            raise IndexVersionError(msg, key=str(path), value=found, expected=vectors.shape)
        return cls(index, vectors, nprobe=nprobe, trained_on=trained_on, recall_at_10=recall_at_10)

    def save(self, path: Path) -> None:
        """Write what faiss searches; the vectors are a file of their own."""
        quantised.write(self._index, path)

    @property
    def dim(self) -> int:
        """The number of a vector's numbers, d."""
        return int(self._vectors.shape[1])

    @property
    def bytes_per_vector(self) -> float:
        """What a search holds in memory for each vector; the vectors themselves are mapped from disk."""
        return quantised.size_bytes(self._index) / max(1, len(self._vectors))

    def search(self, queries: npt.NDArray[np.floating], *, top_k: int, eligible: Eligible | None = None) -> Ranked:
        """The scores and positions ``[Q, top_k]`` of the nearest to each of ``[Q, d]``, the nearest first.

        Where fewer are eligible, -1 fills both. Of equal scores the lowest position is first.
        """
        scores = np.full((len(queries), top_k), -1, np.float32)
        positions = np.full((len(queries), top_k), -1, np.int64)
        for row, query in enumerate(queries):
            found, at = self.nearest(query, top_k=top_k, eligible=eligible)
            scores[row, : len(found)], positions[row, : len(at)] = found, at
        return scores, positions

    def nearest(self, query: npt.NDArray[np.floating], *, top_k: int, eligible: Eligible | None = None) -> Ranked:
        """The same for one query ``[d]``: at most ``top_k``, fewer where fewer are eligible.

        Raises:
            ValueError: it has not as many numbers as a vector.
        """
        query = np.ascontiguousarray(query, np.float32)
        if query.shape != (self.dim,):  # faiss would read beyond its end
            msg = f"The query is {query.shape}; the vectors have {self.dim} numbers."
            raise ValueError(msg)
        count = len(self._vectors) if eligible is None else eligible.count
        if not (top_k := min(top_k, count)):
            return _NOTHING
        if count <= max(SCANNED, 4 * top_k, self._codes_to_pass(top_k, count) // _CODES_PER_VECTOR):
            positions = np.arange(count) if eligible is None else eligible.positions()
            return best(dots(self._vectors, positions, query), positions, top_k)
        selector = None if eligible is None else quantised.selector(eligible.bitmap)
        if self.kind == "flat":
            scan = partial(quantised.scan_all, self._index, query, selector=selector)
            return self._extend(_NOTHING, query, top_k, scan)[0]
        return self._by_lists(query, top_k, selector, count)

    def nearest_lists(self, vectors: Vectors, count: int) -> Positions:
        """The numbers ``[N, ≤ count]`` of the lists that are nearest to each vector; a flat index is one list."""
        if self.kind == "flat":
            return np.zeros((len(vectors), 1), np.int64)
        return quantised.nearest_lists_of_all(self._index, vectors, min(count, self.nlist))

    def _num_lists(self, top_k: int, count: int) -> float:
        """How many lists are about enough: more for more results, and where a filter leaves less of each."""
        return min(self.nlist, self.nprobe * math.sqrt(max(1, top_k / RANK) * len(self._vectors) / count))

    def _codes_to_pass(self, top_k: int, count: int) -> int:
        """How many codes the lists hold that a filtered search goes through; none where nothing is filtered."""
        if self.kind == "flat" or count > _NEARLY_ALL * len(self._vectors):
            return 0
        return int(self._num_lists(top_k, count) * len(self._vectors) / self.nlist)

    def _by_lists(self, query: Floats, top_k: int, selector: FaissIndex | None, count: int) -> Ranked:
        """Scan the nearest lists; where a filter leaves few of each, more of them, until more change nothing.

        What a filter leaves may be far from the query, where the order of the lists says little: so how many lists are
        enough is seen, not computed.
        """
        filtered = count < _NEARLY_ALL * len(self._vectors)
        width = math.ceil(self._num_lists(top_k, count) / (2 if filtered else 1))
        top, start, known = _NOTHING, 0, 0
        while True:
            stop = min(start + width, self.nlist)
            if stop > known:
                known = min(2 * stop if filtered else stop, self.nlist)
                closeness, lists = quantised.nearest_lists(self._index, query, known)
            scan = partial(
                quantised.scan_lists,
                self._index,
                query,
                lists=lists[start:stop],
                closeness=closeness[start:stop],
                selector=selector,
            )
            before = top[1]
            top, seen = self._extend(top, query, top_k, scan)
            if stop == self.nlist or (len(top[1]) == top_k and not filtered):
                return top
            if seen >= self._pool(top_k) and len(np.setdiff1d(top[1], before)) <= _CHANGE * top_k:
                return top
            start, width = stop, stop

    def _extend(self, top: Ranked, query: Floats, top_k: int, scan: Callable[..., Positions]) -> tuple[Ranked, int]:
        """Add what faiss finds to the best so far, and say how many that was.

        It is asked for more while the last it found belongs among the best.
        """
        count = self._pool(top_k)
        while True:
            found = scan(count=count)
            scores = dots(self._vectors, found, query)
            better = best(np.concatenate([top[0], scores]), np.concatenate([top[1], found]), top_k)
            if len(found) < count or scores[-1] < better[0][-1] - ROUNDING:
                return better, len(found)
            count *= 4

    def _pool(self, top_k: int) -> int:
        """How many to take from faiss, whose order is that of inexact codes."""
        times, plus = _POOL[self.kind]
        return times * top_k + plus

    def _calibrate(self, seed: int) -> None:
        """Choose ``nprobe`` and measure the recall."""
        choose, measure = make_trials(self._vectors, seed=seed)

        def search(queries: Floats, top_k: int) -> Floats:
            return self.search(queries, top_k=top_k)[0]

        def recall(nprobe: int) -> float:
            self.nprobe = nprobe
            return choose.recall(search)

        if self.kind != "flat":
            self.nprobe = least_nprobe(recall, nlist=self.nlist)
        self.recall_at_10 = measure.recall(search)
