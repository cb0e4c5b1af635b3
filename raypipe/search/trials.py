"""Sample queries with their true neighbors, to choose parameters of a search with and to measure its recall."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from raypipe.search.filters import Eligible
from raypipe.search.vectors import ROUNDING, Floats, Positions, Vectors, neighbors, widen

RANK = 10  # recall@10
_LONGEST_HISTORY = 5


@dataclass(frozen=True)
class Trials:
    """Sample queries ``[Q, d]``, and the positions ``[Q, top_k]`` of their true neighbors, best first.

    ``lowest`` ``[Q]`` is the lowest score among the neighbors of each query.
    """

    queries: Floats
    neighbors: Positions
    lowest: Floats
    eligible: Eligible | None = None

    @classmethod
    def of(cls, vectors: Vectors, queries: Floats, eligible: Eligible | None = None) -> Self:
        """Find the true neighbors by exhaustive search."""
        positions = None if eligible is None else eligible.positions()
        found = neighbors(vectors, queries, top_k=RANK, positions=positions)
        lowest: Floats = np.einsum("ij,ij->i", widen(vectors[found[:, -1]]), queries)
        return cls(queries, found, lowest, eligible)

    @property
    def top_k(self) -> int:
        """The number of neighbors: 10, or fewer if fewer vectors are eligible."""
        return int(self.neighbors.shape[1])

    def recall(self, scores: Floats) -> float:
        """Return the recall of a search that found vectors with these scores ``[Q, top_k]``.

        A vector counts as a true neighbor if its score reaches ``lowest``. So any of several equal vectors counts.
        """
        return float(np.mean(scores >= self.lowest[:, None] - ROUNDING))


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
