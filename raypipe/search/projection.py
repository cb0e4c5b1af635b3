"""Project embeddings to the vectors of an index: normalise, centre, whiten partially, reduce, normalise again.

Whitening between two normalisations follows Jégou and Chum, "Negative evidences and co-occurences in image retrieval:
the benefit of PCA and whitening", ECCV 2012. An exponent sets the strength of the whitening. Full whitening gives
directions that are mostly noise the same weight as all others. On small catalogues, this is worse than no whitening.
"""

from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from raypipe.errors import IndexVersionError
from raypipe.search.vectors import Floats
from raypipe.text import one_line

PROJECTION = "projection.safetensors"
FEW_VIDEOS = 16  # up to this many have no useful mean: centring would turn two near-duplicates into opposites
_SAME = 1e-9  # embeddings with a smaller total variance are equal, except for float32 rounding
_RANK = 1e-10  # eigenvalues below this fraction of the largest one are zero, except for float32 rounding
_ROWS = 8_192


class Projection:
    """An affine map from D to d numbers. Vectors are scaled to unit length before and after it."""

    def __init__(self, mean: Floats, matrix: Floats) -> None:
        """Take the mean ``[D]`` to subtract and the matrix ``[D, d]`` to multiply with."""
        self.mean = mean
        self.matrix = matrix

    @property
    def embedding_dim(self) -> int:
        """The length of an embedding, D."""
        return int(self.matrix.shape[0])

    @property
    def dim(self) -> int:
        """The length of a projected vector, d."""
        return int(self.matrix.shape[1])

    def apply(self, embeddings: npt.NDArray[np.floating]) -> Floats:
        """Project embeddings ``[M, D]`` to unit vectors ``[M, d]``. Embeddings that are not usable become zero."""
        vectors = np.zeros((len(embeddings), self.dim), np.float32)
        for at in range(0, len(embeddings), _ROWS):
            rows = embeddings[at : at + _ROWS]
            usable = is_usable(rows)
            vectors[at : at + _ROWS][usable] = unit_length(self.project(rows[usable]))
        return vectors

    def project(self, embeddings: npt.NDArray[np.floating]) -> Floats:
        """Project embeddings ``[M, D]`` to ``[M, d]`` without scaling the result to unit length.

        With full whitening, each of the d numbers has a variance of about one.
        """
        return np.asarray((unit_length(embeddings) - self.mean) @ self.matrix, np.float32)

    def save(self, path: Path) -> None:
        arrays = {"mean": np.ascontiguousarray(self.mean), "matrix": np.ascontiguousarray(self.matrix)}
        safetensors.numpy.save_file(arrays, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that ``save`` wrote.

        Raises:
            IndexVersionError: the file cannot be read, or is not a projection.
        """
        try:
            return cls.of_bytes(path.read_bytes())
        except (OSError, ValueError) as error:
            msg = f"Cannot read the projection {path}: {one_line(error)}"
            raise IndexVersionError(msg, key=str(path)) from None

    @classmethod
    def of_bytes(cls, data: bytes) -> Self:
        """Return the projection with the content of a file that ``save`` wrote.

        Raises:
            ValueError: this is not a projection.
        """
        try:
            arrays = safetensors.numpy.load(data)
            mean, matrix = arrays["mean"], arrays["matrix"]
        except (SafetensorError, KeyError) as error:
            raise ValueError(one_line(error)) from None
        fits = mean.ndim == 1 and matrix.ndim == 2 and matrix.shape[0] == mean.shape[0] and matrix.size  # noqa: PLR2004
        of_float32 = {mean.dtype, matrix.dtype} == {np.dtype(np.float32)}
        if not (fits and of_float32 and np.isfinite(mean).all() and np.isfinite(matrix).all()):
            msg = f"it is not a projection: mean {mean.dtype}{mean.shape}, matrix {matrix.dtype}{matrix.shape}"
            raise ValueError(msg)
        return cls(mean, matrix)


class Moments:
    """Accumulates what is needed to fit a projection: the count, sum and sum of outer products of embeddings."""

    def __init__(self) -> None:
        self.count = 0
        self._origin = np.zeros(0, np.float64)  # subtracted first, so that equal embeddings have zero variance
        self._sum = np.zeros(0)
        self._products = np.zeros((0, 0))

    def add(self, batch: npt.NDArray[np.floating]) -> None:
        """Add finite, nonzero embeddings ``[n, D]``."""
        if not len(batch):
            return
        units = unit_length(batch).astype(np.float64)
        if not self.count:
            self._origin = units[0].copy()
            self._sum = np.zeros_like(self._origin)
            self._products = np.zeros((len(self._origin), len(self._origin)))
        units -= self._origin
        self.count += len(units)
        self._sum += units.sum(axis=0)
        self._products += units.T @ units

    def fit(self, dim: int, *, whitening: float) -> Projection:
        """Return a projection to ``dim`` numbers, or fewer if the embeddings span fewer dimensions.

        Each principal component is divided by v ** (``whitening`` / 2), where v is its variance. A ``whitening`` of 0
        is plain PCA, and 1 is full whitening.

        Raises:
            ValueError: no embedding was added.
        """
        if not self.count:
            msg = f"Cannot fit a projection to {self.count} embeddings."
            raise ValueError(msg)
        offset = self._sum / self.count
        covariance = self._products / self.count - np.outer(offset, offset)
        mean = self._origin + offset
        if self.count <= FEW_VIDEOS or np.trace(covariance) < _SAME:
            return _without_centring(covariance + np.outer(mean, mean), dim)
        variances, directions = _eigen(covariance)
        rank = min(dim, self.count - 1, int(np.sum(variances > _RANK * variances[0])))
        matrix = directions[:, :rank] * _shrunk(variances, self.count)[:rank] ** (-whitening / 2)
        return Projection(mean.astype(np.float32), matrix.astype(np.float32))


def _without_centring(second_moment: npt.NDArray[np.float64], dim: int) -> Projection:
    """Return a projection that only rotates.

    If it was fitted to at most ``dim`` embeddings, it preserves the angles between these embeddings.
    """
    _, directions = _eigen(second_moment)
    return Projection(np.zeros(len(directions), np.float32), directions[:, :dim].astype(np.float32))


def _eigen(matrix: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the eigenvalues in descending order, and the eigenvectors as columns.

    The sign of an eigenvector is arbitrary. It is chosen so that the entry of largest magnitude is positive.
    """
    values, vectors = np.linalg.eigh(matrix)
    vectors = vectors[:, ::-1]
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(vectors))])
    return np.maximum(values[::-1], 0), vectors * signs


