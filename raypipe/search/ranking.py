"""Rank the videos of an index for one query: average its history, draw candidates, and pick the results."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from raypipe.errors import QueryError
from raypipe.search.ann import Ann
from raypipe.search.filters import Eligible, eligible_positions
from raypipe.search.items import Items
from raypipe.search.projection import Projection
from raypipe.search.query import Query
from raypipe.search.vectors import Floats, Positions, Ranked, Vectors, best, dots_of_each, widen

HALF_LIFE_DAYS = 30.0
_DAY_SECONDS = 86_400.0
_ALONE = -1

Numbers: TypeAlias = npt.NDArray[np.float64]
Codes: TypeAlias = npt.NDArray[np.integer[Any]]
RECENCY = 0.5  # the weight of a watched video relative to the next newer video
MAX_INTERESTS = 4
_INTEREST_COSINE = 0.3  # a watched video with a smaller cosine to every interest starts another one
_NEWEST = 50  # videos of a history that make its interests
_DISLIKE = 0.5  # how much a score falls for a video that is equal to a disliked one
_SMALLEST = 1e-6  # if the weighted sum of unit vectors is shorter, it has no direction
_POOL, _BOOSTED_POOL = (5, 100), (10, 200)  # pool size as (factor of top_k, minimum)


@dataclass(frozen=True)
class Caps:
    """Limits on the number of results per category and per group of near-duplicates.

    ``categories`` and ``groups`` contain the category and the group of each candidate. None means no limit.
    """

    categories: Codes | None = None
    groups: Codes | None = None  # -1 for a candidate without a group; at most one video per group is allowed
    max_per_category: int = 1

    def __bool__(self) -> bool:
        return self.categories is not None or self.groups is not None

    def at(self, positions: npt.NDArray[np.int64]) -> "Caps":
        categories, groups = (None if codes is None else codes[positions] for codes in (self.categories, self.groups))
        return Caps(categories, groups, self.max_per_category)

    def blocked(self, picked: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return a mask of the candidates that can no longer be picked: already picked, or excluded by the caps."""
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
    """Score publication times in seconds by their age.

    The newest time gets 1, and the score halves every 30 days. An unknown time (NaN) gets 0.
    """
    known = np.where(np.isfinite(published), published, np.nan)
    newest = np.fmax.reduce(known, initial=-np.inf)
    days = (newest - known) / _DAY_SECONDS
    return np.asarray(np.nan_to_num(np.exp2(-days / HALF_LIFE_DAYS), nan=0.0), np.float32)


def percentile_rank(values: Numbers) -> Floats:
    """Return the percentile rank of each number from 0 to 1: the fraction of numbers that are not larger.

    NaN gets 0.
    """
    known = np.sort(values[~np.isnan(values)])
    ranks = np.searchsorted(known, values, side="right") / max(1, len(known))
    return np.where(np.isnan(values), 0.0, ranks).astype(np.float32)


