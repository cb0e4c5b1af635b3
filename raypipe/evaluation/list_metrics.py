"""What the lists of a ranker contain: how popular, unexpected and different the recommended videos are."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from raypipe.evaluation.protocols import Split
from raypipe.evaluation.ranking_metrics import Floats
from raypipe.search.watch_events import Ints

EMPTY = -1  # a place of a list without a video
_USERS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Audience:
    """How many training users watched each video.

    Attributes:
        viewers: The number of viewers of each video, [N].
        surprise: -log2 of the fraction of users who watched each video, with one added to both counts, [N].
        watched: The mean number of viewers of the videos in each test user's history, [U]; NaN for an empty one.
    """

    viewers: Floats
    surprise: Floats
    watched: Floats

    @classmethod
    def of(cls, split: Split, *, num_items: int) -> Self:
        """Count the viewers of the training events."""
        viewers = np.bincount(split.train.items, minlength=num_items).astype(np.float64)
        num_users = int((np.diff(split.train.starts) > 0).sum())
        lengths = np.diff(split.known.starts)
        totals = np.bincount(split.known.users, viewers[split.known.items], minlength=len(lengths))
        with np.errstate(invalid="ignore"):
            means = totals / lengths
        return cls(viewers, -np.log2((viewers + 1) / (num_users + 1)), means[split.users])


def mean_in_lists(lists: Ints, values: Floats) -> Floats:
    """Return the mean value of the videos in each list [U, k], and NaN for an empty list."""
    is_video = lists != EMPTY
    with np.errstate(invalid="ignore"):
        means: Floats = np.where(is_video, values[lists], 0).sum(axis=1) / is_video.sum(axis=1)
    return means


def diversity(lists: Ints, vectors: npt.NDArray[np.floating]) -> Floats:
    """Return the mean of 1 - cosine over the pairs of videos in each list [U, k], and NaN for fewer than two videos."""
    found = np.full(len(lists), np.nan)
    for start in range(0, len(lists), _USERS_AT_ONCE):
        some = lists[start : start + _USERS_AT_ONCE]
        rows = vectors[some].astype(np.float32)
        norms = np.linalg.norm(rows, axis=2, keepdims=True)
        rows /= np.maximum(norms, np.finfo(np.float32).tiny)
        rows[some == EMPTY] = 0
        count = (some != EMPTY).sum(axis=1)
        squares = np.einsum("ukd,ukd->u", rows, rows)
        sums = rows.sum(axis=1)
        cosines = np.einsum("ud,ud->u", sums, sums) - squares  # the sum over ordered pairs
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = cosines / (count * (count - 1))
        found[start : start + _USERS_AT_ONCE] = np.where(count > 1, 1 - mean, np.nan)
    return found
