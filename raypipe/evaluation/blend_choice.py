"""Choose how much of a recommendation comes from counted successors, on events that nothing was fitted on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raypipe.search.successors import EASE_MAX_ITEMS, CountKind, Successors, count_successors
from raypipe.search.tower import TowerInput, TowerWeights
from raypipe.search.vectors import Floats, Vectors, neighbors, widen
from raypipe.search.watch_events import Events, Ints

WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
_CANDIDATES = 200  # of the ranker, as in serving
_MAX_USERS = 10_000
_USERS_AT_ONCE = 512
_ROWS_AT_ONCE = 65_536
_K = 10


@dataclass(frozen=True)
class BlendChoice:
    """The best way of counting and the best weight.

    Attributes:
        counts: How successors are counted.
        weight: Their share of the score, from 0 to 1.
        ndcg: For each way of counting, NDCG@10 for each weight in ``WEIGHTS``.
        num_users: How many users this was measured on; 0 if there were none, and then counting alone is chosen.
    """

    counts: CountKind
    weight: float
    ndcg: Mapping[str, Sequence[float]]
    num_users: int

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``blend.json``."""
        measured = {name: [round(value, 6) for value in values] for name, values in self.ndcg.items()}
        about = {"weights": list(WEIGHTS), "ndcg@10": measured, "num_users": self.num_users}
        return {"counts": self.counts, "weight": self.weight, **about}


@dataclass(frozen=True)
class ItemVectors:
    """The vectors of a ranker for N videos: float16 of length 1 ``[N, d]``, and their lengths before ``[N]``."""

    unit: Vectors
    lengths: Floats

    @classmethod
    def of(cls, ranker: TowerInput, content: Vectors) -> "ItemVectors":
        """Compute the vectors from content vectors ``[N, D]``."""
        unit = np.empty((len(content), ranker.weights.width), np.float16)
        lengths = np.empty(len(content), np.float32)
        for start in range(0, len(content), _ROWS_AT_ONCE):
            some = slice(start, start + _ROWS_AT_ONCE)
            unit[some], lengths[some] = ranker.vectors(widen(content[some]), ranker.rows[some])
        return cls(unit, lengths)

    def states(self, weights: TowerWeights, histories: Sequence[Ints]) -> Floats:
        """Return the state of length 1 after each history, ``[B, d]``."""
        kept = [history[-weights.max_events :] for history in histories]
        inputs = (widen(self.unit[history]) * self.lengths[history, None] for history in kept)
        return np.stack([weights.state(rows) for rows in inputs])


def choose_blend(
    weights: TowerWeights, vectors: ItemVectors, *, train: Events, histories: Sequence[Ints], targets: Ints, seed: int
) -> BlendChoice:
    """Choose the way of counting and the weight with the best NDCG@10.

    Args:
        weights: The network of the ranker.
        vectors: The vectors of the videos.
        train: The events that successors are counted from.
        histories: What each user had watched, as positions. At most 10,000 users are drawn.
        targets: What each of them watched next, ``[U]``.
        seed: Of the draw.
    """
    num_items, num_users = len(vectors.unit), len(histories)
    kinds: list[CountKind] = ["transitions"] if train.is_ordered else []
    kinds += ["item_knn", *(["ease"] if num_items <= EASE_MAX_ITEMS else [])]  # type: ignore[list-item]
    if not num_users:
        return BlendChoice(kinds[0], 1.0, {}, 0)
    drawn = np.sort(np.random.default_rng([seed, 3]).permutation(num_users)[:_MAX_USERS])
    histories, targets = [histories[user] for user in drawn.tolist()], targets[drawn]
    counted = {kind: count_successors(kind, train, num_items=num_items) for kind in kinds}
    gains = {kind: np.zeros(len(WEIGHTS)) for kind in kinds}
    for start in range(0, len(histories), _USERS_AT_ONCE):
        some = histories[start : start + _USERS_AT_ONCE]
        states = vectors.states(weights, some)
        longest = max(map(len, some))
        nearest = neighbors(vectors.unit, states, top_k=min(_CANDIDATES + longest, num_items))
        for history, state, near, target in zip(some, states, nearest, targets[start:].tolist(), strict=False):
            proposed = near[~np.isin(near, history)][:_CANDIDATES]
            for kind, successors in counted.items():
                gains[kind] += _gains(
                    vectors, weights.scale * state, proposed, successors=successors, history=history, target=target
                )
    means = {kind: total / len(histories) for kind, total in gains.items()}
    kind = max(kinds, key=lambda one: means[one].max())
    return BlendChoice(kind, WEIGHTS[int(means[kind].argmax())], {k: v.tolist() for k, v in means.items()}, len(drawn))


def _gains(
    vectors: ItemVectors, query: Floats, proposed: Ints, *, successors: Successors, history: Ints, target: int
) -> npt.NDArray[np.float64]:
    """Return the discounted gain of the target for each weight, [W], with the candidates and scores of serving."""
    following, counts = successors.score(history)
    is_new = ~np.isin(following, history)
    following, counts = following[is_new], counts[is_new].astype(np.float64)
    pool = np.union1d(proposed, following)
    at = int(np.searchsorted(pool, target))
    if at == len(pool) or pool[at] != target:
        return np.zeros(len(WEIGHTS))
    logits = (widen(vectors.unit[pool]) @ query).astype(np.float64)
    learned = np.exp(logits - logits.max())
    shares = np.zeros(len(pool))
    shares[np.searchsorted(pool, following)] = counts / max(counts.sum(), np.finfo(np.float64).tiny)
    weight = np.array(WEIGHTS)[:, None]
    scores = (1 - weight) * learned / learned.sum() + weight * shares
    higher, equal = (scores > scores[:, [at]]).sum(axis=1), (scores == scores[:, [at]]).sum(axis=1)
    ranks = higher + (equal + 1) / 2
    return np.where(ranks <= _K, 1 / np.log2(1 + ranks), 0)
