"""Rank the videos of an index for one query: the vector of its history, the candidates near it, and the final pick."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from raypipe.errors import QueryError
from raypipe.search.ann import Ann
from raypipe.search.filters import Eligible
from raypipe.search.items import Items
from raypipe.search.projection import Projection
from raypipe.search.query import Query
from raypipe.search.vectors import Floats, Positions, Ranked, Vectors, best, dots, widen

HALF_LIFE_DAYS = 30.0
_DAY_SECONDS = 86_400.0
_ALONE = -1

Numbers: TypeAlias = npt.NDArray[np.float64]
Codes: TypeAlias = npt.NDArray[np.integer[Any]]
RECENCY = 0.9  # the weight of a watched video, relative to the next newer one
_SMALLEST = 1e-6  # a shorter mean of unit vectors has no direction
_POOL, _BOOSTED_POOL = (5, 100), (10, 200)  # (factor of top_k, minimum) if more than the cosine decides


@dataclass(frozen=True)
class Caps:
    """Limits per category and per group of near-duplicates, with the category and the group of each candidate."""

    categories: Codes | None = None
    groups: Codes | None = None  # if given, at most one video per group
    max_per_category: int = 1

    def __bool__(self) -> bool:
        return self.categories is not None or self.groups is not None

    def at(self, positions: npt.NDArray[np.int64]) -> "Caps":
        categories, groups = (None if codes is None else codes[positions] for codes in (self.categories, self.groups))
        return Caps(categories, groups, self.max_per_category)

    def blocked(self, picked: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which candidates can no longer be picked: the picked ones, and those that the caps exclude."""
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
    """Score times in seconds: 1 for the newest, halved for every 30 days of age; 0 for an unknown time (NaN)."""
    known = np.where(np.isfinite(published), published, np.nan)
    newest = np.fmax.reduce(known, initial=-np.inf)
    days = (newest - known) / _DAY_SECONDS
    return np.asarray(np.nan_to_num(np.exp2(-days / HALF_LIFE_DAYS), nan=0.0), np.float32)


def percentile_rank(values: Numbers) -> Floats:
    """Return the fraction of numbers that do not exceed each number: 1 for the largest, 0 for NaN."""
    known = np.sort(values[~np.isnan(values)])
    ranks = np.searchsorted(known, values, side="right") / max(1, len(known))
    return np.where(np.isnan(values), 0.0, ranks).astype(np.float32)


