"""Exact dot products with the vectors of an index, which are float16 on disk."""

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float16]  # [N, d], of unit length
Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]

ROUNDING = 1e-6  # what two sums of the same products may differ by
_ROWS = 1_024  # widened at a time: at 256 numbers a row they stay in the processor's cache
_BLOCK_ROWS = 8_192  # multiplied at a time
_SIGN_AND_NUMBER = np.int32(-0x70002000)  # 0x8fffe000: what stays of a float16 that is shifted into a float32's place
_EXPONENT_BIAS = np.float32(2.0**112)  # of float32, against that of float16


def widen(half: npt.NDArray[np.float16]) -> Floats:
    """The same numbers as float32, for finite ones; several times faster than ``astype``."""
    bits = half.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= _SIGN_AND_NUMBER
    floats = bits.view(np.float32)
    floats *= _EXPONENT_BIAS
    return floats


def dots(vectors: Vectors, positions: Positions, query: Floats) -> Floats:
    """The dot product of a query ``[d]`` with the vectors at some positions.

    That of a pair is the same number whatever else is asked: a product of matrices would not promise it, and then
    the order of two equal vectors would depend on their neighbours.
    """
    scores = np.empty(len(positions), np.float32)
    for start in range(0, len(positions), _ROWS):
        some = slice(start, start + _ROWS)
        np.einsum("ij,j->i", widen(vectors[positions[some]]), query, out=scores[some])
    return scores


def best(scores: Floats, positions: Positions, top_k: int) -> tuple[Floats, Positions]:
    """The ``top_k`` highest scores with their positions; of equal ones those of the lowest positions."""
    if len(scores) > 2 * top_k > 0:
        at_least = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
        kept = np.flatnonzero(scores >= at_least)
        scores, positions = scores[kept], positions[kept]
    order = np.lexsort((positions, -scores))[:top_k]
    return scores[order], positions[order]


def neighbours(vectors: Vectors, queries: Floats, *, top_k: int) -> Positions:
    """Positions ``[Q, top_k]`` of each query's nearest vectors among all of them."""
    nearest = np.empty((len(queries), 0), np.int64)
    scores = np.empty((len(queries), 0), np.float32)
    for start in range(0, len(vectors), _BLOCK_ROWS):
        block = queries @ widen(vectors[start : start + _BLOCK_ROWS]).T
        scores = np.concatenate([scores, block], axis=1)
        here = np.broadcast_to(np.arange(start, start + block.shape[1]), block.shape)
        nearest = np.concatenate([nearest, here], axis=1)
        if scores.shape[1] > top_k:
            kept = np.argpartition(scores, -top_k, axis=1)[:, -top_k:]
            scores, nearest = np.take_along_axis(scores, kept, 1), np.take_along_axis(nearest, kept, 1)
    return np.take_along_axis(nearest, np.argsort(-scores, axis=1), 1)
