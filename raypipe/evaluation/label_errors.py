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
            has_label = found.label == 1
            doubts.append(found._replace(label=label if has_label else None, suggested=None if has_label else label))
    return sorted(doubts, key=lambda doubt: doubt.probability)


def checked_labels(given: Ints, num_labels: int) -> npt.NDArray[np.bool_]:
    """Return which labels ``[C]`` have enough videos to be checked."""
    if given.ndim == 1:
        return np.bincount(given, minlength=num_labels) >= MIN_VIDEOS
    counts = given.sum(axis=0)
    return np.asarray((counts >= MIN_VIDEOS) & (len(given) - counts >= MIN_VIDEOS))


def _of_one_label(probabilities: Floats, given: Ints) -> Iterator[Doubt]:
    """Yield the doubts about videos that have exactly one label each.

    A label is doubted if another one is more probable, and if it is at most as probable as it is, on average, for the
    videos that do not have it. Such thresholds of each label's own are those of confident learning (Northcutt et al.
    2021, arXiv:1911.00068). Its rule asks instead whether the other label is as probable as for the videos that have
    it: with a weak model, this also names many videos that the model merely gets wrong.
    """
    checked = checked_labels(given, probabilities.shape[1])
    everyone = np.arange(len(given))
    own = probabilities[everyone, given]
    limits = np.full(probabilities.shape[1], -1.0)
    for label in np.flatnonzero(checked):
        without = probabilities[given != label, label]
        limits[label] = without.mean() if len(without) else -1.0
    others = np.where(checked, probabilities, -1)
    others[everyone, given] = -1
    chances = others.max(axis=1)
    for row in np.flatnonzero((chances > own) & (own <= limits[given])).tolist():
        yield Doubt(row, int(given[row]), int(others[row].argmax()), float(own[row]), float(chances[row]))
