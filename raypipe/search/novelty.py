"""How unlike the videos of an index another video is, as two scores and one p-value.

The scores are the distance to the nearest videos of the index, and the Mahalanobis length: the distance to the mean of
the index in units of its spread. The p-value is conformal: the fraction of the videos of the index, and of the video
itself, that are at least as strange, where a video of the index is scored against all others. It is uniform for a video
like those of the index, whatever their distribution. See Bates, Candès, Lei, Romano and Sesia, "Testing for outliers
with conformal p-values", 2021.

The projection of an index of few videos fits these videos better than any other video, which would make all p-values
too large. So such an index also holds the embeddings of its videos, and the scores are computed from them.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from raypipe.search.index import VideoIndex
from raypipe.search.projection import shrinkage, unit_length
from raypipe.search.vectors import Floats, Positions, widen

Numbers = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

MIN_VIDEOS = 20  # with fewer, no p-value is 0.05 or less
MAX_SCORED_FRAMES = 64  # of a video; frames between them get no score
_LEARN_FROM = 65_536  # videos that the mean and the spread are computed from
_ROWS, _QUERIES = 8_192, 1_024
_DEFAULT_COSINE = 0.98


@dataclass(frozen=True, slots=True)
class Ellipsoid:
    """The mean ``[r]`` of vectors, and the axes ``[r, r]`` that turn differences to it into units of the spread."""

    mean: Numbers
    axes: Numbers

    def lengths(self, vectors: Floats) -> Numbers:
        """Return the Mahalanobis length of each vector ``[Q, r]``."""
        return np.asarray(np.linalg.norm((vectors - self.mean) @ self.axes, axis=1), np.float64)


def fit_ellipsoid(vectors: Floats, count: int) -> tuple[Ellipsoid, Numbers]:
    """Return the ellipsoid of vectors ``[N, r]``, and the Mahalanobis length of each of the first ``count`` vectors.

    The covariance is shrunk. The length of a vector is measured by the ellipsoid of all others, with the same shrinkage
    (the formula of Sherman and Morrison).
    """
    size = len(vectors)
    mean = vectors.mean(axis=0, dtype=np.float64)
    products = np.zeros((vectors.shape[1], vectors.shape[1]))
    for start in range(0, size, _ROWS):
        centred = vectors[start : start + _ROWS] - mean
        products += centred.T @ centred
    variances, directions = np.linalg.eigh(products / size)
    variances = np.maximum(variances, 0)
    weight = shrinkage(variances, size)
    floor = weight * variances.mean() + np.finfo(np.float32).tiny
    ellipsoid = Ellipsoid(mean, directions / np.sqrt((1 - weight) * variances + floor))
    grown = size / (size - 1)
    without = (1 - weight) * grown * variances + floor
    squares = ((vectors[:count] - mean) @ (directions / np.sqrt(without))) ** 2
    products_of_one = squares.sum(axis=1)
    left_out = (1 - weight) * size / (size - 1) ** 2
    lengths = grown * np.sqrt(products_of_one / np.maximum(1 - left_out * products_of_one, np.finfo(np.float64).tiny))
    return ellipsoid, lengths


@dataclass(frozen=True, slots=True)
class NoveltyScores:
    """The scores of Q videos.

    Attributes:
        distances: One minus the mean cosine to the nearest videos of the index, [Q].
        lengths: The Mahalanobis lengths, [Q].
        is_known: Whether the video is a near-duplicate of a video of the index, [Q]. Such a video is not strange.
        closest: The position of the nearest video of the index, [Q].
    """

    distances: Numbers
    lengths: Numbers
    is_known: Mask
    closest: Positions


@dataclass(frozen=True)
class Calibration:
    """The scores of N videos of an index, each against all others, and what is needed to score another video.

    Attributes:
        num_neighbors: The number of nearest videos in a distance.
        cosine: From which cosine on two videos are near-duplicates.
        ellipsoid: The mean and the spread of the index.
        scores: The scores of the N videos.
    """

    num_neighbors: int
    cosine: float
    ellipsoid: Ellipsoid
    scores: NoveltyScores

    def __len__(self) -> int:
        return len(self.scores.distances)

    @property
    def smallest_p_value(self) -> float:
        """The p-value of a video that is stranger than all videos of the calibration."""
        return 1 / (len(self) + 1)

    @cached_property
    def _sorted(self) -> tuple[Numbers, Numbers]:
        return np.sort(self.scores.distances), np.sort(self.scores.lengths)

    @cached_property
    def _ranks(self) -> tuple[Positions, Positions]:
        distances, lengths = self._sorted
        of_distances = np.searchsorted(distances, self.scores.distances, side="right")
        return of_distances, np.searchsorted(lengths, self.scores.lengths, side="right")

    def p_values(self, scores: NoveltyScores) -> Numbers:
        """Return the p-value of each video, from 1 / (N + 1) to 1."""
        rows = zip(scores.distances.tolist(), scores.lengths.tolist(), scores.is_known.tolist(), strict=True)
        return np.array([1.0 if known else self._p_value(*row) for *row, known in rows], np.float64)

    def _p_value(self, distance: float, length: float) -> float:
        """Return the p-value of one video.

        Among the N videos and this one, the strangeness of each is the sum of its two ranks. The order of the videos
        does not matter, so this one is as likely in any place as the others are.
        """
        distances, lengths = self._sorted
        of_distances, of_lengths = self._ranks
        strangeness = of_distances + of_lengths
        strangeness = strangeness + (distance <= self.scores.distances) + (length <= self.scores.lengths)
        own = np.searchsorted(distances, distance, side="right") + np.searchsorted(lengths, length, side="right") + 2
        num_stranger = int(np.count_nonzero((strangeness >= own) & ~self.scores.is_known))
        return (1 + num_stranger) / (len(self) + 1)


class Novelty:
    """Scores videos against an index. Thread-safe."""

    def __init__(self, index: VideoIndex, calibration: Calibration) -> None:
        self.index = index
        self.calibration = calibration
        self._space = _Space.of(index)

    @classmethod
    def fit(cls, index: VideoIndex, *, num_neighbors: int, max_scores: int, seed: int = 0) -> Self:
        """Calibrate on the videos of an index, or on ``max_scores`` videos drawn from it at random.

        Raises:
            ValueError: the index has fewer than ``MIN_VIDEOS`` videos.
        """
        if len(index) < MIN_VIDEOS:
            msg = f"{len(index)} videos are too few to say what is unlike them: it takes {MIN_VIDEOS}."
            raise ValueError(msg)
        space = _Space.of(index)
        size = len(index)
        drawn = np.random.default_rng(seed).choice(size, min(size, max(_LEARN_FROM, max_scores)), replace=False)
        count = min(size, max_scores)
        ellipsoid, lengths = fit_ellipsoid(space.vectors_at(drawn), count)
        cosine = float(index.manifest.get("settings", {}).get("duplicate_cosine", _DEFAULT_COSINE))
        num_neighbors = min(num_neighbors, size - 1)
        own = drawn[:count]
        near = space.near(widen(index.vectors[own]), space.vectors_at(own), num_neighbors, without=own)
        scores = NoveltyScores(near.distances, lengths, near.cosines >= cosine, near.closest)
        return cls(index, Calibration(num_neighbors, cosine, ellipsoid, scores))

    def score(self, embeddings: npt.NDArray[np.floating]) -> NoveltyScores:
        """Score videos by their embeddings ``[Q, D]``, each of which is finite and not zero."""
        projected, vectors = self._space.place(embeddings)
        near = self._space.near(projected, vectors, self.calibration.num_neighbors)
        lengths = self.calibration.ellipsoid.lengths(vectors)
        return NoveltyScores(near.distances, lengths, near.cosines >= self.calibration.cosine, near.closest)

    def frame_distances(self, frames: npt.NDArray[np.floating]) -> Floats:
        """Return one minus the cosine between each frame ``[T, D]`` and the video of the index nearest to it, ``[T]``.

        In a long video, ``MAX_SCORED_FRAMES`` evenly spread frames are scored, and the others get NaN.
        """
        count = min(len(frames), MAX_SCORED_FRAMES)
        scored = np.linspace(0, len(frames) - 1, count).round().astype(np.int64)
        distances = np.full(len(frames), np.nan, np.float32)
        distances[scored] = self._space.distances(*self._space.place(frames[scored]), 1)
        return distances


@dataclass(frozen=True, slots=True)
class _Near:
    """For Q queries, one minus the mean cosine to the nearest videos, and the nearest video with its cosine."""

    distances: Numbers
    closest: Positions
    cosines: Floats


@dataclass(frozen=True, slots=True)
class _Space:
    """Where videos are compared: among the embeddings of an index or, if it does not hold them, among its vectors.

    ``wide`` are the embeddings as float32 ``[N, D]``.
    """

    index: VideoIndex
    wide: Floats | None

    @classmethod
    def of(cls, index: VideoIndex) -> Self:
        return cls(index, None if index.embeddings is None else widen(index.embeddings))

    def place(self, embeddings: npt.NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Return embeddings ``[Q, D]`` as vectors of the index ``[Q, d]``, and as what is compared ``[Q, r]``."""
        projected = self.index.projection.apply(embeddings)
        if self.wide is None:
            return projected, projected
        return projected, widen(unit_length(embeddings).astype(np.float16))  # rounded like those of the index

    def vectors_at(self, positions: Positions) -> Floats:
        return widen(self.index.vectors[positions]) if self.wide is None else self.wide[positions]

    def distances(self, projected: Floats, vectors: Floats, count: int) -> Numbers:
        """Return one minus the mean cosine of each query to the ``count`` videos nearest to it, [Q]."""
        if self.wide is not None:
            return _distances(self.wide, vectors, count, None)
        return self.near(projected, vectors, count).distances

    def near(self, projected: Floats, vectors: Floats, count: int, *, without: Positions | None = None) -> _Near:
        """Return the ``count`` videos nearest to each query, which ``place`` returns.

        ``without`` [Q] is the position of a video that is not compared with the query: the query itself.
        """
        left_out = [None] * len(projected) if without is None else without.tolist()
        found = [self._nearest(query, count, one) for query, one in zip(projected, left_out, strict=True)]
        cosines = np.array([scores[0] for scores, _ in found], np.float32)
        closest = np.array([positions[0] for _, positions in found], np.int64)
        distances = np.array([1 - scores.mean(dtype=np.float64) for scores, _ in found], np.float64)
        if self.wide is not None:
            distances = _distances(self.wide, vectors, count, without)
        return _Near(np.maximum(distances, 0), closest, cosines)

    def _nearest(self, query: Floats, count: int, without: int | None) -> tuple[Floats, Positions]:
        scores, positions = self.index.ann.nearest(query, top_k=count + (without is not None))
        if without is None:
            return scores, positions
        is_other = positions != without
        if is_other.all():  # more videos are equal to the query than were found
            is_other[-1] = False
        return scores[is_other], positions[is_other]


def _distances(wide: Floats, queries: Floats, count: int, without: Positions | None) -> Numbers:
    """Return one minus the mean cosine of each query to the ``count`` embeddings nearest to it, [Q]."""
    distances = np.empty(len(queries), np.float64)
    for start in range(0, len(queries), _QUERIES):
        some = slice(start, start + _QUERIES)
        cosines = queries[some] @ wide.T
        if without is not None:
            cosines[np.arange(len(cosines)), without[some]] = -np.inf
        distances[some] = 1 - np.partition(cosines, -count, axis=1)[:, -count:].mean(axis=1, dtype=np.float64)
    return distances