def _shrunk(variances: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """Shrink the eigenvalues of ``count`` videos towards their mean, by ``shrinkage``.

    Without it, whitening makes all videos equidistant if there are about as many videos as dimensions.
    """
    weight = shrinkage(variances, count)
    return np.asarray((1 - weight) * variances + weight * variances.mean(), np.float64)


def shrinkage(variances: npt.NDArray[np.float64], count: int) -> float:
    """Return how far to shrink the eigenvalues of a covariance of ``count`` videos towards their mean, from 0 to 1.

    Fewer videos mean more shrinkage. The formula is OAS, equation 23 of Chen, Wiesel, Eldar and Hero, "Shrinkage
    algorithms for MMSE covariance estimation", 2010.
    """
    size, trace, squares = len(variances), variances.sum(), np.square(variances).sum()
    spread = (count + 1 - 2 / size) * (squares - trace**2 / size)
    return float(min(1.0, ((1 - 2 / size) * squares + trace**2) / spread)) if spread > 0 else 1.0


def is_usable(embeddings: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Return a mask of the embeddings ``[M, D]`` that are finite and nonzero. Only these have a direction."""
    largest = np.abs(embeddings).max(axis=1, initial=0)  # NaN if any number is NaN
    return np.asarray(np.isfinite(largest) & (largest > np.finfo(np.float32).tiny), np.bool_)


def unit_length(rows: npt.NDArray[np.floating]) -> Floats:
    """Scale rows to length one and return them as float32. Zero rows stay zero."""
    wide = rows.astype(np.float64)  # the square of a large float32 overflows
    lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    lengths[lengths == 0] = 1
    return np.asarray(wide / lengths[:, None], np.float32)
