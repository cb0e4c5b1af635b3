"""What a set of p-values says: which are discoveries at a false-discovery rate, and whether they drift over time."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_ALLOWANCE = 0.5  # half of the shift, in standard deviations, that a CUSUM detects fastest
_OVERSHOOT = 1.166  # Siegmund's correction: how far a CUSUM jumps over its threshold
_MAX_THRESHOLD = 100.0


def q_values(p_values: Floats) -> Floats:
    """Return the smallest false-discovery rate at which each p-value is a discovery.

    The procedure is that of Benjamini and Hochberg, 1995: the discoveries at a rate are the p-values whose q-value is
    at most the rate.
    """
    size = len(p_values)
    order = np.argsort(p_values, kind="stable")
    ratios = p_values[order] * size / np.arange(1, size + 1)
    smallest = np.minimum.accumulate(ratios[::-1])[::-1]
    q = np.empty(size, np.float64)
    q[order] = np.minimum(smallest, 1.0)
    return q


def fewest_discoveries(num_tests: int, *, smallest_p_value: float, rate: float) -> int:
    """Return how many of the tests must have the smallest possible p-value before any of them is a discovery."""
    return max(1, math.ceil(num_tests * smallest_p_value / rate - 1e-9))


def normal_scores(p_values: Floats, *, num_scores: int) -> Floats:
    """Return the normal score of each conformal p-value of ``num_scores`` calibration scores: high if it is small.

    A p-value is a multiple of 1 / (``num_scores`` + 1); the score is the normal quantile of the middle of its step, so
    that the scores of uniform p-values have mean 0.
    """
    values, inverse = np.unique(p_values, return_inverse=True)
    middles = values - 0.5 / (num_scores + 1)
    return np.array([-NormalDist().inv_cdf(middle) for middle in middles.tolist()], np.float64)[inverse]


def cusum(scores: Floats, *, allowance: float) -> Floats:
    """Return the cumulative sum of what each score exceeds the allowance by, which is never below 0 (Page, 1954)."""
    path, level = np.empty(len(scores), np.float64), 0.0
    for at, score in enumerate(scores.tolist()):
        level = max(0.0, level + score - allowance)
        path[at] = level
    return path


def drift_threshold(num_videos: int, *, false_alarm_rate: float) -> float:
    """Return the threshold that the CUSUM of this many normal scores exceeds with about this probability.

    It follows from Siegmund's approximation of the mean time until a false alarm ("Sequential Analysis", 1985).
    """
    wanted = max(num_videos, 1) / -math.log1p(-false_alarm_rate)
    low, high = 0.0, _MAX_THRESHOLD
    while high - low > 1e-6:  # noqa: PLR2004 - more digits than matter
        middle = (low + high) / 2
        low, high = (middle, high) if _mean_run_length(middle) < wanted else (low, middle)
    return high


def _mean_run_length(threshold: float) -> float:
    height = 2 * _ALLOWANCE * (threshold + _OVERSHOOT)
    return (math.exp(height) - height - 1) / (2 * _ALLOWANCE**2)


@dataclass(frozen=True, slots=True)
class Drift:
    """The CUSUM of N videos in their order.

    Attributes:
        path: The CUSUM after each video, [N].
        threshold: Above it, the videos as a whole are stranger than the catalogue.
        alarm: The first video above the threshold, or None.
        since: The video after the last one at which the CUSUM was 0 before the alarm: where the drift begins.
    """

    path: Floats
    threshold: float
    alarm: int | None
    since: int | None


def find_drift(p_values: Floats, *, num_scores: int, false_alarm_rate: float) -> Drift:
    """Say since when conformal p-values, in the order of the videos, are smaller than those of the catalogue would be.

    All p-values depend on the same ``num_scores`` calibration scores, and so they have an error in common. The
    allowance includes twice the standard deviation of this error.
    """
    scores = normal_scores(p_values, num_scores=num_scores)
    path = cusum(scores, allowance=_ALLOWANCE + 2 / math.sqrt(num_scores))
    threshold = drift_threshold(len(path), false_alarm_rate=false_alarm_rate)
    above = np.flatnonzero(path > threshold)
    if not len(above):
        return Drift(path, threshold, None, None)
    alarm = int(above[0])
    zeros = np.flatnonzero(path[:alarm] == 0)
    return Drift(path, threshold, alarm, int(zeros[-1]) + 1 if len(zeros) else 0)
