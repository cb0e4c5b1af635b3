"""Where recommendations are picked from: a pool of the most relevant, which grows until the pick is whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from raypipe.search.ann import Ranked
from raypipe.search.conditions import mask_of
from raypipe.search.exact import Floats, Positions, best, dots, widen
from raypipe.search.filters import Eligible
from raypipe.search.rerank import Caps, choose, complete

if TYPE_CHECKING:
    from raypipe.search.index import VideoIndex

_POOL, _BOOSTED_POOL = (5, 100), (10, 200)  # times top_k, and at least: where not the cosine alone decides


class Source(Protocol):
    """Ranks the videos of an index."""

    boosted: bool  # what is drawn may lack some that are more relevant than some of it

    def draw(self, count: int, eligible: Eligible | None) -> Ranked:
        """At least the ``count`` most relevant that are eligible, or as many as there are, the most relevant first."""

    def score(self, positions: Positions) -> Floats:
        """The relevance of some."""


@dataclass(frozen=True)
class Ranking:
    """A number for each video of an index, and all positions by it, the highest first."""

    values: Floats  # [N]
    order: Positions  # [N]

    @classmethod
    def of(cls, values: Floats) -> "Ranking":
        """Rank by some values; of equal ones the lowest position is first."""
        return cls(values, np.argsort(-values, kind="stable"))


@dataclass(frozen=True)
class Boost:
    """A ranking, and how much of it is added to the cosine."""

    weight: float
    ranking: Ranking

    def of(self, positions: Positions) -> Floats:
        """What some videos get."""
        return np.float32(self.weight) * self.ranking.values[positions]


class Nearest:
    """By the cosine to a direction ``[d]``, plus boosts.

    With boosts ``draw`` gives the nearest ``count`` together with the ``count`` that each boost ranks first.
    """

    def __init__(self, index: "VideoIndex", direction: Floats, boosts: Mapping[str, Boost]) -> None:
        self._index = index
        self._direction = direction
        self._boosts = boosts.values()
        self.boosted = bool(boosts)

    def draw(self, count: int, eligible: Eligible | None) -> Ranked:
        """See ``Source``."""
        scores, positions = self._index.ann.nearest(self._direction, top_k=count, eligible=eligible)
        if not self._boosts:
            return scores, positions
        firsts = [first(boost.ranking.order, count, eligible) for boost in self._boosts]
        pool = np.unique(np.concatenate([positions, *firsts]))
        return best(self.score(pool), pool, len(pool))

    def score(self, positions: Positions) -> Floats:
        """See ``Source``."""
        scores = dots(self._index.vectors, positions, self._direction)
        for boost in self._boosts:
            scores += boost.of(positions)
        return scores


class Popular:
    """By a ranking that knows no taste."""

    boosted = False

    def __init__(self, ranking: Ranking) -> None:
        self._ranking = ranking

    def draw(self, count: int, eligible: Eligible | None) -> Ranked:
        """See ``Source``."""
        positions = first(self._ranking.order, count, eligible)
        return self.score(positions), positions

    def score(self, positions: Positions) -> Floats:
        """See ``Source``."""
        return self._ranking.values[positions]


def first(order: Positions, count: int, eligible: Eligible | None) -> Positions:
    """The first ``count`` eligible positions of an order; fewer where there are no more."""
    if eligible is None:
        return order[:count]
    found: list[Positions] = []
    missing, start, rows = min(count, eligible.count), 0, 2 * count
    while missing > 0:
        some = order[start : start + rows]
        found.append(some[eligible.contains(some)][:missing])
        missing -= len(found[-1])
        start, rows = start + rows, 2 * rows
    return np.concatenate([np.empty(0, np.int64), *found])


def pick(
    source: Source,
    vectors: npt.NDArray[np.float16],
    *,
    top_k: int,
    eligible: Eligible | None,
    caps: Caps,
    diversity: float,
) -> Ranked:
    """The scores and positions of exactly ``top_k`` videos wherever so many are eligible and the caps allow them.

    Without caps, diversity and boosts those are the most relevant. With one of them they come from a pool of the
    5 · ``top_k`` (at least 100) most relevant; with boosts from the 10 · ``top_k`` (at least 200) nearest and as many
    that each boost ranks first. With ``diversity`` they are in the order in which they were picked.
    """
    count = len(vectors) if eligible is None else eligible.count
    times, least = _BOOSTED_POOL if source.boosted else _POOL
    wanted = max(times * top_k, least) if caps or diversity or source.boosted else top_k
    scores, positions = source.draw(wanted, eligible)
    if not caps and not diversity:
        return scores[:top_k], positions[:top_k]
    while True:
        rows = widen(vectors[positions]) if diversity else None
        chosen = choose(scores, top_k=top_k, caps=caps.at(positions), diversity=diversity, vectors=rows)
        if len(chosen) >= min(top_k, count) or not caps:
            return scores[chosen], positions[chosen]
        rest = _without(eligible, positions, caps.blocked(positions[chosen]))
        if not rest.count:
            break
        wanted *= 2
        more_scores, more = source.draw(wanted, rest)
        scores, positions = np.concatenate([scores, more_scores]), np.concatenate([positions, more])
        scores, positions = best(scores, positions, len(positions))
    return _completed(source, positions, chosen, top_k=top_k, eligible=eligible, caps=caps)


def _without(eligible: Eligible | None, seen: Positions, blocked: npt.NDArray[np.bool_]) -> Eligible:
    mask = ~blocked
    if eligible is not None:
        mask &= mask_of(eligible.bitmap, eligible.size)
    mask[seen] = False
    return Eligible(np.packbits(mask, bitorder="little"), int(np.count_nonzero(mask)), len(mask))


def _completed(
    source: Source, pool: Positions, chosen: list[int], *, top_k: int, eligible: Eligible | None, caps: Caps
) -> Ranked:
    """What was chosen of the pool, or more by exchanging some of it for others that are eligible."""
    if caps.categories is not None and caps.groups is not None:
        everything = np.arange(len(caps.groups)) if eligible is None else eligible.positions()
        candidates = np.concatenate([pool, np.setdiff1d(everything, pool, assume_unique=True)])
        whole = complete(chosen, top_k=top_k, caps=caps.at(candidates))
        if len(whole) > len(chosen):
            positions = candidates[whole]
            return best(source.score(positions), positions, top_k)
    positions = pool[chosen]
    return source.score(positions), positions