def choose(
    relevance: Floats, *, top_k: int, caps: Caps, diversity: float = 0.0, vectors: Floats | None = None
) -> list[int]:
    """Pick at most ``top_k`` candidates one by one, each time the most relevant one that the caps allow.

    With ``diversity``, which needs the ``vectors``, each pick has the highest (1 - diversity) · relevance -
    diversity · cosine to the nearest picked one: the maximal marginal relevance of Carbonell and Goldstein, 1998.
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
    """Exchange picked candidates until there are ``top_k``, or as many as both caps allow together.

    Greedy picking may end with too few: the video that it takes from one group may fill up a category that another
    group needs. Augmenting paths, as in a bipartite matching of groups and categories, find the maximum.
    """
    whole = set(picked)
    if caps.categories is None or caps.groups is None:
        return list(picked)
    while len(whole) < top_k and (exchange := _augment(whole, caps.categories, caps.groups, caps.max_per_category)):
        whole ^= exchange
    return sorted(whole)


def _augment(picked: set[int], categories: Codes, groups: Codes, cap: int) -> set[int] | None:
    """Return the candidates to add or remove so that one more is picked; None if no more can be picked."""
    among = np.fromiter(picked, np.int64, len(picked))
    used = groups[among]
    in_use = np.isin(groups, used[used != _ALONE])
    in_category = Counter(categories[among].tolist())
    if all(in_category[category] >= cap for category in np.unique(categories[in_use]).tolist()):
        return None  # the usual case: no group has a video in a category with room
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


@dataclass(frozen=True)
class HistoryVector:
    """The watched videos ``[H, d]``, the id of each one that is in the index, and the direction ``[d]`` of their mean.

    There is no direction if no watched video is known, or if their vectors cancel out.
    """

    vectors: Floats
    ids: tuple[str | None, ...]
    positions: Positions  # of the watched videos that are in the index
    unknown: tuple[str, ...]
    direction: Floats | None

    @classmethod
    def of(cls, query: Query, *, items: Items, vectors: Vectors, projection: Projection) -> Self:
        """Average the watched videos. Each counts 0.9 times as much as the next newer one, times its own weight.

        Raises:
            QueryError: the embeddings do not have the length that the index requires, or are not finite.
        """
        found = items.positions(query.history)
        known = [number for number, position in enumerate(found) if position is not None]
        positions = np.array([found[number] for number in known], np.int64)
        embedded = np.empty((0, projection.dim), np.float32)
        if query.embeddings is not None:
            given, expected = np.asarray(query.embeddings, np.float32), projection.embedding_dim
            if given.ndim != 2 or given.shape[1] != expected or not np.isfinite(given).all():  # noqa: PLR2004 - a matrix
                msg = f"The embeddings have shape {given.shape}; this index takes rows of {expected} finite numbers."
                raise QueryError(msg, key="embeddings", value=given.shape, expected=expected)
            embedded = projection.apply(given)
        watched = np.concatenate([widen(vectors[positions]), embedded])
        return cls(
            vectors=watched,
            ids=(*(query.history[number] for number in known), *(None,) * len(embedded)),
            positions=positions,
            unknown=tuple(dict.fromkeys(one for one, at in zip(query.history, found, strict=True) if at is None)),
            direction=_direction(watched, _weights(query.weights, known, len(found), len(embedded))),
        )

    def closest(self, vectors: Vectors, positions: Positions) -> tuple[list[str | None], list[float | None]]:
        """Return the watched video closest to the vector at each position, and their exact cosine."""
        if not len(self.vectors) or not len(positions):
            return [None] * len(positions), [None] * len(positions)
        cosines = np.einsum("ij,kj->ik", widen(vectors[positions]), self.vectors)
        ids = [self.ids[number] for number in cosines.argmax(axis=1).tolist()]
        return ids, np.minimum(cosines.max(axis=1), 1).tolist()  # float16 makes some slightly longer than one


def _weights(weights: tuple[float, ...] | None, known: list[int], num_watched: int, num_embedded: int) -> Floats:
    """Return the weights of the known videos in the history, then of the embeddings. The largest weight is 1."""
    places = np.array([*known, *range(num_watched, num_watched + num_embedded)], np.int64)
    given = np.ones(num_watched + num_embedded)
    given[:num_watched] = 1 if weights is None else weights
    decayed = given[places] * RECENCY ** (places.max(initial=0) - places)
    return np.asarray(decayed / (decayed.max(initial=0) or 1), np.float32)


def _direction(vectors: Floats, weights: Floats) -> Floats | None:
    total: Floats = np.einsum("i,ij->j", weights, vectors)
    length = np.sqrt(np.einsum("i,i->", total, total))
    return total / length if length > _SMALLEST else None


@dataclass(frozen=True)
class Ranking:
    """A source of candidates: a value per video of an index, and all positions in descending order of their values."""

    boosted: ClassVar[bool] = False
    values: Floats  # [N]
    order: Positions  # [N]

    @classmethod
    def of(cls, values: Floats) -> Self:
        """Rank all videos by their values. Of equal values, the lowest position comes first."""
        return cls(values, np.argsort(-values, kind="stable"))

    def first(self, count: int, eligible: Eligible | None) -> Positions:
        """Return the first ``count`` eligible positions, or as many as there are."""
        if eligible is None:
            return self.order[:count]
        found: list[Positions] = []
        missing, start, rows = min(count, eligible.count), 0, 2 * count
        while missing > 0:
            some = self.order[start : start + rows]
            found.append(some[eligible.contains(some)][:missing])
            missing -= len(found[-1])
            start, rows = start + rows, 2 * rows
        return np.concatenate([np.empty(0, np.int64), *found])

    def draw(self, count: int, eligible: Eligible | None) -> Ranked:
        """Return the values and positions of the first ``count`` eligible videos, or as many as there are."""
        positions = self.first(count, eligible)
        return self.values[positions], positions

    def score(self, positions: Positions) -> Floats:
        return self.values[positions]


@dataclass(frozen=True)
class Boost:
    """A ranking whose values are multiplied by a weight and added to the cosine."""

    weight: float
    ranking: Ranking

    def of(self, positions: Positions) -> Floats:
        return np.float32(self.weight) * self.ranking.values[positions]


class Nearest:
    """A source of candidates like ``Ranking``: their value is the cosine with a direction ``[d]``, plus boosts."""

    def __init__(self, ann: Ann, vectors: Vectors, direction: Floats, boosts: Mapping[str, Boost]) -> None:
        self._ann = ann
        self._vectors = vectors
        self._direction = direction
        self._boosts = boosts.values()
        self.boosted = bool(boosts)

    def draw(self, count: int, eligible: Eligible | None) -> Ranked:
        """Return at least ``count`` eligible videos, or all if there are fewer, most relevant first.

        Without boosts, these are the most relevant videos. With boosts, they are a pool of the ``count`` nearest videos
        and the first ``count`` of each boost; it may miss videos that are more relevant than some of its own.
        """
        scores, positions = self._ann.nearest(self._direction, top_k=count, eligible=eligible)
        if not self.boosted:
            return scores, positions
        firsts = [boost.ranking.first(count, eligible) for boost in self._boosts]
        pool = np.unique(np.concatenate([positions, *firsts]))
        return best(self.score(pool), pool, len(pool))

    def score(self, positions: Positions) -> Floats:
        scores = dots(self._vectors, positions, self._direction)
        for boost in self._boosts:
            scores += boost.of(positions)
        return scores


Candidates: TypeAlias = Nearest | Ranking


def pick(
    candidates: Candidates, vectors: Vectors, *, top_k: int, eligible: Eligible | None, caps: Caps, diversity: float
) -> Ranked:
    """Return exactly ``top_k`` videos, or as many as are eligible and the caps allow.

    Without caps, diversity and boosts, these are the most relevant videos. Otherwise, they come from a pool of the
    5 · ``top_k`` (at least 100) most relevant videos. With boosts, the pool is the 10 · ``top_k`` (at least 200)
    nearest videos and as many of the first videos of each boost. With ``diversity``, the results are in the order in
    which they were picked.
    """
    count = len(vectors) if eligible is None else eligible.count
    times, least = _BOOSTED_POOL if candidates.boosted else _POOL
    wanted = max(times * top_k, least) if caps or diversity or candidates.boosted else top_k
    scores, positions = candidates.draw(wanted, eligible)
    if not caps and not diversity:
        return scores[:top_k], positions[:top_k]
    while True:
        rows = widen(vectors[positions]) if diversity else None
        chosen = choose(scores, top_k=top_k, caps=caps.at(positions), diversity=diversity, vectors=rows)
        if len(chosen) >= min(top_k, count) or not caps:
            return scores[chosen], positions[chosen]
        mask = ~caps.blocked(positions[chosen])
        if eligible is not None:
            mask &= eligible.mask()
        mask[positions] = False
        rest = Eligible.of(mask)
        if not rest.count:
            return _completed(candidates, positions, chosen, top_k=top_k, eligible=eligible, caps=caps)
        wanted *= 2
        more_scores, more = candidates.draw(wanted, rest)
        scores, positions = np.concatenate([scores, more_scores]), np.concatenate([positions, more])
        scores, positions = best(scores, positions, len(positions))


def _completed(
    candidates: Candidates, pool: Positions, chosen: list[int], *, top_k: int, eligible: Eligible | None, caps: Caps
) -> Ranked:
    """Return the chosen videos, or more if exchanging some of them for other eligible videos makes that possible."""
    if caps.categories is not None and caps.groups is not None:
        everything = np.arange(len(caps.groups)) if eligible is None else eligible.positions()
        reachable = np.concatenate([pool, np.setdiff1d(everything, pool, assume_unique=True)])
        whole = complete(chosen, top_k=top_k, caps=caps.at(reachable))
        if len(whole) > len(chosen):
            positions = reachable[whole]
            return best(candidates.score(positions), positions, top_k)
    positions = pool[chosen]
    return candidates.score(positions), positions
