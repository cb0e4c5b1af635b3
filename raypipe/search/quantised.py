"""The faiss index of each kind: trained, filled, copied without its vectors, read and written, scanned."""

import math
from pathlib import Path
from typing import Any, Literal, TypeAlias

import faiss
import numpy as np

from raypipe.config import IndexSettings
from raypipe.errors import IndexVersionError
from raypipe.search.conditions import Bitmap
from raypipe.search.exact import Floats, Positions, Vectors, widen

Kind = Literal["flat", "ivf_sq8", "compact"]
FaissIndex: TypeAlias = Any
_faiss: Any = faiss  # its types are of its C++ functions, not of the Python around them

_FILL_ROWS = 65_536  # widened to float32 at a time
_POINTS_PER_LIST = 64  # that k-means learns a list from: more take longer and find the same
_FEWEST = 64  # vectors that lists and codes can be learned from
_PARTS = (4, 3, 2, 1)  # numbers that compact codes by 4 bits together: as many as divide the dimension


def kind_for(num_videos: int, settings: IndexSettings) -> Kind:
    """What suits so many videos."""
    if num_videos < max(settings.flat_below, _FEWEST):
        return "flat"
    return "compact" if settings.compact else "ivf_sq8"


def kind_of(index: FaissIndex) -> Kind:
    """What such an index is."""
    if isinstance(index, _faiss.IndexIVFPQFastScan):
        return "compact"
    return "ivf_sq8" if isinstance(index, _faiss.IndexIVF) else "flat"


def num_lists(num_videos: int) -> int:
    """≈ 4√N, but no list without vectors to learn it from."""
    return max(1, min(round(4 * math.sqrt(num_videos)), num_videos // 4))


def new_index(vectors: Vectors, *, kind: Kind, seed: int) -> FaissIndex:
    """A trained and empty index for such vectors."""
    dim = vectors.shape[1]
    if kind == "flat":  # the very float16 of the vectors: what it finds is exact
        flat = _faiss.IndexScalarQuantizer(dim, _faiss.ScalarQuantizer.QT_fp16, _faiss.METRIC_INNER_PRODUCT)
        flat.train(np.zeros((1, dim), np.float32))
        return flat
    nlist = num_lists(len(vectors))
    lists = _faiss.IndexFlatIP(dim)
    if kind == "compact":
        codes = dim // next(part for part in _PARTS if dim % part == 0)
        index: FaissIndex = _faiss.IndexIVFPQFastScan(lists, dim, nlist, codes, 4, _faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.min_points_per_centroid = 1
    else:  # one range for all numbers of a vector: scanned in two thirds of the time that one for each takes
        uniform = _faiss.ScalarQuantizer.QT_8bit_uniform
        index = _faiss.IndexIVFScalarQuantizer(lists, dim, nlist, uniform, _faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = seed + 1  # faiss takes 0 for a seed of its own
    index.cp.min_points_per_centroid = 1
    index.cp.max_points_per_centroid = _POINTS_PER_LIST
    chosen = np.random.default_rng(seed).permutation(len(vectors))[: _POINTS_PER_LIST * nlist]
    index.train(widen(vectors[np.sort(chosen)]))
    return index


def emptied(index: FaissIndex) -> FaissIndex:
    """A copy that has learned the same and holds nothing."""
    copy = _faiss.clone_index(index)
    copy.reset()
    return copy


def fill(index: FaissIndex, vectors: Vectors) -> None:
    """Add all vectors, a vector's id being its row."""
    for start in range(0, len(vectors), _FILL_ROWS):
        index.add(widen(vectors[start : start + _FILL_ROWS]))


def read(path: Path) -> FaissIndex:
    """Read what ``write`` wrote.

    Raises:
        IndexVersionError: the file is no index of faiss.
    """
    try:
        return _faiss.read_index(str(path))
    except RuntimeError as error:
        msg = f"Cannot read the index {path}: {' '.join(str(error).split())}"
        raise IndexVersionError(msg, key=str(path)) from None


def write(index: FaissIndex, path: Path) -> None:
    """Write faiss's own format."""
    _faiss.write_index(index, str(path))


def size_bytes(index: FaissIndex) -> int:
    """What its file takes, and about what it takes in memory."""
    sizes: list[int] = []
    _faiss.write_index(index, _faiss.PyCallbackIOWriter(lambda data: sizes.append(len(data))))
    return sum(sizes)


def nearest_lists_of_all(index: FaissIndex, vectors: Vectors, count: int) -> Positions:
    """The numbers ``[N, count]`` of the lists that are nearest to each vector, the nearest first."""
    lists = np.empty((len(vectors), count), np.int64)
    for start in range(0, len(vectors), _FILL_ROWS):
        some = slice(start, start + _FILL_ROWS)
        lists[some] = index.quantizer.search(widen(vectors[some]), count)[1]
    return lists


def selector(bitmap: Bitmap) -> FaissIndex:
    """What faiss asks whether it may find a row; it reads the bitmap in place."""
    return _faiss.IDSelectorBitmap(bitmap)


def nearest_lists(index: FaissIndex, query: Floats, count: int) -> tuple[Floats, Positions]:
    """The closeness ``[count]`` and numbers of the lists that are nearest to one query, the nearest first."""
    closeness, lists = index.quantizer.search(query[None], count)
    return closeness[0], lists[0]


def scan_lists(
    index: FaissIndex, query: Floats, *, lists: Positions, closeness: Floats, count: int, selector: FaissIndex | None
) -> Positions:
    """The rows in some lists that are about the nearest to one query, the nearest first; fewer where no more are."""
    parameters = _faiss.SearchParametersIVF(nprobe=len(lists), sel=selector)
    scores, rows = np.empty(count, np.float32), np.empty(count, np.int64)
    asked, among, near, best, found = map(_faiss.swig_ptr, (query, lists, closeness, scores, rows))
    index.search_preassigned_c(1, asked, count, among, near, best, found, False, parameters)  # noqa: FBT003 - of C++
    return rows[rows >= 0]


def scan_all(index: FaissIndex, query: Floats, *, count: int, selector: FaissIndex | None) -> Positions:
    """The same among all rows of a flat index."""
    parameters = _faiss.SearchParameters(sel=selector) if selector is not None else None
    rows: Positions = index.search(query[None], count, params=parameters)[1][0]
    return rows[rows >= 0]
