"""Find labels that are probably wrong, from probabilities of models that have not seen the labels."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MIN_VIDEOS = 5  # with a label, and without it: fewer say too little about what it looks like
Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


class Doubt(NamedTuple):
    """A label that is probably wrong. Labels are numbers.

    ``label`` is None if a label of a multi-label video is probably missing, and ``suggested`` is None if one should be
    removed. ``probability`` is the probability that what is given is right.
    """

    row: int
    label: int | None
    suggested: int | None
    probability: float
    suggested_probability: float


def find_label_errors(probabilities: Floats, given: Ints) -> list[Doubt]:
    """Return the labels that are probably wrong, the least probable one first.

    ``probabilities`` ``[N, C]`` must come from models that were not fitted to the same video. ``given`` are label
    numbers ``[N]`` or, if videos may have several labels, zeros and ones ``[N, C]``: then each label is one question.
    """
    if given.ndim == 1:
        return sorted(_of_one_label(probabilities, given), key=lambda doubt: doubt.probability)
    doubts = []
    for label, (chance, has) in enumerate(zip(probabilities.T, given.T, strict=True)):
        for found in _of_one_label(np.stack([1 - chance, chance], axis=1), has.astype(np.int64)):
            label_is_given = found.label == 1
            names = (label, None) if label_is_given else (None, label)
            doubts.append(Doubt(found.row, *names, found.probability, found.suggested_probability))
    return sorted(doubts, key=lambda doubt: doubt.probability)


def checked_labels(given: Ints, num_labels: int) -> npt.NDArray[np.bool_]:
    """Return which labels ``[C]`` have enough videos to be checked."""
    if given.ndim == 1:
        return np.bincount(given, minlength=num_labels) >= MIN_VIDEOS
    counts = given.sum(axis=0)
    return np.asarray((counts >= MIN_VIDEOS) & (len(given) - counts >= MIN_VIDEOS))


def _of_one_label(probabilities: Floats, given: Ints) -> Iterator[Doubt]:
    """Yield the doubts about videos that have exactly one label each.

    Confident learning (Northcutt et al. 2021, arXiv:1911.00068) says how many: a video counts if the probability of
    another label reaches the mean probability of that label among the videos that have it, and if no other label that
    does so is more probable. These many are taken from the videos whose label is not the most probable one: those whose
    given label is the least probable.
    """
    checked = checked_labels(given, probabilities.shape[1])
    if checked.sum() < 2:  # noqa: PLR2004 - a label, and another that could be right
        return
    everyone = np.arange(len(given))
    own = probabilities[everyone, given]
    thresholds = np.full(probabilities.shape[1], np.inf)
    thresholds[checked] = [own[given == label].mean() for label in np.flatnonzero(checked)]
    confident = np.where(probabilities >= thresholds, probabilities, -1)
    best = confident.argmax(axis=1)
    is_off = (confident.max(axis=1) >= 0) & (best != given) & checked[given]
    others = np.where(checked, probabilities, -1)
    others[everyone, given] = -1
    suggested = others.argmax(axis=1)
    chances = others.max(axis=1)
    doubtful = np.flatnonzero((chances > own) & checked[given])
    for row in doubtful[np.argsort(own[doubtful], kind="stable")][: is_off.sum()].tolist():
        yield Doubt(row, int(given[row]), int(suggested[row]), float(own[row]), float(chances[row]))