def choose(
    relevance: Floats, *, top_k: int, caps: Caps, diversity: float = 0.0, vectors: Floats | None = None
) -> list[int]:
    """Pick at most ``top_k`` candidates one by one, and return their indices in the order of picking.

    The candidates must be sorted by relevance, highest first. Each pick is the most relevant candidate that the caps
    allow. With ``diversity``, which requires ``vectors``, each pick instead maximizes (1 - diversity) · relevance -
    diversity · cosine, where cosine is the highest cosine with a candidate that was already picked. This is the maximal
    marginal relevance of Carbonell and Goldstein, 1998.
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
    """Exchange picked candidates for others until ``top_k`` are picked, or as many as both caps allow together.

    Return the indices of the picked candidates. Greedy picking may end with too few: the video that it takes from one
    group may fill up a category that another group needs. Augmenting paths, as in a bipartite matching of groups and
    categories, find the maximum.
    """
    whole = set(picked)
    if caps.categories is None or caps.groups is None:
        return list(picked)
    while len(whole) < top_k and (exchange := _augment(whole, caps.categories, caps.groups, caps.max_per_category)):
        whole ^= exchange
    return sorted(whole)


def _augment(picked: set[int], categories: Codes, groups: Codes, cap: int) -> set[int] | None:
    """Return the candidates to exchange so that one more is picked, or None if no more can be picked.

    Candidates in the result that are not picked must be added, and candidates that are picked must be removed.
    """
    among = np.fromiter(picked, np.int64, len(picked))
    used = groups[among]
    in_use = np.isin(groups, used[used != _ALONE])
    in_category = Counter(categories[among].tolist())
    if all(in_category[category] >= cap for category in np.unique(categories[in_use]).tolist()):
        return None  # the usual case: no group in use has a video in a category that is not full
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
    """The vectors ``[H, d]`` of the watched videos, their ids, and the interests that they show.

    The id of a video that was given by its embedding is None. ``unknown`` contains the ids that are not in the index.
    There is no interest if no watched video is known, or if the vectors cancel out.
    """

    vectors: Floats
    ids: tuple[str | None, ...]
    positions: Positions  # of the watched videos that are in the index
    unknown: tuple[str, ...]
    liked: Positions  # of the watched videos that are in the index and whose weight in the query is not 0
    interests: "Interests"

    @classmethod
    def of(cls, query: Query, *, items: Items, vectors: Vectors, projection: Projection) -> Self:
        """Find the interests behind the watched videos.

        The weight of a video is its weight in the query times 0.5 for each newer video.

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
        weights = _weights(query.weights, known, len(found), len(embedded))
        return cls(
            vectors=watched,
            ids=(*(query.history[number] for number in known), *(None,) * len(embedded)),
            positions=positions,
            unknown=tuple(dict.fromkeys(one for one, at in zip(query.history, found, strict=True) if at is None)),
            liked=positions if query.weights is None else positions[np.array(query.weights)[known] > 0],
            interests=Interests.of(watched, weights),
        )

    def closest(self, vectors: Vectors, positions: Positions) -> tuple[list[str | None], list[float | None]]:
        """Return the id of the watched video closest to the vector at each position, and the exact cosines."""
        if not len(self.vectors) or not len(positions):
            return [None] * len(positions), [None] * len(positions)
        cosines = np.einsum("ij,kj->ik", widen(vectors[positions]), self.vectors)
        ids = [self.ids[number] for number in cosines.argmax(axis=1).tolist()]
        return ids, np.minimum(cosines.max(axis=1), 1).tolist()  # float16 makes some vectors longer than one


def _weights(weights: tuple[float, ...] | None, known: list[int], num_watched: int, num_embedded: int) -> Floats:
    """Return the weights of the known videos in the history, then of the embeddings, scaled to a maximum of 1."""
    places = np.array([*known, *range(num_watched, num_watched + num_embedded)], np.int64)
    given = np.ones(num_watched + num_embedded)
    given[:num_watched] = 1 if weights is None else weights
    decayed = given[places] * RECENCY ** (places.max(initial=0) - places)
    return np.asarray(decayed / (decayed.max(initial=0) or 1), np.float32)


@dataclass(frozen=True)
class Interests:
    """Up to four interests: the direction of each ``[M, d]``, and its strength ``[M]``, 1 for the strongest."""

    directions: Floats
    strengths: Floats

    @classmethod
    def of(cls, vectors: Floats, weights: Floats) -> Self:
        """Divide the newest 50 videos into interests, the newest video first.

        A video starts another interest if its cosine with the first video of every interest is below 0.3, as long as
        there are fewer than four. Otherwise it belongs to the nearest one. The direction of an interest is the weighted
        mean of its videos. Its strength is the square root of its weight, relative to the largest.
        """
        kept = np.flatnonzero(weights > 0)[-_NEWEST:]
        vectors, weights = vectors[kept], weights[kept]
        cosines = np.einsum("ij,kj->ik", vectors, vectors)
        firsts: list[int] = []
        is_of = np.zeros((MAX_INTERESTS, len(kept)), np.float32)
        for row in range(len(kept) - 1, -1, -1):
            near = cosines[row, firsts]
            if len(firsts) < MAX_INTERESTS and near.max(initial=-1) < _INTEREST_COSINE:
                firsts.append(row)
                is_of[len(firsts) - 1, row] = 1
            else:
                is_of[near.argmax(), row] = 1
        shares = is_of[: len(firsts)] * weights
        totals: Floats = np.einsum("gi,ij->gj", shares, vectors)
        given = shares.sum(axis=1)
        lengths = np.sqrt(np.einsum("ij,ij->i", totals, totals))
        is_kept = lengths > _SMALLEST  # the vectors of an interest may cancel out
        strengths = np.sqrt(given[is_kept] / given[is_kept].max(initial=0)) if is_kept.any() else given[is_kept]
        return cls(totals[is_kept] / lengths[is_kept, None], strengths.astype(np.float32))

    def __len__(self) -> int:
        return len(self.strengths)


