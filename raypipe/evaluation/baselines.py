"""Simple recommenders, fitted on watch events: what a learned ranker has to beat."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from raypipe.models.backbones import mean_embedding
from raypipe.search.watch_events import Events, Ints, Numbers

Scores = npt.NDArray[np.float32]
WINDOW, HISTORY_DECAY, NUM_SUCCESSORS = 5, 0.6, 100
EASE_MAX_ITEMS, EASE_REGULARIZATION = 20_000, 100.0
_PAIRS_AT_ONCE = 4_000_000
_NEWEST = 500  # events of a user whose pairs are counted
_DAY_SECONDS = 86_400.0


class Random:
    """Gives each video a random score. The seed makes the scores reproducible."""

    def __init__(self, num_items: int, *, seed: int = 0) -> None:
        self._num_items = num_items
        self._random = np.random.default_rng(seed)

    def scores(self, histories: Sequence[Ints]) -> Scores:
        """Return random scores."""
        return self._random.random((len(histories), self._num_items), dtype=np.float32)


class Popular:
    """Gives each video its number of viewers; with ``days``, its viewers in the last days before the newest event."""

    def __init__(self, events: Events, num_items: int, *, days: float | None = None) -> None:
        items = events.items
        if days is not None and events.times is not None and len(events):
            items = items[events.times > events.times.max() - days * _DAY_SECONDS]
        self._counts = np.bincount(items, minlength=num_items).astype(np.float32)

    def scores(self, histories: Sequence[Ints]) -> Scores:
        """Return the same scores for every history."""
        return np.tile(self._counts, (len(histories), 1))


class Content:
    """Gives each video its cosine to the content of the history.

    ``pooling`` is ``last`` (of the newest video), ``mean`` (of the mean of the history), or ``max`` (the largest one).
    """

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
        cosines: Scores = self._vectors @ mean_embedding(watched)
        return cosines


class _Neighbors:
    """A sparse N x N matrix, stored by row. Row i holds the weights of the K nearest items, the neighbors of item i."""

    def __init__(self, keys: Ints, weights: Numbers, num_items: int, *, most: int) -> None:
        """Keep the ``most`` largest weights of each row, without the diagonal. A key is row * num_items + column."""
        rows, columns = np.divmod(keys, num_items)
        order = np.lexsort((columns, -weights, rows))
        order = order[rows[order] != columns[order]]
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


class Transitions:
    """Counts how often one video is watched within 5 events after another one. A count weighs 1 / distance."""

    def __init__(self, events: Events, num_items: int) -> None:
        counted = []
        users = events.users
        for distance in range(1, WINDOW + 1):
            is_pair = users[:-distance] == users[distance:]
            keys = events.items[:-distance][is_pair] * num_items + events.items[distance:][is_pair]
            counted.append((keys, np.full(len(keys), 1 / distance)))
        self._next = _Neighbors(*_totals(counted), num_items, most=NUM_SUCCESSORS)

    def scores(self, histories: Sequence[Ints]) -> Scores:
        """Return the summed successors of the watched videos; each weighs 0.6 times as much as the next newer one."""
        return np.stack([self._score(history) for history in histories])

    def _score(self, history: Ints) -> Scores:
        newest_first = history[::-1]
        return self._next.scores(newest_first, HISTORY_DECAY ** np.arange(len(newest_first)))


class ItemKnn:
    """Sums the cosines between the viewers of a video and of the watched videos (Sarwar et al., 2001)."""

    def __init__(self, events: Events, num_items: int) -> None:
        counts = np.maximum(np.bincount(events.items, minlength=num_items), 1)
        keys, together = _counted(rows * num_items + columns for rows, columns in _pairs(events))
        rows, columns = np.divmod(keys, num_items)
        cosines = together / np.sqrt(counts[rows] * counts[columns])
        self._neighbors = _Neighbors(keys, cosines, num_items, most=NUM_SUCCESSORS)

    def scores(self, histories: Sequence[Ints]) -> Scores:
        """Return the sum of the similarities to each watched video."""
        return np.stack([self._neighbors.scores(history, np.ones(len(history))) for history in histories])


class Ease:
    """A linear model with a closed form (Steck, 2019), for catalogues of up to 20,000 videos."""

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


def _counted(parts: Iterable[Ints]) -> tuple[Ints, Numbers]:
    """Return the distinct numbers of all parts, ascending, and how often each occurs."""
    found: list[tuple[Ints, Numbers]] = [(np.empty(0, np.int64), np.empty(0))]
    for part in parts:
        keys, counts = np.unique(part, return_counts=True)
        found.append((keys, counts.astype(np.float64)))
        if sum(len(keys) for keys, _ in found[1:]) > max(_PAIRS_AT_ONCE, len(found[0][0])):
            found = [_totals(found)]
    return _totals(found)


def _totals(weighted: Sequence[tuple[Ints, Numbers]]) -> tuple[Ints, Numbers]:
    """Return the distinct keys, ascending, and the sum of the weights of each."""
    keys, at = np.unique(np.concatenate([keys for keys, _ in weighted]), return_inverse=True)
    weights = np.concatenate([weights for _, weights in weighted])
    totals: Numbers = np.bincount(at, weights, minlength=len(keys)).astype(np.float64, copy=False)
    return keys, totals
