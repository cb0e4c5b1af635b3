"""Queries to an index, and the recommendations that it returns."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from raypipe.config.recommend import RankingConfig, Strategy
from raypipe.errors import QueryError
from raypipe.results import Shown

Value = str | int | float | bool
FilterValue = Value | Sequence[Value] | Mapping[str, Value]  # one value, several, or bounds by gt, gte, lt and lte
Filters = Mapping[str, FilterValue]
Fallback = Literal["popular"]
Used = Literal["ranker", "transitions", "content", "popular"]
Reason = Literal["watched_after", "similar", "popular"]


@dataclass(frozen=True, slots=True)
class Query:
    """A request for recommendations. Every ranking option is off by default.

    ``history`` contains the ids of watched videos, newest last. ``embeddings`` ``[M, D]`` are the embeddings of watched
    videos outside the catalogue. They count as newer than all videos in the history. ``diversity``, ``freshness`` and
    ``popularity`` range from 0 to 1.

    ``strategy`` says how videos are scored: ``content`` by their similarity to the history, ``transitions`` by what
    other users watched after these videos, ``ranker`` by the learned ranker and the transitions together. ``auto`` is
    the last of these that the index supports. ``dislikes`` contains ids of videos: they and their near-duplicates are
    not recommended, and similar videos get lower scores. ``exact`` compares all videos instead of using the index.
    """

    history: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None  # one per video in the history
    embeddings: npt.NDArray[np.float32] | None = None
    filters: Filters = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    exclude_history: bool = True
    dislikes: tuple[str, ...] = ()
    strategy: Strategy = "auto"
    exact: bool = False
    top_k: int = 20
    diversity: float = 0.0
    max_per_category: int | None = None
    category_column: str = "category"
    one_per_duplicate_group: bool = False
    freshness: float = 0.0
    popularity: float = 0.0

    def check(self) -> None:
        """Raise QueryError if a number is out of range, or if the numbers of weights and watched videos differ."""
        for name, number in (("top_k", self.top_k), ("max_per_category", self.max_per_category)):
            if number is not None and number < 1:
                msg = f"{name} is {number}, but must be at least 1."
                raise QueryError(msg, key=name, value=number)
        for name in ("diversity", "freshness", "popularity"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                msg = f"{name} is {value}, but must be from 0 to 1."
                raise QueryError(msg, key=name, value=value)
        if self.weights is None:
            return
        if len(self.weights) != len(self.history):
            found, expected = len(self.weights), len(self.history)
            msg = f"There are {found} weights for {expected} watched videos. Give one weight per video."
            raise QueryError(msg, key="weights", value=found, expected=expected)
        if wrong := [weight for weight in self.weights if not 0 <= weight < math.inf]:
            msg = f"A weight is {wrong[0]}, but weights must be finite and at least 0."
            raise QueryError(msg, key="weights", value=wrong[0])


def query_of(ranking: RankingConfig, history: tuple[str, ...]) -> Query:
    """Return the query for one user. The endpoint builds the same query from the same options."""
    return Query(history=history, **dict(ranking))


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A recommended video, its score, and the reasons for the recommendation.

    ``closest`` is the id of the most similar watched video, and ``similarity`` is the cosine between the two videos.
    ``boosts`` maps the name of each boost to its share of the score. ``reason`` is the reason that people
    understand best: ``watched_after``, ``similar`` or ``popular``. If at least five users watched this video after
    one in the history, ``after`` is the id of that one, and ``num_users`` is their number.
    """

    position: int
    video_id: str
    score: float
    closest: str | None = None
    similarity: float | None = None
    boosts: Mapping[str, float] = field(default_factory=dict)
    reason: Reason = "similar"
    after: str | None = None
    num_users: int | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Recommendations(Shown):
    """Recommended videos, best first.

    ``unknown`` contains the ids of the history that are not in the index. ``strategy`` is how the videos were scored,
    and ``ranker`` the id of the learned ranker that scored them, if one did.
    """

    results: tuple[Recommendation, ...]
    unknown: tuple[str, ...] = ()
    fallback: Fallback | None = None
    num_eligible: int = 0  # after filters and exclusions
    strategy: Used = "content"
    ranker: str | None = None

    def __iter__(self) -> Iterator[Recommendation]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def shown(self) -> Mapping[str, object]:
        """Return the video ids with their scores, the unknown ids, and the fallback, if one was used."""
        videos = {result.video_id: round(result.score, 4) for result in self.results}
        return {"videos": videos, "strategy": self.strategy, "unknown": list(self.unknown), "fallback": self.fallback}
