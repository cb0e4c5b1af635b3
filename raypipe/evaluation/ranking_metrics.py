"""Ranking metrics over a full catalogue, with paired bootstrap intervals.

Rankings are complete: each target is ranked among all videos that the user has not watched. Videos with equal scores
share their expected rank, so that a ranker gains nothing from ties.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
NUM_RESAMPLES = 1000
_CHUNK = 50  # resamples at a time


def expected_ranks(scores: npt.NDArray[np.floating], is_excluded: npt.NDArray[np.bool_], targets: Ints) -> Floats:
    """Return the rank of each target among the N videos that are scored for one user.

    Ranks start at 1. Videos with equal scores share their mean rank.

    Args:
        scores: The score of each video, [N]; NaN counts as the lowest score.
        is_excluded: The videos that are not ranked, [N].
        targets: The positions of the videos to predict.
    """
    known = np.where(np.isnan(scores), -np.inf, scores)
    ranked, wanted = known[~is_excluded], known[targets][:, None]
    num_higher, num_equal = (ranked > wanted).sum(axis=1), (ranked == wanted).sum(axis=1)
    return np.asarray(num_higher + (num_equal + 1) / 2)


def user_metrics(ranks: Floats, *, ks: Sequence[int]) -> dict[str, float]:
    """Return the metrics of one user from the ranks of the targets.

    ``hr@k`` is 1 if a target is among the first k, ``recall@k`` the fraction of targets there, and ``ndcg@k`` the
    discounted gain relative to the best order (Järvelin and Kekäläinen, 2002). ``mrr`` is 1 / rank of the best target.
    """
    found = {"mrr": 1 / float(ranks.min())}
    gains = 1 / np.log2(1 + ranks)
    for k in ks:
        hit = ranks <= k
        ideal = (1 / np.log2(2 + np.arange(min(k, len(ranks))))).sum()
        found |= {
            f"hr@{k}": float(hit.any()),
            f"recall@{k}": float(hit.mean()),
            f"ndcg@{k}": float(gains[hit].sum() / ideal),
        }
    return found


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over users and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Self:
        """Return a number that is no mean over users and has no interval: both ends equal it."""
        return cls(value, value, value)


def intervals(values: Mapping[str, Floats], *, seed: int = 0) -> dict[str, Interval]:
    """Return the mean of each series of one value per user, with intervals from the same resamples of users.

    A user without a value has NaN and does not count. A series without any value has no result.
    """
    known = {name: series for name, series in values.items() if np.isfinite(series).any()}
    if not known:
        return {}
    matrix = np.stack([*known.values()], axis=1)
    return dict(zip(known, _intervals(_mean(matrix), _resampled_means(matrix, seed=seed)), strict=True))


def ratios(values: Mapping[str, Floats], divisor: Floats, *, seed: int = 0) -> dict[str, Interval]:
    """Return the mean of each series divided by the mean of ``divisor``, with intervals as ``intervals`` computes them.

    There are no results if the mean of ``divisor`` is 0 or unknown.
    """
    known = {name: series for name, series in values.items() if np.isfinite(series).any()}
    if not known or not np.nansum(divisor) > 0:
        return {}
    matrix = np.stack([divisor, *known.values()], axis=1)
    exact, means = _mean(matrix), _resampled_means(matrix, seed=seed)
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may have no user with a value
        resampled = means[:, 1:] / means[:, :1]
    resampled[~np.isfinite(resampled)] = np.nan
    return dict(zip(known, _intervals(exact[1:] / exact[0], resampled), strict=True))


def _intervals(exact: Floats, resampled: Floats) -> list[Interval]:
    low, high = np.nanquantile(resampled, (0.025, 0.975), axis=0)
    return [Interval(*map(float, row)) for row in zip(exact, low, high, strict=True)]


def _mean(matrix: Floats) -> Floats:
    means: Floats = np.nanmean(matrix, axis=0)
    return means


def _resampled_means(matrix: Floats, *, seed: int) -> Floats:
    """Return the mean of each column in each resample of the rows. Rows with NaN in a column do not count there."""
    num_users = len(matrix)
    is_known = np.isfinite(matrix).astype(np.float64)
    numbers = np.where(is_known > 0, matrix, 0)
    random = np.random.default_rng(seed)
    means = []
    for _ in range(0, NUM_RESAMPLES, _CHUNK):
        drawn = random.integers(0, num_users, (_CHUNK, num_users))
        counts = np.stack([np.bincount(row, minlength=num_users) for row in drawn]).astype(np.float64)
        with np.errstate(invalid="ignore"):
            means.append((counts @ numbers) / (counts @ is_known))
    return np.concatenate(means)


def gini(counts: Ints) -> float:
    """Return how unequally recommendations are spread over N videos: 0 if equally, (N - 1) / N if all are of one."""
    ordered = np.sort(counts)
    total = ordered.sum()
    if not total:
        return 0.0
    size = len(ordered)
    return float(2 * (np.arange(1, size + 1) * ordered).sum() / (size * total) - (size + 1) / size)
