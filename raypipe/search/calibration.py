"""Measure how much of the exact result an index finds, and choose how many of its lists a search has to scan."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from raypipe.search.vectors import ROUNDING, Floats, Vectors, neighbors, widen

RANK = 10  # recall@10
TARGET_RECALL = 0.98
NUM_QUERIES = 256
_LONGEST_HISTORY = 5
_SOME = 0.5  # recall below this may grow slowly and still grow far
_NO_GAIN = 0.005  # recall gained by twice the lists: what is still missing then is hidden by the quantisation


@dataclass(frozen=True)
class Trials:
    """Queries ``[Q, d]``, and the score ``[Q]`` of the last of each query's ``top_k`` nearest vectors."""

    queries: Floats
    lowest: Floats
    top_k: int = RANK

    def recall(self, scores: Floats) -> float:
        """Return the fraction of found scores ``[Q, top_k]`` as high as the true ones: any of equal vectors counts."""
        return float(np.mean(scores >= self.lowest[:, None] - ROUNDING))


def make_trials(vectors: Vectors, *, seed: int) -> tuple[Trials, Trials]:
    """Return trials to choose parameters with, and separate ones to measure the result with."""
    queries = trial_queries(vectors, count=2 * NUM_QUERIES, seed=seed)
    top_k = min(RANK, len(vectors))
    last = neighbors(vectors, queries, top_k=top_k)[:, -1]
    lowest: Floats = np.einsum("ij,ij->i", widen(vectors[last]), queries)
    first, second = slice(0, NUM_QUERIES), slice(NUM_QUERIES, None)
    return Trials(queries[first], lowest[first], top_k), Trials(queries[second], lowest[second], top_k)


def trial_queries(vectors: Vectors, *, count: int, seed: int) -> Floats:
    """Return realistic queries ``[count, d]``: half are vectors of the index, half are means of two to five of them."""
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
    """Return about the smallest number of lists with a recall of 0.98, or as good as twice as many lists reach."""
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
