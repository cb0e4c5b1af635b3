"""What is asked of an index, and what it answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Value = str | int | float | bool
Operator = Literal["gt", "gte", "lt", "lte"]
FilterValue = Value | Sequence[Value] | Mapping[str, Value]  # equal to · one of · between, by operators
Filters = Mapping[str, FilterValue]
Fallback = Literal["popular"]


@dataclass(frozen=True, slots=True)
class Query:
    """Which videos to recommend; every option of the ranking is off unless it is given.

    ``history`` are ids of watched videos, the newest last; ``embeddings`` ``[M, D]`` are watched videos that the
    catalogue does not hold, newer than those. ``diversity``, ``freshness`` and ``popularity`` go from 0 to 1.
    """

    history: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None  # one for each of the history
    embeddings: npt.NDArray[np.float32] | None = None
    filters: Filters = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    exclude_history: bool = True
    top_k: int = 20
    diversity: float = 0.0
    max_per_category: int | None = None
    category_column: str = "category"
    one_per_duplicate_group: bool = False
    freshness: float = 0.0
    popularity: float = 0.0


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One video, and why: the watched video that it is closest to, with their cosine, and the boosts it got."""

    position: int
    video_id: str
    score: float
    closest: str | None = None
    similarity: float | None = None
    boosts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recommendations:
    """The best first; ``unknown`` are ids of the history that the index does not hold."""

    results: tuple[Recommendation, ...]
    unknown: tuple[str, ...] = ()
    fallback: Fallback | None = None
    num_eligible: int = 0  # by filters and exclusions
