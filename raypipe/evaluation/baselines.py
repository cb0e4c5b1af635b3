"""Simple recommenders, fitted on watch events: what a learned ranker has to beat."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from raypipe.evaluation.protocols import Events, Ints

Scores = npt.NDArray[np.float32]
WINDOW, HISTORY_DECAY, NUM_SUCCESSORS = 5, 0.6, 100
EASE_MAX_ITEMS, EASE_REGULARIZATION = 20_000, 100.0
_PAIRS_AT_ONCE = 4_000_000
_NEWEST = 500  # events of a user whose pairs are counted
_DAY_SECONDS = 86_400.0


class Baseline(ABC):
    """A recommender that gives every video of the catalogue a score."""

    name: ClassVar[str]

    @abstractmethod
    def scores(self, histories: Sequence[Ints]) -> Scores:
        """Return the score of each of N videos for each of B histories, the newest video last: [B, N]."""


class Random(Baseline):
    """Gives each video a random score. The seed makes the scores reproducible."""

    name = "random"

    def __init__(self, num_items: int, *, seed: int = 0) -> None:
        self._num_items = num_items
        self._random = np.random.default_rng(seed)

    def scores(self, histories: Sequence[Ints]) -> Scores:
        """Return random scores."""
        return self._random.random((len(histories), self._num_items), dtype=np.float32)


class Popular(Baseline):
    """Gives each video its number of viewers; with ``days``, its viewers in the last days before the newest event."""

    name = "popular"

    def __init__(self, events: Events, num_items: int, *, days: float | None = None) -> None:
        items = events.items
        if days is not None and events.times is not None and len(events):
            items = items[events.times > events.times.max() - days * _DAY_SECONDS]
        self._counts = np.bincount(items, minlength=num_items).astype(np.float32)

    def scores(self, histories: Sequence[Ints]) -> Scores:
        """Return the same scores for every history."""
        return np.tile(self._counts, (len(histories), 1))


class Content(Baseline):
    """Gives each video its cosine to the content of the history.

    ``pooling`` is ``last`` (of the newest video), ``mean`` (of the mean of the history), or ``max`` (the largest one).
    """

    name = "content"
    _LAST_WATCHED = 50

    def __init__(self, vectors: npt.NDArray[np.floating], *, pooling: str) -> None:
        wide = vectors.astype(np.float32)
        self._vectors = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        self._pooling = pooling

    def scores(self, histories: Sequence[Ints]) -> Scores:
        """Return cosines; zeros for an empty history."""
        return np.stack([self._score(history) for history in histories])

    def _score(self, history: Ints) -> Scores:
        if not len(history):
            return np.zeros(len(self._vectors), np.float32)
        watched = self._vectors[history[-1:] if self._pooling == "last" else history[-self._LAST_WATCHED :]]
        if self._pooling == "max":
            best: Scores = (self._vectors @ watched.T).max(axis=1)
            return best
        mean = watched.mean(axis=0)
        cosines: Scores = self._vectors @ (mean / max(float(np.linalg.norm(mean)), np.finfo(np.float32).tiny))
        return cosines


class _Neighbors:
    """A sparse N x N matrix, stored by row. Row i holds the weights of the K nearest items, the neighbors of item i."""

    def __init__(
        self, rows: Ints, columns: Ints, weights: npt.NDArray[np.float64], num_items: int, *, most: int
    ) -> None:
        order = np.lexsort((columns, -weights, rows))
        rows, columns, weights = rows[order], columns[order], weights[order]
        starts = np.searchsorted(rows, np.arange(num_items))
        is_kept = np.arange(len(rows)) - starts[rows] < most
        self._columns, self._weights = columns[is_kept], weights[is_kept].astype(np.float32)
        self._starts = np.append(0, np.cumsum(np.bincount(rows[is_kept], minlength=num_items)))
        self._num_items = num_items

    def scores(self, items: Ints, weights: npt.NDArray[np.floating]) -> Scores:
        """Return the weighted sum of the rows of some items, [N]."""
        total = np.zeros(self._num_items, np.float32)
        for item, weight in zip(items.tolist(), weights.tolist(), strict=True):
            span = slice(self._starts[item], self._starts[item + 1])
            total[self._columns[span]] += np.float32(weight) * self._weights[span]
        return total


class Transitions(Baseline):
    """Counts how often one video is watched within 5 events after another one. A count weighs 1 / distance."""

    name = "transitions"

    def __init__(self, events: Events, num_items: int) -> None:
        rows, columns, weights = [], [], []
        users = events.users
        for distance in range(1, WINDOW + 1):
            is_pair = users[:-distance] == users[distance:]
            rows.append(events.items[:-distance][is_pair])
            columns.append(events.items[distance:][is_pair])
            weights.append(np.full(int(is_pair.sum()), 1 / distance))
        self._next = _summed(rows, columns, weights, num_items, most=NUM_SUCCESSORS)

    def scores(self, histories: Sequence[Ints]) -> Scores:
        """Return the summed successors of the watched videos; each weighs 0.6 times as much as the next newer one."""
        return np.stack([self._score(history) for history in histories])

    def _score(self, history: Ints) -> Scores:
        newest_first = history[::-1]
        return self._next.scores(newest_first, HISTORY_DECAY ** np.arange(len(newest_first)))


class ItemKnn(Baseline):
    """Sums the cosines between the viewers of a video and of the watched videos (Sarwar et al., 2001)."""

    name = "item_knn"

    def __init__(self, events: Events, num_items: int) -> None:
        counts = np.maximum(np.bincount(events.items, minlength=num_items), 1)
        keys, together = _counted(rows * num_items + columns for rows, columns in _pairs(events))
        rows, columns = np.divmod(keys, num_items)
        cosines = together / np.sqrt(counts[rows] * counts[columns])
        self._neighbors = _Neighbors(rows, columns, cosines, num_items, most=NUM_SUCCESSORS)

    def scores(self, histories: Sequence[Ints]) -> Scores:
        """Return the sum of the similarities to each watched video."""
        return np.stack([self._neighbors.scores(history, np.ones(len(history))) for history in histories])


class Ease(Baseline):
    """A linear model with a closed form (Steck, 2019), for catalogues of up to 20,000 videos."""

    name = "ease"

    def __init__(self, events: Events, num_items: int) -> None:
        gram = np.zeros((num_items, num_items), np.float32)
        for rows, columns in _pairs(events):
            np.add.at(gram, (rows, columns), 1)
        gram[np.diag_indices(num_items)] = np.bincount(events.items, minlength=num_items) + EASE_REGULARIZATION
        inverse = np.linalg.inv(gram)
        weights = inverse / -np.diag(inverse)
        np.fill_diagonal(weights, 0)
        self._weights: Scores = weights.astype(np.float32)

    def scores(self, histories: Sequence[Ints]) -> Scores:
        """Return the predictions of the model."""
        return np.stack([self._weights[history].sum(axis=0) for history in histories])


def _pairs(events: Events) -> Iterator[tuple[Ints, Ints]]:
    """Yield all ordered pairs of two different events of one user, as items, a part at a time.

    Of a long history, only the newest events count, so that one user cannot fill the memory.
    """
    lengths = np.minimum(np.diff(events.starts), _NEWEST)
    for length in np.unique(lengths[lengths > 1]).tolist():
        first, second = np.nonzero(~np.eye(length, dtype=np.bool_))
        stops = events.starts[1:][lengths == length]
        users_at_once = max(1, _PAIRS_AT_ONCE // len(first))
        for start in range(0, len(stops), users_at_once):
            newest = stops[start : start + users_at_once, None] - np.arange(length, 0, -1)
            histories = events.items[newest]
            yield histories[:, first].ravel(), histories[:, second].ravel()


def _counted(parts: Iterable[Ints]) -> tuple[Ints, Ints]:
    """Return the distinct numbers of all parts, ascending, and how often each occurs."""
    found: list[tuple[Ints, Ints]] = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for part in parts:
        found.append(np.unique(part, return_counts=True))
        if sum(len(keys) for keys, _ in found[1:]) > max(_PAIRS_AT_ONCE, len(found[0][0])):
            found = [_merged(found)]
    return _merged(found)


def _merged(counted: Sequence[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    keys, at = np.unique(np.concatenate([keys for keys, _ in counted]), return_inverse=True)
    counts = np.concatenate([counts for _, counts in counted])
    return keys, np.bincount(at, counts, minlength=len(keys)).astype(np.int64)


def _summed(
    rows: list[Ints], columns: list[Ints], weights: list[npt.NDArray[np.float64]], num_items: int, *, most: int
) -> _Neighbors:
    """Add up the weights of equal pairs; pairs of an item with itself do not count."""
    keys = np.concatenate(rows) * num_items + np.concatenate(columns)
    unique, at = np.unique(keys, return_inverse=True)
    total = np.bincount(at, np.concatenate(weights), minlength=len(unique))
    first, second = np.divmod(unique, num_items)
    is_other = first != second
    return _Neighbors(first[is_other], second[is_other], total[is_other], num_items, most=most)
