from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.errors import IndexVersionError
from raypipe.search import projection as projection_module
from raypipe.search.projection import Moments, Projection, is_usable, unit_length
from support.properties import examples

SEEDS = st.integers(0, 2**32 - 1)


def made_up(num_videos: int, dim: int, *, seed: int, rank: int | None = None) -> np.ndarray:
    """Return embeddings far from the origin, with a very different spread in each direction."""
    chance = np.random.default_rng(seed)
    spread = np.geomspace(1, 0.05, rank or dim)[:, None] * np.linalg.qr(chance.standard_normal((dim, rank or dim)))[0].T
    return (chance.standard_normal((num_videos, rank or dim)) @ spread + 2).astype(np.float32)


def fitted(embeddings: np.ndarray, *, dim: int, whitening: float = 1.0, batch: int = 1_000) -> Projection:
    moments = Moments()
    for at in range(0, len(embeddings), batch):
        moments.add(embeddings[at : at + batch])
    return moments.fit(dim, whitening=whitening)


@settings(max_examples=examples(20))
@given(seed=SEEDS, size=st.integers(2, 24))
def test_whitened_embeddings_have_the_identity_as_covariance(seed: int, size: int) -> None:
    embeddings = made_up(200 * size + 500, size, seed=seed)
    dim = max(1, size // 2)  # unit vectors barely vary along their mean, where shrinkage has an effect
    projection = fitted(embeddings, dim=dim)
    projected = projection.project(embeddings)
    assert projected.shape == (len(embeddings), dim)
    covariance = np.cov(projected.T, bias=True).reshape(dim, dim)
    np.testing.assert_allclose(projected.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(covariance, np.eye(dim), atol=0.02)


@settings(max_examples=examples(20))
@given(
    seed=SEEDS,
    num_videos=st.integers(1, 80),
    size=st.integers(1, 40),
    dim=st.integers(1, 48),
    whitening=st.floats(0, 1),
)
def test_vectors_are_of_unit_length_whatever_the_numbers(
    *, seed: int, num_videos: int, size: int, dim: int, whitening: float
) -> None:
    embeddings = made_up(num_videos, size, seed=seed)
    projection = fitted(embeddings, dim=dim, whitening=whitening)
    assert projection.dim <= min(dim, size)
    asked = np.concatenate([embeddings, made_up(20, size, seed=seed + 1)])
    vectors = projection.apply(asked)
    assert vectors.shape == (len(asked), projection.dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@settings(max_examples=examples(20))
@given(seed=SEEDS, batch=st.integers(1, 100))
def test_batches_of_any_size_give_the_same(seed: int, batch: int) -> None:
    embeddings = made_up(100, 6, seed=seed)
    whole, pieces = fitted(embeddings, dim=4), fitted(embeddings, dim=4, batch=batch)
    np.testing.assert_allclose(pieces.mean, whole.mean, atol=1e-6)
    np.testing.assert_allclose(pieces.apply(embeddings), whole.apply(embeddings), atol=1e-3)


def test_reduction_alone_keeps_what_varies_most() -> None:
    embeddings = made_up(3_000, 20, seed=1)
    units = unit_length(embeddings).astype(np.float64)
    projected = fitted(embeddings, dim=5, whitening=0).project(embeddings)
    variances = np.linalg.eigvalsh(np.cov(units.T, bias=True))[::-1]
    np.testing.assert_allclose(np.var(projected, axis=0), variances[:5], rtol=1e-3)


def test_the_size_of_an_embedding_says_nothing() -> None:
    embeddings = made_up(100, 6, seed=1)
    projection = fitted(embeddings, dim=6)
    for factor in (1e-30, 1e30):
        scaled = embeddings * np.float32(factor)
        np.testing.assert_allclose(projection.apply(scaled), projection.apply(embeddings), atol=1e-4)
        np.testing.assert_allclose(fitted(scaled, dim=6).apply(scaled), projection.apply(embeddings), atol=1e-2)


def test_no_more_numbers_than_directions() -> None:
    embeddings = made_up(500, 30, seed=1, rank=4)
    assert fitted(embeddings, dim=256).dim == 5  # the four, and the offset after normalization
    assert fitted(made_up(20, 100, seed=1), dim=256).dim == 19


def test_shrinkage_keeps_clusters_where_videos_are_as_few_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without shrinkage, whitening makes all cosines equal."""
    chance = np.random.default_rng(5)
    labels = np.repeat(np.arange(10), 20)
    centres = chance.standard_normal((10, 256))
    embeddings = (centres[labels] + 2 * chance.standard_normal((200, 256))).astype(np.float32)

    def share_of_neighbours_in_cluster() -> float:
        cosines = (vectors := fitted(embeddings, dim=256).apply(embeddings)) @ vectors.T
        np.fill_diagonal(cosines, -2)
        return float(np.mean(labels[np.argsort(-cosines, axis=1)[:, :5]] == labels[:, None]))

    assert share_of_neighbours_in_cluster() > 0.5
    monkeypatch.setattr(projection_module, "_shrunk", lambda variances, _: variances)
    assert share_of_neighbours_in_cluster() < 0.2


@pytest.mark.parametrize("num_videos", [1, 2, 16, 200])
@pytest.mark.parametrize("size", [8, 300])
def test_equal_embeddings_become_equal_vectors(num_videos: int, size: int) -> None:
    one = made_up(1, size, seed=3)
    projection = fitted(np.repeat(one, num_videos, axis=0), dim=64, batch=7)
    assert projection.dim == min(size, 64)
    vectors = projection.apply(np.concatenate([one, one, -one]))
    np.testing.assert_allclose(vectors @ vectors[0], [1, 1, -1], atol=1e-5)


@pytest.mark.parametrize("num_videos", [2, 5, 16])
def test_a_handful_of_videos_keep_their_angles(num_videos: int) -> None:
    embeddings = made_up(num_videos, 300, seed=3)
    units, vectors = unit_length(embeddings), fitted(embeddings, dim=64).apply(embeddings)
    np.testing.assert_allclose(vectors @ vectors.T, units @ units.T, atol=1e-5)


def test_embeddings_without_direction_become_zero() -> None:
    embeddings = np.ones((6, 3), np.float32)
    embeddings[1] = 0
    embeddings[2, 0], embeddings[3, 1], embeddings[4, 2] = np.nan, np.inf, -np.inf
    assert is_usable(embeddings).tolist() == [True, False, False, False, False, True]
    projection = fitted(made_up(50, 3, seed=1), dim=3)
    np.testing.assert_allclose(np.linalg.norm(projection.apply(embeddings), axis=1), [1, 0, 0, 0, 0, 1], atol=1e-6)
    assert projection.apply(np.zeros((0, 3), np.float32)).shape == (0, 3)


def test_fitting_without_vectors_is_an_error() -> None:
    moments = Moments()
    moments.add(np.zeros((0, 3), np.float32))
    with pytest.raises(ValueError, match=r" 0 "):
        moments.fit(2, whitening=1.0)


def test_a_projection_is_read_as_it_was_written(tmp_path: Path) -> None:
    embeddings = made_up(200, 12, seed=1)
    projection = fitted(embeddings, dim=5)
    projection.save(tmp_path / "p.safetensors")
    loaded = Projection.load(tmp_path / "p.safetensors")
    assert (loaded.embedding_dim, loaded.dim) == (12, 5)
    np.testing.assert_array_equal(loaded.apply(embeddings), projection.apply(embeddings))


GOOD = {"mean": np.zeros(4, np.float32), "matrix": np.ones((4, 2), np.float32)}


@pytest.mark.parametrize(
    "arrays",
    [
        {"mean": GOOD["mean"]},
        {**GOOD, "mean": np.zeros(3, np.float32)},
        {**GOOD, "mean": np.zeros((4, 1), np.float32)},
        {**GOOD, "matrix": np.ones((4, 2))},
        {**GOOD, "matrix": np.ones((4, 0), np.float32)},
        {**GOOD, "matrix": np.full((4, 2), np.nan, np.float32)},
        {**GOOD, "mean": np.full(4, np.inf, np.float32)},
    ],
)
def test_an_invalid_projection_file_is_refused(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    safetensors.numpy.save_file(arrays, tmp_path / "p.safetensors")
    with pytest.raises(IndexVersionError) as raised:
        Projection.load(tmp_path / "p.safetensors")
    assert raised.value.key == str(tmp_path / "p.safetensors")


def test_a_damaged_or_missing_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    for data in (None, b"", b"\x08\0\0\0\0\0\0\0{}", b"x" * 100):
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(IndexVersionError) as raised:
            Projection.load(path)
        assert raised.value.key == str(path)
        assert str(raised.value).isprintable()