@dataclass(frozen=True)
class Dislikes:
    """Disliked videos, by their vectors ``[K, d]``. They lower the scores of videos near them."""

    all_vectors: Vectors  # of the index, [N, d]
    vectors: Floats

    def of(self, positions: Positions) -> Floats:
        """Return what to subtract from the scores: half of the largest cosine to a disliked video, if it is above 0."""
        cosines = dots_of_each(self.all_vectors, positions, self.vectors)
        lowered: Floats = np.float32(_DISLIKE) * np.maximum(cosines.max(axis=0), 0)
        return lowered


@dataclass(frozen=True)
class Ranking:
    """A source of candidates: the value of every video, and all positions sorted by value, highest first."""

    boosted: ClassVar[bool] = False
    values: Floats  # [N]
    order: Positions  # [N]

    @classmethod
    def of(cls, values: Floats) -> Self:
        """Rank all videos by their values. Equal values are sorted by position."""
        return cls(values, np.argsort(-values, kind="stable"))

    def first(self, count: int, eligible: Eligible | None) -> Positions:
        """Return the positions of the first ``count`` eligible videos, or of all if there are fewer."""
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
        """Return the values and positions of the first ``count`` eligible videos, or of all if there are fewer."""
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
    """A source of candidates like ``Ranking``.

    The value of a video is the largest of its cosines with the interests, times the strength of each, plus boosts.
    """

    def __init__(
        self,
        ann: Ann,
        vectors: Vectors,
        interests: Interests,
        boosts: Mapping[str, Boost],
        *,
        dislikes: Dislikes | None = None,
        exact: bool = False,
    ) -> None:
        """Take the interests. With ``exact``, all videos are compared, instead of those that the index finds."""
        self._ann = ann
        self._vectors = vectors
        self._interests = interests
        self._boosts = boosts.values()
        self._dislikes = dislikes
        self.exact = exact
        self.boosted = bool(boosts) or dislikes is not None

    def draw(self, count: int, eligible: Eligible | None) -> Ranked:
        """Return the values and positions of at least ``count`` eligible videos, most relevant first.

        If fewer videos are eligible, return all of them. Without boosts, these are the most relevant videos. With
        boosts, they are the ``count`` nearest videos together with the first ``count`` videos of each boost. Other
        videos may then be more relevant than some of the returned videos. With ``exact``, the values of all eligible
        videos are computed, so the first ``count`` are always the most relevant videos.
        """
        pool = self.near(count, eligible)
        if not self.boosted:
            return best(self.cosines(pool), pool, count)
        pool = np.unique(np.concatenate([pool, *self.boosted_first(count, eligible)]))
        return best(self.score(pool), pool, len(pool))

    def near(self, count: int, eligible: Eligible | None, *, num_interests: int = MAX_INTERESTS) -> Positions:
        """Return the positions of at least ``count`` eligible videos, or of all, ascending.

        They include those that are nearest to an interest, in terms of ``cosines``. With ``num_interests``, only that
        many interests count, the newest ones. With ``exact``, return all.
        """
        if self.exact:
            return eligible_positions(eligible, len(self._vectors))
        if self._ann.compares_all(count, eligible):  # reads the vectors once for all interests
            everything = eligible_positions(eligible, len(self._vectors))
            return np.sort(best(self.cosines(everything, num_interests=num_interests), everything, count)[1])
        directions, strengths = self._interests.directions, self._interests.strengths
        positions, scores = np.empty(0, np.int64), np.empty(0, np.float32)  # a lower bound of each score
        least = np.float32(-np.inf)  # of the ``count`` best so far
        for number in np.argsort(-strengths[:num_interests], kind="stable").tolist():
            if strengths[number] < least:
                break  # no video of a weaker interest can be better: a cosine is at most 1
            cosines, found = self._ann.nearest(directions[number], top_k=count, eligible=eligible)
            both, place = np.unique(np.concatenate([positions, found]), return_inverse=True)
            known = np.full(len(both), -np.inf, np.float32)
            np.maximum.at(known, place, np.concatenate([scores, strengths[number] * cosines]))
            positions, scores = both, known
            if len(scores) >= count > 0:
                least = np.partition(scores, len(scores) - count)[len(scores) - count]
        return positions

    def cosines(self, positions: Positions, *, num_interests: int = MAX_INTERESTS) -> Floats:
        """Return the largest of the cosines with the interests, times the strength of each, ``[P]``.

        With ``num_interests``, only that many interests count, the newest ones.
        """
        directions = self._interests.directions[:num_interests]
        strengths = self._interests.strengths[:num_interests]
        highest: Floats = (strengths[:, None] * dots_of_each(self._vectors, positions, directions)).max(axis=0)
        return highest

    def score(self, positions: Positions) -> Floats:
        """Return the values of some videos, which do not depend on each other."""
        return self.adjusted(self.cosines(positions), positions)

    def boosted_first(self, count: int, eligible: Eligible | None) -> list[Positions]:
        """Return the positions of the first ``count`` eligible videos of each boost."""
        return [boost.ranking.first(count, eligible) for boost in self._boosts]

    def adjusted(self, scores: Floats, positions: Positions) -> Floats:
        """Return scores with the boosts added and the dislikes subtracted."""
        for boost in self._boosts:
            scores = scores + boost.of(positions)
        return scores if self._dislikes is None else scores - self._dislikes.of(positions)


