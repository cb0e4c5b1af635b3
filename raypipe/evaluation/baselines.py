"""Simple recommenders, fitted on watch events: what a learned ranker has to beat."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from raypipe.models.backbones import mean_embedding
from raypipe.search.successors import ease_weights
from raypipe.search.watch_events import Events, Ints

Scores = npt.NDArray[np.float32]
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


class Ease:
    """A linear model with a closed form (Steck, 2019), for catalogues of up to 20,000 videos."""

    def __init__(self, events: Events, num_items: int) -> None:
        self._weights = ease_weights(events, num_items)

    def scores(self, histories: Sequence[Ints]) -> Scores:
        """Return the predictions of the model."""
        return np.stack([self._weights[history].sum(axis=0) for history in histories])
