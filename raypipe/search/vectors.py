"""The vectors of an index: float16 rows of unit length in a memory-mapped file, and exact dot products with them."""

import io
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt

from raypipe.errors import IndexVersionError
from raypipe.text import one_line

Vectors: TypeAlias = npt.NDArray[np.float16]  # [N, d], unit length
Floats: TypeAlias = npt.NDArray[np.float32]
Positions: TypeAlias = npt.NDArray[np.int64]
Ranked: TypeAlias = tuple[Floats, Positions]  # scores and positions, best first

ROUNDING = 1e-6  # sums of the same products in another order may differ by this much
_ROWS = 1_024  # rows converted to float32 at a time: with 256 numbers per row, they fit in the CPU cache
_BLOCK_ROWS = 8_192  # rows multiplied at a time
_SIGN_AND_NUMBER = np.int32(-0x70002000)  # 0x8fffe000: masks the bits of a float16 that was shifted left by 13
_EXPONENT_BIAS = np.float32(2.0**112)  # two to the power of float32's exponent bias minus float16's


class VectorWriter:
    """Writes a float16 ``.npy`` file ``[N, dim]`` batch by batch. N is written to the header on close."""

    def __init__(self, path: Path, dim: int) -> None:
        self._file = path.open("wb")
        self._shape = [0, dim]
        self._file.write(self._header())

    def add(self, vectors: Floats) -> None:
        """Append vectors ``[n, dim]``."""
        self._file.write(vectors.astype("<f2").tobytes())
        self._shape[0] += len(vectors)

    def _header(self) -> bytes:
        """Return the file header for the current N. NumPy pads the header, so its length is the same for every N."""
        header = io.BytesIO()
        description = {"descr": "<f2", "fortran_order": False, "shape": tuple(self._shape)}
        np.lib.format.write_array_header_1_0(header, description)
        return header.getvalue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if kind is None:
                self._file.seek(0)
                self._file.write(self._header())


def open_vectors(path: Path) -> Vectors:
    """Memory-map a file that ``VectorWriter`` wrote.

    Raises:
        IndexVersionError: the file cannot be read, or is not a float16 matrix.
    """
    try:
        vectors: Vectors = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except (OSError, ValueError, EOFError) as error:
        msg = f"Cannot read the vectors {path}: {one_line(error)}"
        raise IndexVersionError(msg, key=str(path)) from None
    if vectors.dtype != np.float16 or vectors.ndim != 2:  # noqa: PLR2004 - a matrix
        found = f"{vectors.dtype}{vectors.shape}"
        msg = f"{path} does not contain vectors: it is {found}, not float16 [videos, numbers]."
        raise IndexVersionError(msg, key=str(path), value=found)
    return vectors


def widen(half: npt.NDArray[np.float16]) -> Floats:
    """Convert finite float16 numbers to float32, several times faster than ``astype``."""
    bits = half.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= _SIGN_AND_NUMBER
    floats = bits.view(np.float32)
    floats *= _EXPONENT_BIAS
    return floats


def dots(vectors: Vectors, positions: Positions, query: Floats) -> Floats:
    """Return the dot products of a query ``[d]`` with the vectors at ``positions``, as ``dots_of_each`` does."""
    scores: Floats = dots_of_each(vectors, positions, query[None])[0]
    return scores


def dots_of_each(vectors: Vectors, positions: Positions, queries: Floats) -> Floats:
    """Return the dot products ``[Q, P]`` of queries ``[Q, d]`` with the vectors at ``positions``.

    The score of a vector does not depend on the other positions and queries. A matrix product would not guarantee this:
    it could give equal vectors different scores, depending on the rest of the batch.
    """
    scores = np.empty((len(queries), len(positions)), np.float32)
    for start in range(0, len(positions), _ROWS):
        some = slice(start, start + _ROWS)
        # take reads vectors that are not in the CPU cache 1.5 times as fast as indexing does
        block = widen(vectors.take(positions[some], axis=0))
        for row, query in enumerate(queries):
            np.einsum("ij,j->i", block, query, out=scores[row, some])
    return scores


def best(scores: Floats, positions: Positions, top_k: int) -> Ranked:
    """Return the ``top_k`` highest scores and their positions. Equal scores are sorted by position."""
    if len(scores) > 2 * top_k > 0:
        at_least = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
        kept = np.flatnonzero(scores >= at_least)
        scores, positions = scores[kept], positions[kept]
    order = np.lexsort((positions, -scores))[:top_k]
    return scores[order], positions[order]


def neighbors(vectors: Vectors, queries: Floats, *, top_k: int, positions: Positions | None = None) -> Positions:
    """Return the positions ``[Q, top_k]`` of the vectors nearest to each query, found by exhaustive search.

    With ``positions``, only the vectors at these positions are compared. If there are fewer than ``top_k``, the result
    has fewer columns.
    """
    positions = np.arange(len(vectors)) if positions is None else positions
    nearest = np.empty((len(queries), 0), np.int64)
    scores = np.empty((len(queries), 0), np.float32)
    for start in range(0, len(positions), _BLOCK_ROWS):
        rows = positions[start : start + _BLOCK_ROWS]
        block = queries @ widen(vectors.take(rows, axis=0)).T
        scores = np.concatenate([scores, block], axis=1)
        here = np.broadcast_to(rows, block.shape)
        nearest = np.concatenate([nearest, here], axis=1)
        if scores.shape[1] > top_k:
            kept = np.argpartition(scores, -top_k, axis=1)[:, -top_k:]
            scores, nearest = np.take_along_axis(scores, kept, 1), np.take_along_axis(nearest, kept, 1)
    return np.take_along_axis(nearest, np.argsort(-scores, axis=1), 1)
