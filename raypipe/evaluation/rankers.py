"""The rankers of an evaluation: raypipe's own lists, their controls, and simple baselines."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import faiss
import numpy as np
import numpy.typing as npt

from raypipe.config.evaluate import REQUIREMENT
from raypipe.config.recommend import RankingConfig
from raypipe.errors import ConfigError
from raypipe.evaluation import baselines
from raypipe.evaluation.compare import EXACT, RANDOM, REFERENCES, SHUFFLED, TOWER, Evaluation, Ranker
from raypipe.evaluation.protocols import Split
from raypipe.search.index import VideoIndex
from raypipe.search.query import query_of
from raypipe.search.successors import EASE_MAX_ITEMS, count_successors
from raypipe.search.tower import Tower
from raypipe.search.watch_events import Ints

SERVED = "served"


@dataclass(frozen=True)
class Requirement:
    """A metric in which raypipe's lists must not be measurably worse than a baseline."""

    metric: str
    baseline: str

    @classmethod
    def parse(cls, text: str | None) -> "Requirement | None":
        """Parse a text like ``ndcg@10 >= transitions``, which the configuration has checked."""
        found = None if text is None else REQUIREMENT.fullmatch(text)
        return None if found is None else cls(found[1], found[2])

    def is_met(self, evaluation: Evaluation) -> bool:
        """Return whether the interval of the difference to the baseline is not below 0."""
        return not evaluation.is_worse_than(self.baseline, self.metric)


@contextmanager
def one_search_thread() -> Iterator[None]:
    """Search with one thread: for one query at a time, starting the others takes longer than the search itself."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


class Served:
    """Scores videos as raypipe recommends them: through the index, with its filters, caps and approximate search.

    With ``exact``, the search is exhaustive.
    """

    def __init__(self, index: VideoIndex, ranking: RankingConfig, *, exact: bool = False) -> None:
        self._index = index
        self._ranking = ranking
        self._exact = exact

    def listed(self, history: Ints) -> list[int]:
        """Return the positions of the recommended videos, best first."""
        ids = tuple(map(self._index.items.video_id, history.tolist()))
        query = replace(query_of(self._ranking, ids), exact=self._exact)
        positions: list[int] = self._index.rank(query).positions.tolist()
        return positions

    def scores(self, histories: Sequence[Ints]) -> npt.NDArray[np.float32]:
        """Return one score per position in the list of each history, and -inf for videos that are not in the list."""
        scores = np.full((len(histories), len(self._index)), -np.inf, np.float32)
        for row, history in zip(scores, histories, strict=True):
            listed = self.listed(history)
            row[listed] = -np.arange(len(listed), dtype=np.float32)
        return scores


class Shuffled:
    """Gives each history to another ranker in a random order. The seed makes the orders reproducible."""

    def __init__(self, ranker: Ranker, *, seed: int) -> None:
        self._ranker = ranker
        self._random = np.random.default_rng(seed)

    def scores(self, histories: Sequence[Ints]) -> npt.NDArray[np.float32]:
        """Return the scores of the other ranker."""
        return self._ranker.scores([self._random.permutation(history) for history in histories])


class TowerAlone:
    """Scores every video by the learned ranker alone, without counted successors and without approximate search."""

    def __init__(self, tower: Tower) -> None:
        self._tower = tower

    def scores(self, histories: Sequence[Ints]) -> npt.NDArray[np.float32]:
        """Return the logits of all videos after each history; zeros for an empty one."""
        scores = np.zeros((len(histories), len(self._tower.vectors)), np.float32)
        everything = np.arange(len(self._tower.vectors))
        for row, history in zip(scores, histories, strict=True):
            if len(history):
                row[:] = self._tower.logits(everything, self._tower.state(history))
        return scores


def fit_rankers(
    index: VideoIndex,
    split: Split,
    *,
    ranking: RankingConfig,
    controls: bool,
    require: Requirement | None,
    seed: int,
) -> dict[str, Ranker]:
    """Fit every ranker.

    Raises:
        ConfigError: ``require`` names no baseline. Nothing is fitted then.
    """
    train, num_items, vectors = split.train, len(index), np.asarray(index.vectors)
    rankers: dict[str, Callable[[], Ranker]] = {
        SERVED: partial(Served, index, ranking),
        RANDOM: partial(baselines.Random, num_items, seed=seed),
        "popular": partial(baselines.Popular, train, num_items),
        "content_last": partial(baselines.Content, vectors, pooling="last"),
        "content_mean": partial(baselines.Content, vectors, pooling="mean"),
        "content_max": partial(baselines.Content, vectors, pooling="max"),
        "item_knn": partial(count_successors, "item_knn", train, num_items=num_items),
    }
    if train.times is not None:
        rankers["popular_7_days"] = partial(baselines.Popular, train, num_items, days=7)
    if train.is_ordered:
        rankers["transitions"] = partial(count_successors, "transitions", train, num_items=num_items)
    if num_items <= EASE_MAX_ITEMS:
        rankers["ease"] = partial(baselines.Ease, train, num_items)
    if index.watched.tower is not None:
        rankers[TOWER] = partial(TowerAlone, index.watched.tower)
    if controls:
        rankers[EXACT] = partial(Served, index, ranking, exact=True)
        if split.known.is_ordered:
            rankers[SHUFFLED] = partial(Shuffled, Served(index, ranking), seed=seed)
    compared = {*rankers} - {SERVED} - REFERENCES
    if require is not None and require.baseline not in compared:
        msg = f"require names {require.baseline!r}, which is not a baseline of this evaluation."
        raise ConfigError(msg, key="require", value=require.baseline, choices=sorted(compared))
    return {name: fit() for name, fit in rankers.items()}
