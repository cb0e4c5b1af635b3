"""Choose which candidates to recommend, and in what order: pure functions on arrays.

Each candidate has one entry in every array, most relevant first. Categories and groups of near-duplicates are numbers;
-1 is a video without a group. Videos without a category count as one more category.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from raypipe.search.vectors import Floats

HALF_LIFE_DAYS = 30.0
_DAY_SECONDS = 86_400.0
_ALONE = -1

Numbers: TypeAlias = npt.NDArray[np.float64]
Codes: TypeAlias = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Caps:
    """Limits per category and per group of near-duplicates, with the category and the group of each candidate."""

    categories: Codes | None = None
    groups: Codes | None = None  # if given, at most one video per group
    max_per_category: int = 1

    def __bool__(self) -> bool:
        return self.categories is not None or self.groups is not None

    def at(self, positions: npt.NDArray[np.int64]) -> "Caps":
        """Return the same limits for some of the candidates."""
        categories, groups = (None if codes is None else codes[positions] for codes in (self.categories, self.groups))
        return Caps(categories, groups, self.max_per_category)

    def blocked(self, picked: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which candidates may not be picked in addition to the picked ones."""
        chosen = np.asarray(picked, np.int64)
        size = len(next(codes for codes in (self.categories, self.groups) if codes is not None))
        closed = np.zeros(size, np.bool_)
        closed[chosen] = True
        if self.categories is not None:
            codes, counts = np.unique(self.categories[chosen], return_counts=True)
            closed |= np.isin(self.categories, codes[counts >= self.max_per_category])
        if self.groups is not None:
            used = self.groups[chosen]
            closed |= np.isin(self.groups, used[used != _ALONE])
        return closed


def freshness(published: Numbers) -> Floats:
    """Score times in seconds: 1 for the newest, half of it for every 30 days before; 0 for no time (NaN)."""
    known = np.where(np.isfinite(published), published, np.nan)
    newest = np.fmax.reduce(known, initial=-np.inf)
    days = (newest - known) / _DAY_SECONDS
    fresh: Floats = np.nan_to_num(np.exp2(-days / HALF_LIFE_DAYS), nan=0.0).astype(np.float32)
    return fresh


def percentile_rank(values: Numbers) -> Floats:
    """Return the fraction of numbers that each one is at least as large as: 1 for the largest, 0 for NaN."""
    known = np.sort(values[~np.isnan(values)])
    ranks = np.searchsorted(known, values, side="right") / max(1, len(known))
    return np.where(np.isnan(values), 0.0, ranks).astype(np.float32)


def choose(
    relevance: Floats, *, top_k: int, caps: Caps, diversity: float = 0.0, vectors: Floats | None = None
) -> list[int]:
    """Pick at most ``top_k`` candidates, one after the other: the most relevant that the caps allow.

    With ``diversity``, which needs the ``vectors``, the next one has the highest (1 - diversity) · relevance -
    diversity · cosine to the nearest one picked: the maximal marginal relevance of Carbonell and Goldstein, 1998.
    """
    allowed = np.ones(len(relevance), np.bool_)
    nearest = np.full(len(relevance), -1, np.float32)
    picked: list[int] = []
    in_category: Counter[int] = Counter()
    while len(picked) < top_k and allowed.any():
        if diversity and picked and vectors is not None:
            nearest = np.maximum(nearest, np.einsum("ij,j->i", vectors, vectors[picked[-1]]))
            worth = (1 - diversity) * relevance - diversity * nearest
            pick = int(np.argmax(np.where(allowed, worth, -np.inf)))
        else:
            pick = int(np.argmax(allowed))
        picked.append(pick)
        allowed[pick] = False
        if caps.categories is not None:
            category = int(caps.categories[pick])
            in_category[category] += 1
            if in_category[category] >= caps.max_per_category:
                allowed &= caps.categories != category
        if caps.groups is not None and (group := caps.groups[pick]) != _ALONE:
            allowed &= caps.groups != group
    return picked


def complete(picked: Sequence[int], *, top_k: int, caps: Caps) -> list[int]:
    """Exchange picked candidates so that more fit, until there are ``top_k``, or as many as both caps allow together.

    Picking one after the other may end with too few: from a group, it may take a video whose category another group
    needs. Augmenting paths, as in a matching of groups with categories, find the maximum.
    """
    whole = set(picked)
    if caps.categories is None or caps.groups is None:
        return list(picked)
    while len(whole) < top_k and (exchange := _augment(whole, caps.categories, caps.groups, caps.max_per_category)):
        whole ^= exchange
    return sorted(whole)


def _augment(picked: set[int], categories: Codes, groups: Codes, cap: int) -> set[int] | None:
    """Return the candidates to add and to remove, one more to add than to remove; None if nothing more fits."""
    among = np.fromiter(picked, np.int64, len(picked))
    used = groups[among]
    in_use = np.isin(groups, used[used != _ALONE])
    in_category = Counter(categories[among].tolist())
    if all(in_category[category] >= cap for category in np.unique(categories[in_use]).tolist()):
        return None  # nearly always: no group has a video in a category with room
    free = ~in_use
    free[among] = False
    codes, firsts = np.unique(categories[free], return_index=True)
    starts = np.flatnonzero(free)[firsts]
    came: dict[int, tuple[int, int | None]] = {int(c): (int(s), None) for c, s in zip(codes, starts, strict=True)}
    queue = list(came)
    for category in queue:
        if in_category[category] < cap:
            return _path_to(category, came, categories)
        for pick in sorted(picked):
            if categories[pick] != category or groups[pick] == _ALONE:
                continue
            for other in np.flatnonzero(groups == groups[pick]).tolist():
                if (elsewhere := int(categories[other])) not in came:
                    came[elsewhere] = (other, pick)
                    queue.append(elsewhere)
    return None


def _path_to(category: int, came: dict[int, tuple[int, int | None]], categories: Codes) -> set[int]:
    exchange: set[int] = set()
    while True:
        added, instead_of = came[category]
        exchange.add(added)
        if instead_of is None:
            return exchange
        exchange.add(instead_of)
        category = int(categories[instead_of])
