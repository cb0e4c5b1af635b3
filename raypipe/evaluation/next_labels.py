"""Choose the videos to label next: those that a classifier is unsure of, and that many other videos resemble."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MAX_CANDIDATES = 8_192  # videos among which the next ones are chosen, with a matrix of their similarities
_NUM_NEIGHBORS = 10  # whose distance is one length in the similarity of two videos
_MIN_STD, _MIN_LENGTH = 1e-4, 1e-12
Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


class NextVideos(NamedTuple):
    """The chosen videos, the most useful one first.

    ``num_similar`` says how many candidates resemble this chosen video more than the other ones.
    """

    rows: Ints
    num_similar: Ints


def uncertainty(probabilities: Floats, *, multi_label: bool) -> Floats:
    """Return how unsure a classifier is of each video, from 0 to 1, for probabilities ``[N, C]``.

    This is 1 minus the difference between the two most probable labels or, with ``multi_label``, between a label and
    its absence, for the label with the smallest difference.
    """
    if multi_label:
        return np.asarray(1 - np.abs(2 * probabilities - 1).min(axis=1))
    if probabilities.shape[1] == 1:
        return np.zeros(len(probabilities))
    top = np.partition(probabilities, -2, axis=1)
    return np.asarray(1 - (top[:, -1] - top[:, -2]))


def draw_candidates(weights: Floats, *, seed: int) -> Ints:
    """Return the rows of at most ``MAX_CANDIDATES`` videos, in order: a video is drawn in proportion to its weight."""
    num_videos = len(weights)
    if num_videos <= MAX_CANDIDATES:
        return np.arange(num_videos)
    keys = np.random.default_rng([seed, 2]).exponential(size=num_videos) / np.maximum(weights, _MIN_LENGTH)
    return np.sort(np.argpartition(keys, MAX_CANDIDATES)[:MAX_CANDIDATES])  # Efraimidis and Spirakis 2006


def choose_next(candidates: Floats, labelled: Floats, weights: Floats, *, count: int) -> NextVideos:
    """Choose ``count`` of the candidates ``[N, F]``, so that each candidate is similar to a chosen or a labelled video.

    A candidate counts as much as its weight ``[N]``. Each step takes the video that raises the sum over all candidates
    the most, of the weight times the similarity to the closest chosen or labelled video (facility location; the greedy
    choice gets at least 63 % of the best possible sum, Nemhauser et al. 1978). The similarity of two videos is a
    Gaussian of their distance.
    """
    mean, std = candidates.mean(axis=0), np.maximum(candidates.std(axis=0), _MIN_STD)
    scaled = ((candidates - mean) / std).astype(np.float32)
    distances = _squared_distances(scaled, scaled)
    nth = min(_NUM_NEIGHBORS, len(scaled) - 1)
    length = max(float(np.median(np.partition(distances, nth, axis=1)[:, nth])), _MIN_LENGTH)
    similar = np.exp(-distances / (2 * length), out=distances)
    covered = np.zeros(len(scaled), np.float32)
    for start in range(0, len(labelled), MAX_CANDIDATES):
        known = ((labelled[start : start + MAX_CANDIDATES] - mean) / std).astype(np.float32)
        closest = np.exp(-_squared_distances(scaled, known).min(axis=1) / (2 * length))
        covered = np.maximum(covered, closest)
    rows = _greedy(similar, covered, weights.astype(np.float32), count=min(count, len(scaled)))
    closest_row = similar[rows].argmax(axis=0) if len(rows) else np.zeros(0, np.int64)
    return NextVideos(rows, np.bincount(closest_row, minlength=len(rows)))


def _greedy(similar: Floats, covered: Floats, weights: Floats, *, count: int) -> Ints:
    """Return the rows of ``similar`` ``[N, N]`` that cover most, in the order of their gain.

    Gains only fall as more is covered, so only a gain that is the largest has to be computed again (Minoux 1978).
    """
    gains = np.array([weights @ np.maximum(row - covered, 0) for row in similar])
    rows: list[int] = []
    while len(rows) < count:
        best = int(gains.argmax())
        gains[best] = weights @ np.maximum(similar[best] - covered, 0)
        if int(gains.argmax()) == best:
            covered = np.maximum(covered, similar[best])
            rows.append(best)
            gains[best] = -np.inf
    return np.array(rows, np.int64)


def _squared_distances(one: Floats, other: Floats) -> Floats:
    squares = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)[None] - 2 * one @ other.T
    return np.asarray(np.maximum(squares, 0, out=squares))
