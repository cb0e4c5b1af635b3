"""Rankers that recommend as the endpoint does, and users with the lists that it would show them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import faiss
import numpy as np
import numpy.typing as npt

from raypipe.config.recommend import RankingConfig
from raypipe.evaluation.compare import Ranker
from raypipe.evaluation.protocols import Split
from raypipe.records import ExampleUser, ListedVideo
from raypipe.search.index import VideoIndex
from raypipe.search.items import TITLE
from raypipe.search.query import query_of
from raypipe.search.watch_events import Ints

NUM_EXAMPLES, NUM_SHOWN = 12, 6  # users, and videos of their history and list


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
        return [found.position for found in self._index.recommend(query)]

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


def example_users(index: VideoIndex, served: Served, split: Split, *, seed: int) -> tuple[ExampleUser, ...]:
    """Draw test users, and return what they watched, what is recommended to them, and what they watched next."""
    count = min(NUM_EXAMPLES, len(split.users))
    drawn = np.sort(np.random.default_rng(seed).choice(split.users, count, replace=False))
    return tuple(_example(index, served, split, user) for user in drawn.tolist())


def _example(index: VideoIndex, served: Served, split: Split, user: int) -> ExampleUser:
    history, targets = split.known.history(user), split.targets.history(user).tolist()
    listed = served.listed(history)

    def videos(positions: Sequence[int]) -> tuple[ListedVideo, ...]:
        return tuple(_video(index, position, is_target=position in targets) for position in positions)

    return ExampleUser(
        history=videos(history[-NUM_SHOWN:].tolist()),
        listed=videos(listed[:NUM_SHOWN]),
        targets=videos(targets[:NUM_SHOWN]),
        place=next((place for place, position in enumerate(listed, start=1) if position in targets), None),
        num_watched=len(history),
        num_listed=len(listed),
    )


def _video(index: VideoIndex, position: int, *, is_target: bool) -> ListedVideo:
    title = index.items.row(position).get(TITLE)
    name = title if isinstance(title, str) and title.strip() else index.items.video_id(position)
    return ListedVideo(name=name, thumbnail=index.items.thumbnail(position), is_target=is_target)
