"""Find the vectors nearest to a query, among all videos or only the eligible ones.

faiss finds candidates, and exact scores rank them. Each query of a batch is searched separately and in one thread, so a
query returns the same results alone and in a batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import faiss
import numpy as np
import numpy.typing as npt

from raypipe.config import IndexSettings
from raypipe.errors import IndexVersionError
from raypipe.search.filters import Eligible
from raypipe.search.vectors import ROUNDING, Floats, Positions, Ranked, Vectors, best, dots, neighbors, widen
from raypipe.text import one_line

RANK = 10  # recall@10
TARGET_RECALL = 0.98
NUM_QUERIES = 256
_LONGEST_HISTORY = 5
_SOME = 0.5  # at a lower recall, a small gain does not mean that more lists are useless
_NO_GAIN = 0.005  # if doubling the lists gains less recall, quantisation causes the remaining misses
IndexKind: TypeAlias = Literal["flat", "ivf_sq8", "compact"]
FaissIndex: TypeAlias = Any
_faiss: Any = faiss  # its types describe the C++ functions, not the Python wrappers

SCANNED = 5_000  # up to this many eligible vectors are compared one by one, which is faster than faiss
_CODES_PER_VECTOR = 16  # codes that faiss scans in the time of one exact comparison
# Candidates to request from faiss: the first number times top_k, plus the second.
_POOL: dict[IndexKind, tuple[int, int]] = {"flat": (1, 8), "ivf_sq8": (1, 30), "compact": (10, 400)}
_NEARLY_ALL = 0.9  # a filter that keeps more than this fraction of the vectors is treated as no filter
_CHANGE = 0.05  # stop when scanning more lists replaces at most this fraction of the results
_NOTHING: Ranked = np.empty(0, np.float32), np.empty(0, np.int64)

_FILL_ROWS = 65_536  # rows widened to float32 at a time
_POINTS_PER_LIST = 64  # k-means training vectors per list: more take longer and do not improve the lists
_FEWEST = 64  # the minimum number of vectors for learning lists and codes
_PARTS = (4, 3, 2, 1)  # "compact" encodes this many numbers in 4 bits: the first of these that divides the dimension


@dataclass(frozen=True)
class Trials:
    """Sample queries ``[Q, d]`` to measure recall with.

    ``lowest`` ``[Q]`` is the lowest score among the true ``top_k`` neighbors of each query.
    """

    queries: Floats
    lowest: Floats
    top_k: int = RANK

    def recall(self, scores: Floats) -> float:
        """Return the recall of a search that found vectors with these scores ``[Q, top_k]``.

        A vector counts as a true neighbor if its score reaches ``lowest``. So any of several equal vectors counts.
        """
        return float(np.mean(scores >= self.lowest[:, None] - ROUNDING))


def make_trials(vectors: Vectors, *, seed: int) -> tuple[Trials, Trials]:
    """Return two separate sets of trials: the first to choose parameters with, the second to measure recall with."""
    queries = trial_queries(vectors, count=2 * NUM_QUERIES, seed=seed)
    top_k = min(RANK, len(vectors))
    last = neighbors(vectors, queries, top_k=top_k)[:, -1]
    lowest: Floats = np.einsum("ij,ij->i", widen(vectors[last]), queries)
    first, second = slice(0, NUM_QUERIES), slice(NUM_QUERIES, None)
    return Trials(queries[first], lowest[first], top_k), Trials(queries[second], lowest[second], top_k)


def trial_queries(vectors: Vectors, *, count: int, seed: int) -> Floats:
    """Return realistic queries ``[count, d]``: half are vectors of the index, half are means of two to five vectors."""
    chance = np.random.default_rng(seed)
    chosen = widen(vectors[chance.integers(len(vectors), size=count * _LONGEST_HISTORY)])
    histories = chosen.reshape(count, _LONGEST_HISTORY, -1)
    lengths = chance.integers(2, _LONGEST_HISTORY + 1, size=count)
    lengths[: count // 2] = 1
    histories[np.arange(_LONGEST_HISTORY) >= lengths[:, None]] = 0
    means = chance.permutation(histories.sum(axis=1))
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    return np.asarray(means / np.where(norms > 0, norms, 1), np.float32)


def least_nprobe(recall: Callable[[int], float], *, nlist: int) -> int:
    """Return approximately the smallest number of lists to scan for a recall of 0.98.

    ``recall`` returns the recall for a number of lists. If it stops growing below 0.98, return approximately the
    smallest number of lists that reaches the final recall.
    """
    low, high, reached = 0, 1, recall(1)
    while reached < TARGET_RECALL and high < nlist:
        twice = min(2 * high, nlist)
        before, reached = reached, recall(twice)
        if before > _SOME and reached - before < _NO_GAIN:
            reached = before
            break
        low, high = high, twice
    enough = min(TARGET_RECALL, reached)
    while high - low > max(1, high // 16):
        middle = (low + high) // 2
        low, high = (low, middle) if recall(middle) >= enough else (middle, high)
    return high


class Ann:
    """Approximate nearest neighbors by dot product. Searches are thread-safe."""

    def __init__(self, index: FaissIndex, vectors: Vectors, *, nprobe: int, recall_at_10: float = math.nan) -> None:
        self._index = index
        self._vectors = vectors.view(np.ndarray)  # indexing a memmap is slower than indexing an array
        self.kind = _kind_of(index)
        self.nlist = 1 if self.kind == "flat" else int(index.nlist)
        self.nprobe = min(nprobe, self.nlist)
        self.recall_at_10 = recall_at_10

    @classmethod
    def build(cls, vectors: Vectors, *, settings: IndexSettings, base: Self | None = None) -> Self:
        """Index vectors ``[N, d]`` of unit length.

        If ``base`` has the same kind and dimension, its trained lists and codes are reused. ``nprobe``, the number of
        lists to scan per query, becomes approximately the smallest number that finds 98 % of the true neighbors of
        sample queries.
        """
        kind = kind_for(len(vectors), settings)
        if base is not None and (base.kind, base.dim) == (kind, vectors.shape[1]):
            index = _faiss.clone_index(base._index)  # noqa: SLF001 - its own class
            index.reset()
        else:
            index = _train(vectors, kind=kind, seed=settings.seed)
        for start in range(0, len(vectors), _FILL_ROWS):
            index.add(widen(vectors[start : start + _FILL_ROWS]))
        ann = cls(index, vectors, nprobe=1)
        ann._calibrate(settings.seed)
        return ann

    def _calibrate(self, seed: int) -> None:
        choose, measure = make_trials(self._vectors, seed=seed)

        def recall(nprobe: int, trials: Trials = choose) -> float:
            self.nprobe = nprobe
            return trials.recall(self.search(trials.queries, top_k=trials.top_k)[0])

        nprobe = 1 if self.kind == "flat" else least_nprobe(recall, nlist=self.nlist)
        self.recall_at_10 = recall(nprobe, measure)

    @classmethod
    def open(cls, path: Path, vectors: Vectors, *, nprobe: int, recall_at_10: float = math.nan) -> Self:
        """Read a file that ``save`` wrote.

        Raises:
            IndexVersionError: the file is not a faiss index, or does not match the vectors.
        """
        try:
            index = _faiss.read_index(str(path))
        except RuntimeError as error:
            msg = f"Cannot read the index {path}: {one_line(error)}"
            raise IndexVersionError(msg, key=str(path)) from None
        if (index.ntotal, index.d) != vectors.shape:
            found = index.ntotal, index.d
            msg = f"The index {path} has vectors {found}, but the version has vectors {vectors.shape}."
            raise IndexVersionError(msg, key=str(path), value=found, expected=vectors.shape)
        return cls(index, vectors, nprobe=nprobe, recall_at_10=recall_at_10)

    def save(self, path: Path) -> None:
        """Write the faiss index in faiss's own format. The vectors are stored in a separate file."""
        _faiss.write_index(self._index, str(path))

    @property
    def dim(self) -> int:
        """The length of an indexed vector, d."""
        return int(self._vectors.shape[1])

    def search(self, queries: npt.NDArray[np.floating], *, top_k: int, eligible: Eligible | None = None) -> Ranked:
        """Return the scores and positions ``[Q, top_k]`` of the vectors nearest to each query ``[Q, d]``, best first.

        If fewer than ``top_k`` vectors are eligible, scores and positions are padded with -1. Equal scores are sorted
        by position.
        """
        scores = np.full((len(queries), top_k), -1, np.float32)
        positions = np.full((len(queries), top_k), -1, np.int64)
        for row, query in enumerate(queries):
            found, at = self.nearest(query, top_k=top_k, eligible=eligible)
            scores[row, : len(found)], positions[row, : len(at)] = found, at
        return scores, positions

    def nearest(self, query: npt.NDArray[np.floating], *, top_k: int, eligible: Eligible | None = None) -> Ranked:
        """Return the scores and positions of the ``top_k`` vectors nearest to one query ``[d]``, best first.

        If fewer vectors are eligible, the result is shorter.

        Raises:
            ValueError: the query and the vectors differ in length.
        """
        query = np.ascontiguousarray(query, np.float32)
        if query.shape != (self.dim,):  # faiss would read past the end of a shorter query
            msg = f"The query has shape {query.shape}, but the vectors have {self.dim} numbers."
            raise ValueError(msg)
        count = len(self._vectors) if eligible is None else eligible.count
        if not (top_k := min(top_k, count)):
            return _NOTHING
        if count <= max(SCANNED, 4 * top_k, self._codes_to_pass(top_k, count) // _CODES_PER_VECTOR):
            positions = np.arange(count) if eligible is None else eligible.positions()
            return best(dots(self._vectors, positions, query), positions, top_k)
        selector = None if eligible is None else _faiss.IDSelectorBitmap(eligible.bitmap)  # reads the bitmap in place
        if self.kind == "flat":
            return self._extend(_NOTHING, query, top_k, partial(self._scan_all, query, selector=selector))[0]
        return self._by_lists(query, top_k, selector, count)

    def nearest_lists(self, vectors: Vectors, count: int) -> Positions:
        """Return the numbers ``[N, count]`` of the ``count`` lists nearest to each vector.

        If the index has fewer lists, the result has fewer columns. A flat index has a single list.
        """
        if self.kind == "flat":
            return np.zeros((len(vectors), 1), np.int64)
        lists = np.empty((len(vectors), min(count, self.nlist)), np.int64)
        for start in range(0, len(vectors), _FILL_ROWS):
            some = slice(start, start + _FILL_ROWS)
            lists[some] = self._index.quantizer.search(widen(vectors[some]), lists.shape[1])[1]
        return lists

    def _num_lists(self, top_k: int, count: int) -> float:
        """Estimate how many lists to scan for ``top_k`` results if ``count`` vectors are eligible.

        More results need more lists, and fewer eligible vectors need more lists.
        """
        return min(self.nlist, self.nprobe * math.sqrt(max(1, top_k / RANK) * len(self._vectors) / count))

    def _codes_to_pass(self, top_k: int, count: int) -> int:
        """Estimate how many codes a filtered search would scan.

        Return 0 for a flat index, and if all or nearly all vectors are eligible.
        """
        if self.kind == "flat" or count > _NEARLY_ALL * len(self._vectors):
            return 0
        return int(self._num_lists(top_k, count) * len(self._vectors) / self.nlist)

    def _by_lists(self, query: Floats, top_k: int, selector: FaissIndex | None, count: int) -> Ranked:
        """Scan the lists nearest to the query. With a filter, scan more lists until the results hardly change.

        Eligible videos may be far from the query, and the order of distant lists says little about their contents. So
        the number of lists to scan cannot be computed in advance. The search stops when more lists do not help.
        """
        filtered = count < _NEARLY_ALL * len(self._vectors)
        width = math.ceil(self._num_lists(top_k, count) / (2 if filtered else 1))
        top, start, known = _NOTHING, 0, 0
        while True:
            stop = min(start + width, self.nlist)
            if stop > known:
                known = min(2 * stop if filtered else stop, self.nlist)
                ((closeness,), (lists,)) = self._index.quantizer.search(query[None], known)
            some = slice(start, stop)
            scan = partial(self._scan_lists, query, lists=lists[some], closeness=closeness[some], selector=selector)
            before = top[1]
            top, seen = self._extend(top, query, top_k, scan)
            if stop == self.nlist or (len(top[1]) == top_k and not filtered):
                return top
            if seen >= self._pool(top_k) and len(np.setdiff1d(top[1], before)) <= _CHANGE * top_k:
                return top
            start, width = stop, stop

    def _extend(self, top: Ranked, query: Floats, top_k: int, scan: Callable[..., Positions]) -> tuple[Ranked, int]:
        """Merge the candidates of a scan into ``top``, the best results so far.

        Return the new best results, and the number of candidates. As long as the last candidate is among the best
        results, scan again for more candidates.
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
        """Return how many candidates to request from faiss.

        faiss orders vectors by inexact codes, so more than ``top_k`` candidates are needed.
        """
        times, plus = _POOL[self.kind]
        return times * top_k + plus

    def _scan_lists(
        self, query: Floats, *, lists: Positions, closeness: Floats, count: int, selector: FaissIndex | None
    ) -> Positions:
        """Return the ``count`` or fewer rows of the given lists whose codes are nearest to the query, nearest first."""
        parameters = _faiss.SearchParametersIVF(nprobe=len(lists), sel=selector)
        scores, rows = np.empty(count, np.float32), np.empty(count, np.int64)
        asked, among, near, best_scores, found = map(_faiss.swig_ptr, (query, lists, closeness, scores, rows))
        self._index.search_preassigned_c(1, asked, count, among, near, best_scores, found, False, parameters)  # noqa: FBT003 - C++
        return rows[rows >= 0]

    def _scan_all(self, query: Floats, *, count: int, selector: FaissIndex | None) -> Positions:
        """Return the ``count`` or fewer rows of a flat index whose codes are nearest to the query, nearest first."""
        parameters = _faiss.SearchParameters(sel=selector) if selector is not None else None
        rows: Positions = self._index.search(query[None], count, params=parameters)[1][0]
        return rows[rows >= 0]


def kind_for(num_videos: int, settings: IndexSettings) -> IndexKind:
    """Return the kind of index that suits this many videos."""
    if num_videos < max(settings.flat_below, _FEWEST):
        return "flat"
    return "compact" if settings.compact else "ivf_sq8"


def _kind_of(index: FaissIndex) -> IndexKind:
    if isinstance(index, _faiss.IndexIVFPQFastScan):
        return "compact"
    return "ivf_sq8" if isinstance(index, _faiss.IndexIVF) else "flat"


def _train(vectors: Vectors, *, kind: IndexKind, seed: int) -> FaissIndex:
    """Return a trained, empty index for these vectors."""
    dim = vectors.shape[1]
    if kind == "flat":  # stores float16 like the vectors themselves, so its results are exact
        flat = _faiss.IndexScalarQuantizer(dim, _faiss.ScalarQuantizer.QT_fp16, _faiss.METRIC_INNER_PRODUCT)
        flat.train(np.zeros((1, dim), np.float32))
        return flat
    # About 4 √N lists, but at most N / 4, so that each list has 4 training vectors on average.
    nlist = max(1, min(round(4 * math.sqrt(len(vectors))), len(vectors) // 4))
    lists = _faiss.IndexFlatIP(dim)
    if kind == "compact":
        codes = dim // next(part for part in _PARTS if dim % part == 0)
        index: FaissIndex = _faiss.IndexIVFPQFastScan(lists, dim, nlist, codes, 4, _faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.min_points_per_centroid = 1
    else:  # one value range for all dimensions makes a scan 1.5 times as fast as one range per dimension
        uniform = _faiss.ScalarQuantizer.QT_8bit_uniform
        index = _faiss.IndexIVFScalarQuantizer(lists, dim, nlist, uniform, _faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = seed + 1  # faiss replaces 0 with its own seed
    index.cp.min_points_per_centroid = 1
    index.cp.max_points_per_centroid = _POINTS_PER_LIST
    chosen = np.random.default_rng(seed).permutation(len(vectors))[: _POINTS_PER_LIST * nlist]
    index.train(widen(vectors[np.sort(chosen)]))
    return index
