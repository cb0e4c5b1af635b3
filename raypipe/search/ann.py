"""Find the vectors nearest to a query, among all videos or only the eligible ones.

faiss finds candidates, and exact scores rank them. Each query of a batch is searched separately and in one thread, so a
query returns the same results alone and in a batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias
from weakref import WeakKeyDictionary

import faiss
import numpy as np
import numpy.typing as npt

from raypipe.config import IndexSettings
from raypipe.errors import IndexVersionError
from raypipe.search.filters import Eligible, eligible_positions
from raypipe.search.spread import ListNumbers, Reach, Spread
from raypipe.search.trials import RANK, Trials, trial_queries
from raypipe.search.vectors import ROUNDING, Floats, Positions, Ranked, Vectors, best, dots, widen
from raypipe.text import one_line

NUM_QUERIES = 512
_NPROBE = 16  # lists that a query scans before it knows which others it has to scan
IndexKind: TypeAlias = Literal["flat", "ivf_sq8", "compact"]
FaissIndex: TypeAlias = Any
_faiss: Any = faiss  # its types describe the C++ functions, not the Python wrappers

SCANNED = 5_000  # up to this many eligible vectors are compared one by one, which is faster than faiss
# Candidates to request from faiss: the first number times top_k, plus the second.
_POOL: dict[IndexKind, tuple[int, int]] = {"flat": (1, 8), "ivf_sq8": (1, 30), "compact": (10, 400)}
_NEARLY_ALL = 0.9  # a filter that keeps more than this fraction of the vectors is treated as no filter
_MORE = 4  # every scan of a query may take this many times the lists of the scan before
_LOWEST = np.finfo(np.float32).min
_NOTHING: Ranked = np.empty(0, np.float32), np.empty(0, np.int64)

_FILL_ROWS = 65_536  # rows widened to float32 at a time
_POINTS_PER_LIST = 64  # k-means training vectors per list: more take longer and do not improve the lists
_FEWEST = 64  # the minimum number of vectors for learning lists and codes
_PARTS = (4, 3, 2, 1)  # "compact" encodes this many numbers in 4 bits: the first of these that divides the dimension


@dataclass(frozen=True)
class _Search:
    """One query ``[d]``, and which vectors it may find. ``spread`` is None if these are all or nearly all vectors."""

    query: Floats
    top_k: int
    eligible: Eligible | None
    spread: Spread | None


class Ann:
    """Approximate nearest neighbors by dot product. Searches are thread-safe."""

    def __init__(
        self,
        index: FaissIndex,
        vectors: Vectors,
        *,
        nprobe: int,
        reach: Reach | None = None,
        recall_at_10: float = math.nan,
    ) -> None:
        self._index = index
        self._vectors = vectors.view(np.ndarray)  # indexing a memmap is slower than indexing an array
        self.kind = _kind_of(index)
        self.nlist = 1 if self.kind == "flat" else int(index.nlist)
        self.nprobe = min(nprobe, self.nlist)
        self.reach = reach or Reach()
        self.recall_at_10 = recall_at_10
        self._quantizer: FaissIndex = None if self.kind == "flat" else _faiss.downcast_index(index.quantizer)
        self._spreads: WeakKeyDictionary[Eligible, Spread] = WeakKeyDictionary()

    @classmethod
    def build(cls, vectors: Vectors, *, settings: IndexSettings, base: Self | None = None) -> Self:
        """Index vectors ``[N, d]`` of unit length.

        If ``base`` has the same kind and dimension, its trained lists and codes are reused. ``reach`` becomes the
        smallest one that finds the target recall for sample queries.
        """
        kind = kind_for(len(vectors), settings)
        if base is not None and (base.kind, base.dim) == (kind, vectors.shape[1]):
            index = _faiss.clone_index(base._index)  # noqa: SLF001 - its own class
            index.reset()
        else:
            index = _train(vectors, kind=kind, seed=settings.seed)
        for start in range(0, len(vectors), _FILL_ROWS):
            index.add(widen(vectors[start : start + _FILL_ROWS]))
        ann = cls(index, vectors, nprobe=_NPROBE)
        queries = trial_queries(vectors, count=2 * NUM_QUERIES, seed=settings.seed)
        if kind != "flat":
            ann.reach = ann._reach_for(queries[:NUM_QUERIES], settings)
        trials = Trials.of(vectors, queries[NUM_QUERIES:])  # other queries than those that the reach was chosen for
        ann.recall_at_10 = trials.recall(ann.search(trials.queries, top_k=trials.top_k)[0])
        return ann

    def _reach_for(self, queries: Floats, settings: IndexSettings) -> Reach:
        """Return the reach with which searches for ``queries`` find the target recall, with and without a filter.

        The clustered filter keeps a tenth of the lists. Its reach does not count on the lists that are scanned first,
        because how many neighbors are in these lists depends on the filter.
        """
        chance = np.random.default_rng(settings.seed)
        tenth, hundredth = (Eligible.of(chance.random(len(self._vectors)) < share) for share in (0.1, 0.01))
        lists = Eligible.of(np.isin(self._list_of, chance.permutation(self.nlist)[: math.ceil(self.nlist / 10)]))

        def needed(eligible: Eligible | None, *, skip_first: bool = True) -> float:
            if eligible is not None and not eligible.count:
                return 0.0
            reaches = self._needed_reach(Trials.of(self._vectors, queries, eligible), skip_first=skip_first)
            return max(0.0, float(np.quantile(reaches, settings.target_recall)))

        return Reach(needed(None), needed(tenth), needed(hundredth), needed(lists, skip_first=False))

    def _needed_reach(self, trials: Trials, *, skip_first: bool) -> Floats:
        """Return the reach ``[Q, top_k]`` with which a search scans the list of each true neighbor.

        With ``skip_first``, it is 0 for neighbors in the lists that every search scans first.
        """
        spread = self._spread(trials.eligible)
        needed = np.empty(trials.neighbors.shape, np.float32)
        for row, (query, near) in enumerate(zip(trials.queries, trials.neighbors, strict=True)):
            closeness = self._closeness(query, spread)
            of_neighbors = closeness[self._list_of[near]]
            needed[row] = trials.lowest[row] - of_neighbors
            if skip_first:
                last = _nearest(closeness, self._num_lists(trials.top_k, trials.eligible))[-1]
                needed[row, of_neighbors >= closeness[last]] = 0
        return needed

    @classmethod
    def open(
        cls, path: Path, vectors: Vectors, *, nprobe: int, reach: Reach | None = None, recall_at_10: float = math.nan
    ) -> Self:
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
        return cls(index, vectors, nprobe=nprobe, reach=reach, recall_at_10=recall_at_10)

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
        if not (top_k := min(top_k, self._count(eligible))):
            return _NOTHING
        if self.compares_all(top_k, eligible):
            positions = eligible_positions(eligible, len(self._vectors))
            return best(dots(self._vectors, positions, query), positions, top_k)
        if self.kind == "flat":
            search = _Search(query, top_k, eligible, None)
            return self._merge_best(search, _NOTHING, partial(self._scan_all, search))
        return self._by_lists(_Search(query, top_k, eligible, self._spread(eligible)))

    def compares_all(self, top_k: int, eligible: Eligible | None) -> bool:
        """Return whether a search compares all eligible vectors, because they are few."""
        return self._count(eligible) <= max(SCANNED, 4 * top_k)

    def _count(self, eligible: Eligible | None) -> int:
        return len(self._vectors) if eligible is None else eligible.count

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

    @cached_property
    def _list_of(self) -> ListNumbers:
        """The number of each vector's list, ``[N]``."""
        list_of = np.empty(len(self._vectors), np.min_scalar_type(self.nlist))
        for number in range(self.nlist):
            if size := self._index.invlists.list_size(number):
                list_of[_faiss.rev_swig_ptr(self._index.invlists.get_ids(number), size)] = number
        return list_of

    @cached_property
    def _sizes(self) -> Positions:
        """The number of vectors in each list, ``[nlist]``."""
        return np.bincount(self._list_of, minlength=self.nlist)

    def _spread(self, eligible: Eligible | None) -> Spread | None:
        """Return how the eligible vectors are spread over the lists, or None if nearly all vectors are eligible.

        The result is cached for as long as the filter is. For a filter with exclusions, it ignores the exclusions.
        """
        if eligible is None or eligible.count > _NEARLY_ALL * len(self._vectors):
            return None
        whole = eligible.parent or eligible
        if (found := self._spreads.get(whole)) is None:
            found = self._spreads[whole] = Spread.of(whole, self._list_of, self._sizes)
        return found

    def _closeness(self, query: Floats, spread: Spread | None) -> Floats:
        """Return the dot products of the query with the centroids, ``[nlist]``; -inf without eligible vectors."""
        closeness = np.empty(self.nlist, np.float32)
        out, asked = map(_faiss.swig_ptr, (closeness, query))
        _faiss.fvec_inner_products_ny(out, asked, self._quantizer.get_xb(), self.dim, self.nlist)
        if spread is not None:
            closeness[spread.is_empty] = -np.inf
        return closeness

    def _num_lists(self, top_k: int, eligible: Eligible | None) -> int:
        """Return how many lists to scan first: more for more results, and more if fewer vectors are eligible."""
        return math.ceil(self.nprobe * math.sqrt(max(1, top_k / RANK) / self._share(eligible)))

    def _share(self, eligible: Eligible | None) -> float:
        """Return the fraction of the vectors that are eligible."""
        return self._count(eligible) / len(self._vectors)

    def _by_lists(self, search: _Search) -> Ranked:
        """Scan the lists nearest to the query, and then all other lists within reach of the lowest result.

        The nearest ones are scanned first, because every better result puts more lists out of reach.
        """
        closeness = self._closeness(search.query, search.spread)
        reach = self.reach.of(self._share(search.eligible), search.spread)
        top, lowest, width = _NOTHING, _LOWEST, self._num_lists(search.top_k, search.eligible)
        while len(within := np.flatnonzero(closeness + reach >= lowest)):
            lists = within[_nearest(closeness[within], width)]
            top = self._scan(search, top, lists, closeness[lists])
            closeness[lists] = -np.inf  # scanned
            width *= _MORE
            if len(top[1]) == search.top_k:
                lowest = top[0][-1]
        return top

    def _scan(self, search: _Search, top: Ranked, lists: Positions, closeness: Floats) -> Ranked:
        """Merge the best eligible vectors of the given lists into ``top``, the best results so far."""
        eligible, spread = search.eligible, search.spread
        if eligible is not None and spread is not None:
            few = spread.few(lists)
            few = few if eligible.parent is None else few[eligible.contains(few)]
            top = _merged(top, dots(self._vectors, few, search.query), few, search.top_k)
            rest = ~spread.is_sparse[lists]
            lists, closeness = lists[rest], closeness[rest]
        if not len(lists):
            return top
        return self._merge_best(search, top, partial(self._scan_lists, search, lists=lists, closeness=closeness))

    def _merge_best(self, search: _Search, top: Ranked, scan: Callable[..., Positions]) -> Ranked:
        """Merge the candidates of a scan into ``top``.

        As long as the last candidate is among the best results, scan again for more candidates.
        """
        count = self._pool(search.top_k)
        while True:
            found = scan(count=count)
            scores = dots(self._vectors, found, search.query)
            better = _merged(top, scores, found, search.top_k)
            if len(found) < count or scores[-1] < better[0][-1] - ROUNDING:
                return better
            count *= 4

    def _pool(self, top_k: int) -> int:
        """Return how many candidates to request from faiss.

        faiss orders vectors by inexact codes, so more than ``top_k`` candidates are needed.
        """
        times, plus = _POOL[self.kind]
        return times * top_k + plus

    def _scan_lists(self, search: _Search, *, lists: Positions, closeness: Floats, count: int) -> Positions:
        """Return the ``count`` or fewer rows of the given lists whose codes are nearest to the query, nearest first."""
        parameters = _faiss.SearchParametersIVF(nprobe=len(lists), sel=_selector(search.eligible))
        scores, rows = np.empty(count, np.float32), np.empty(count, np.int64)
        asked, among, near, best_scores, found = map(_faiss.swig_ptr, (search.query, lists, closeness, scores, rows))
        self._index.search_preassigned_c(1, asked, count, among, near, best_scores, found, False, parameters)  # noqa: FBT003 - C++
        return rows[rows >= 0]

    def _scan_all(self, search: _Search, *, count: int) -> Positions:
        """Return the ``count`` or fewer rows of a flat index whose codes are nearest to the query, nearest first."""
        parameters = None if search.eligible is None else _faiss.SearchParameters(sel=_selector(search.eligible))
        rows: Positions = self._index.search(search.query[None], count, params=parameters)[1][0]
        return rows[rows >= 0]


def _nearest(closeness: Floats, count: int) -> Positions:
    """Return the indices of the ``count`` nearest lists, nearest first."""
    count = min(count, len(closeness))
    lists = np.argpartition(closeness, -count)[-count:]
    return lists[np.argsort(-closeness[lists])]


def _merged(top: Ranked, scores: Floats, positions: Positions, top_k: int) -> Ranked:
    """Return the ``top_k`` best of ``top`` and of other vectors."""
    return best(np.concatenate([top[0], scores]), np.concatenate([top[1], positions]), top_k)


def _selector(eligible: Eligible | None) -> FaissIndex | None:
    return None if eligible is None else _faiss.IDSelectorBitmap(eligible.bitmap)  # reads the bitmap in place


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