class Candidates(Protocol):
    """A source of candidates. ``boosted`` says that more must be drawn, because the first ones may not be the best."""

    @property
    def boosted(self) -> bool: ...

    def draw(self, count: int, eligible: Eligible | None) -> Ranked:
        """Return the scores and positions of at least ``count`` eligible videos, or of all, most relevant first."""

    def score(self, positions: Positions) -> Floats:
        """Return the scores of some videos, which do not depend on each other."""


def pick(
    candidates: Candidates, vectors: Vectors, *, top_k: int, eligible: Eligible | None, caps: Caps, diversity: float
) -> Ranked:
    """Return the scores and positions of ``top_k`` videos, or of fewer if not enough are eligible under the caps.

    Without caps, diversity and boosts, these are the most relevant videos. Otherwise, they come from a pool of the
    5 · ``top_k`` (at least 100) most relevant videos. With boosts, the pool consists of the 10 · ``top_k`` (at least
    200) nearest videos and the same number of videos from the top of each boost. With ``diversity``, the results are in
    the order in which they were picked.
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
    """Return the scores and positions of the chosen videos.

    If exchanging some of them for other eligible videos makes room for more results, they are exchanged first.
    """
    if caps.categories is not None and caps.groups is not None:
        everything = eligible_positions(eligible, len(caps.groups))
        reachable = np.concatenate([pool, np.setdiff1d(everything, pool, assume_unique=True)])
        whole = complete(chosen, top_k=top_k, caps=caps.at(reachable))
        if len(whole) > len(chosen):
            positions = reachable[whole]
            return best(candidates.score(positions), positions, top_k)
    positions = pool[chosen]
    return candidates.score(positions), positions
