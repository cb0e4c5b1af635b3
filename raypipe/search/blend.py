"""Score videos by what users watched next: a learned ranker, counted successors, or both."""

import numpy as np

from raypipe.search.filters import Eligible
from raypipe.search.ranking import Nearest
from raypipe.search.successors import Successors
from raypipe.search.tower import Tower
from raypipe.search.vectors import Floats, Positions, Ranked, best
from raypipe.search.watch_events import Numbers

_POOL = 200  # how many videos the ranker proposes at least
_NEW = 50  # how many neighbors by content are candidates, too, if the ranker knows nothing of new videos
_DECADES = 3.0  # a video with a thousandth of the probability of the best one scores 0
_TIE = 1e-6  # the weight of the content, which decides where the rest is equal
_NOTHING = np.float64(np.finfo(np.float64).tiny)


class Blend:
    """A source of candidates like ``Nearest``, for one history.

    The probability of a video is (1 - weight) · softmax of the ranker + weight · share of the successors, both over the
    candidates. Its score is 1 for the most probable candidate, and falls by 1 with each factor of 1,000. So a score has
    the scale of a cosine, and boosts, diversity and dislikes mean the same as without a ranker.
    """

    def __init__(
        self,
        content: Nearest,
        *,
        history: Positions,
        tower: Tower | None,
        state: Floats | None,
        successors: Successors | None,
        weight: float,
        top_k: int,
        eligible: Eligible | None,
    ) -> None:
        """Take the history, and the share of the successors, ``weight``, from 0 to 1. Without a tower, it is 1."""
        self._content, self._tower, self._state = content, tower, state
        self._weight = weight if tower is not None else 1.0
        self._tells_apart = tower is not None and tower.reads_content
        self.boosted = content.boosted
        self._size, self._eligible = max(5 * top_k, _POOL), eligible
        self._next, self._counts = np.empty(0, np.int64), np.empty(0, np.float32)
        if successors is not None and self._weight:
            self._next, self._counts = self._most_counted(*successors.score(history))
        self._first = self._pool(self._size, eligible)
        logits, shares = self._logits(self._first), self._shares(self._first)
        self._log_total, self._total = _log_sum(logits), float(shares.sum()) or 1.0
        self._first_probabilities = self._blended(self._first, logits, shares)
        self._highest = float(self._first_probabilities.max(initial=0)) or 1.0

    def _most_counted(self, following: Positions, counts: Floats) -> tuple[Positions, Floats]:
        """Return the eligible successors with the largest counts, by position; all of them in exact search."""
        if self._eligible is not None:
            is_eligible = self._eligible.contains(following)
            following, counts = following[is_eligible], counts[is_eligible]
        if len(following) <= self._size or self._content.exact:
            return following, counts
        kept = np.sort(np.argpartition(-counts, self._size)[: self._size])
        return following[kept], counts[kept]

    def draw(self, count: int, eligible: Eligible | None) -> Ranked:
        """Return the scores and positions of at least ``count`` eligible videos, or of all, most relevant first."""
        if count <= self._size and eligible is self._eligible:
            return best(self._scores(self._first, self._first_probabilities), self._first, len(self._first))
        pool = self._pool(max(count, self._size), eligible)
        return best(self.score(pool), pool, len(pool))

    def score(self, positions: Positions) -> Floats:
        """Return the scores of some videos, which do not depend on each other."""
        return self._scores(positions, self._blended(positions, self._logits(positions), self._shares(positions)))

    def _scores(self, positions: Positions, probabilities: Numbers) -> Floats:
        relative = np.maximum(probabilities / self._highest, _NOTHING)
        return self._content.adjusted((1 + np.log10(relative) / _DECADES).astype(np.float32), positions)

    def _pool(self, count: int, eligible: Eligible | None) -> Positions:
        """Return the candidates: at least ``count`` eligible videos, or all."""
        following = self._next if eligible is None else self._next[eligible.contains(self._next)]
        parts = [following]
        if self._tower is not None and self._state is not None:
            parts.append(self._tower.nearest(self._state, count, eligible))
            count = 0 if self._tells_apart else _NEW
        if count:
            parts.append(self._content.near(count, eligible, num_interests=1))
        parts += self._content.boosted_first(count, eligible)
        return np.unique(np.concatenate(parts))

    def _logits(self, positions: Positions) -> Numbers:
        if self._tower is None or self._state is None:
            return np.full(len(positions), -np.inf)
        return self._tower.logits(positions, self._state).astype(np.float64)

    def _shares(self, positions: Positions) -> Numbers:
        """Return the counts of the successors at some positions; 0 for a video that nobody watched next."""
        if not len(self._next):
            return np.zeros(len(positions))
        at = np.minimum(np.searchsorted(self._next, positions), len(self._next) - 1)
        return np.where(self._next[at] == positions, self._counts[at], 0).astype(np.float64)

    def _blended(self, positions: Positions, logits: Numbers, shares: Numbers) -> Numbers:
        """Return the probabilities of videos with these logits and shares.

        Content adds a little, which decides between videos that the ranker and the successors cannot tell apart.
        """
        learned = np.exp(logits - self._log_total)
        found: Numbers = (1 - self._weight) * learned + self._weight / self._total * shares
        if not self._tells_apart:
            found += _TIE * (1 + self._content.cosines(positions, num_interests=1).astype(np.float64)) / 2
        return found


def _log_sum(logits: Numbers) -> float:
    """Return the logarithm of the sum of the exponentials; 0 without any."""
    highest = float(logits.max(initial=-np.inf))
    return highest + float(np.log(np.exp(logits - highest).sum())) if np.isfinite(highest) else 0.0
