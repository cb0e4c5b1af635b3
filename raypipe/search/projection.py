"""How an embedding becomes a vector of an index: unit length, centred, whitened in part, reduced, unit length again.

Whitening between two normalisations as Jégou and Chum, "Negative evidences and co-occurences in image retrieval: the
benefit of PCA and whitening", ECCV 2012. How much to whiten is an exponent: in full, directions that are mostly noise
weigh as much as any other, and on small catalogues that is worse than not to whiten at all.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from raypipe.errors import IndexVersionError

PROJECTION = "projection.safetensors"
FEW_VIDEOS = 16  # of no more videos a mean says nothing: two near-duplicates alone would become opposites
_SAME = 1e-9  # of unit length: less variance is what float32 makes of equal embeddings
_RANK = 1e-10  # of the largest eigenvalue: a smaller one is what float32 makes of zero
_ROWS = 8_192

Floats = npt.NDArray[np.float32]


class Projection:
    """An affine map from D to d numbers between two normalisations."""

    def __init__(self, mean: Floats, matrix: Floats) -> None:
        """``mean`` is ``[D]``, ``matrix`` ``[D, d]``."""
        self.mean = mean
        self.matrix = matrix

    @property
    def embedding_dim(self) -> int:
        """D."""
        return int(self.matrix.shape[0])

    @property
    def dim(self) -> int:
        """The number of a vector's numbers, d."""
        return int(self.matrix.shape[1])

    def apply(self, embeddings: npt.NDArray[np.floating]) -> Floats:
        """Project ``[M, D]`` embeddings to ``[M, d]`` of unit length; one without a direction becomes zero."""
        vectors = np.zeros((len(embeddings), self.dim), np.float32)
        for at in range(0, len(embeddings), _ROWS):
            rows = embeddings[at : at + _ROWS]
            usable = is_usable(rows)
            vectors[at : at + _ROWS][usable] = unit_length(self.project(rows[usable]))
        return vectors

    def project(self, embeddings: npt.NDArray[np.floating]) -> Floats:
        """The same before the last normalisation: whitened in full, with a variance of about one in each direction."""
        return np.asarray((unit_length(embeddings) - self.mean) @ self.matrix, np.float32)

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        arrays = {"mean": np.ascontiguousarray(self.mean), "matrix": np.ascontiguousarray(self.matrix)}
        safetensors.numpy.save_file(arrays, path)

    @classmethod
    def load(cls, path: Path) -> "Projection":
        """Read what ``save`` wrote.

        Raises:
            IndexVersionError: the file is no projection.
        """
        try:
            arrays = safetensors.numpy.load_file(path)
            mean, matrix = arrays["mean"], arrays["matrix"]
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            msg = f"Cannot read the projection {path}: {' '.join(str(error).split())}"
            raise IndexVersionError(msg, key=str(path)) from None
        fits = mean.ndim == 1 and matrix.ndim == 2 and matrix.shape[0] == mean.shape[0] and matrix.size  # noqa: PLR2004
        of_float32 = {mean.dtype, matrix.dtype} == {np.dtype(np.float32)}
        if not (fits and of_float32 and np.isfinite(mean).all() and np.isfinite(matrix).all()):
            msg = f"{path} holds no projection: mean {mean.dtype}{mean.shape}, matrix {matrix.dtype}{matrix.shape}."
            raise IndexVersionError(msg, key=str(path))
        return cls(mean, matrix)


class Moments:
    """Count, sum and sum of outer products of embeddings that come batch by batch, all that a projection learns."""

    def __init__(self) -> None:
        self.count = 0
        self._origin = np.zeros(0, np.float64)  # near the mean: equal embeddings then have no variance at all
        self._sum = np.zeros(0)
        self._products = np.zeros((0, 0))

    def add(self, batch: npt.NDArray[np.floating]) -> None:
        """Add ``[n, D]`` finite embeddings, none of which is zero."""
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
        """The projection to at most ``dim`` numbers, and no more than the embeddings have directions.

        A direction of variance v is divided by v to the power of ``whitening`` / 2: 0 is PCA alone, 1 whitens in full.

        Raises:
            ValueError: nothing was added.
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
    """A rotation that keeps the angles between the embeddings it is fitted to, where these are at most ``dim``."""
    _, directions = _eigen(second_moment)
    return Projection(np.zeros(len(directions), np.float32), directions[:, :dim].astype(np.float32))


def _eigen(matrix: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Eigenvalues, the largest first, and eigenvectors in columns, each with its largest number positive."""
    values, vectors = np.linalg.eigh(matrix)
    vectors = vectors[:, ::-1]
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(vectors))])
    return np.maximum(values[::-1], 0), vectors * signs


def _shrunk(variances: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """Draw eigenvalues towards their mean, the more the fewer videos: without, N near D makes all equally far apart.

    OAS, equation 23 of Chen, Wiesel, Eldar and Hero, "Shrinkage algorithms for MMSE covariance estimation", 2010.
    """
    size, trace, squares = len(variances), variances.sum(), np.square(variances).sum()
    spread = (count + 1 - 2 / size) * (squares - trace**2 / size)
    weight = min(1.0, ((1 - 2 / size) * squares + trace**2) / spread) if spread > 0 else 1.0
    shrunk: npt.NDArray[np.float64] = (1 - weight) * variances + weight * trace / size
    return shrunk


def is_usable(embeddings: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Which of ``[M, D]`` embeddings have a direction: finite, and not zero."""
    largest = np.abs(embeddings).max(axis=1, initial=0)  # NaN where one is NaN
    usable: npt.NDArray[np.bool_] = np.isfinite(largest) & (largest > np.finfo(np.float32).tiny)
    return usable


def unit_length(rows: npt.NDArray[np.floating]) -> Floats:
    """Float32 rows of length one; zero stays zero."""
    wide = rows.astype(np.float64)  # the square of a large float32 is none
    lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    lengths[lengths == 0] = 1
    return np.asarray(wide / lengths[:, None], np.float32)
