"""P-values of novelty: uniform for videos like those of the index, small for others, 1 for near-duplicates."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.search.index import VideoIndex
from raypipe.search.novelty import (
    MAX_SCORED_FRAMES,
    MIN_VIDEOS,
    Calibration,
    Ellipsoid,
    Novelty,
    NoveltyScores,
    fit_ellipsoid,
)
from raypipe.search.projection import shrinkage, unit_length
from support.properties import examples
from support.vectors import index_of

Floats = npt.NDArray[np.float32]
DIM = 12


def draw(random: np.random.Generator, count: int, *, shift: float = 0.0) -> Floats:
    """Return unit vectors around two centres, or around others."""
    centres = np.random.default_rng(7).standard_normal((2, DIM)) + shift
    rows = centres[random.integers(2, size=count)] + 0.4 * random.standard_normal((count, DIM))
    return unit_length(rows)


def index(vectors: Floats, *, with_embeddings: bool = True, kind: str = "flat") -> VideoIndex:
    made = index_of(vectors.astype(np.float16), {}, kind=kind)
    made.manifest = {**made.manifest, "settings": {"duplicate_cosine": 0.999}}
    made.embeddings = vectors.astype(np.float16) if with_embeddings else None
    return made


@pytest.mark.parametrize("with_embeddings", [True, False])
def test_p_values_of_videos_like_the_index_are_uniform(*, with_embeddings: bool) -> None:
    random = np.random.default_rng(0)
    p_values = []
    for _ in range(16):
        vectors = draw(random, 160)
        novelty = Novelty.fit(index(vectors[:60], with_embeddings=with_embeddings), num_neighbors=2, max_scores=999)
        p_values.append(novelty.calibration.p_values(novelty.score(vectors[60:])))
    found = np.concatenate(p_values)
    for level in (0.1, 0.25, 0.5, 0.75):
        assert abs(np.mean(found <= level) - level) < 0.08


def test_other_videos_have_small_p_values_and_known_ones_are_not_strange() -> None:
    random = np.random.default_rng(1)
    vectors = draw(random, 100)
    novelty = Novelty.fit(index(vectors), num_neighbors=1, max_scores=999)
    strange = novelty.calibration.p_values(novelty.score(draw(random, 30, shift=1.5)))
    assert np.median(strange) < 0.1
    again = novelty.score(vectors)
    assert again.is_known.all()
    assert again.closest.tolist() == list(range(100))
    assert novelty.calibration.p_values(again).tolist() == [1.0] * 100
    assert again.distances == pytest.approx(0, abs=2e-3)


@settings(max_examples=examples(60))
@given(
    values=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), min_size=2, max_size=14),
)
def test_p_values_are_exchangeable(values: list[tuple[int, int, bool]]) -> None:
    """Whichever of N + 1 videos is the new one, the number of p-values of at most j / (N + 1) is at most j."""
    size = len(values)
    found = []
    for new in range(size):
        rest = [value for at, value in enumerate(values) if at != new]
        calibration = Calibration(1, 0.9, Ellipsoid(np.zeros(1), np.eye(1)), scores_of(rest))
        found.append(float(calibration.p_values(scores_of([values[new]]))[0]))
    for step in range(1, size + 1):
        assert sum(value <= step / size + 1e-9 for value in found) <= step
    assert min(found) >= 1 / size - 1e-9


def scores_of(values: list[tuple[int, int, bool]]) -> NoveltyScores:
    distances, lengths, known = zip(*values, strict=True)
    return NoveltyScores(
        np.array(distances, float), np.array(lengths, float), np.array(known), np.zeros(len(values), np.int64)
    )


@pytest.mark.parametrize("size", [5, 40])
def test_a_vector_is_measured_by_the_ellipsoid_of_the_others(size: int) -> None:
    """The shortcut gives the length that refitting without the vector would, with the same shrinkage."""
    vectors = np.random.default_rng(2).standard_normal((size, 6)).astype(np.float32)
    _, lengths = fit_ellipsoid(vectors, size)
    centred = vectors - vectors.mean(axis=0)
    variances = np.maximum(np.linalg.eigvalsh((centred.T @ centred / size).astype(np.float64)), 0)
    weight = shrinkage(variances, size)
    for at in range(size):
        others = np.delete(vectors, at, axis=0).astype(np.float64)
        covariance = (1 - weight) * np.cov(others.T, bias=True) + weight * variances.mean() * np.eye(6)
        difference = vectors[at] - others.mean(axis=0)
        assert lengths[at] == pytest.approx(np.sqrt(difference @ np.linalg.solve(covariance, difference)), rel=1e-3)


def test_the_calibration_is_a_sample_of_a_large_index() -> None:
    vectors = draw(np.random.default_rng(3), 400)
    novelty = Novelty.fit(index(vectors, with_embeddings=False, kind="ivf_sq8"), num_neighbors=3, max_scores=50)
    assert len(novelty.calibration) == 50
    assert novelty.calibration.smallest_p_value == 1 / 51
    assert (novelty.calibration.scores.distances > 0).all()
    same = Novelty.fit(novelty.index, num_neighbors=3, max_scores=50)
    assert same.calibration.scores.distances.tolist() == novelty.calibration.scores.distances.tolist()


def test_equal_videos_are_each_others_neighbors() -> None:
    vectors = np.repeat(draw(np.random.default_rng(4), 5), 20, axis=0)
    for with_embeddings in (True, False):
        made = Novelty.fit(index(vectors, with_embeddings=with_embeddings), num_neighbors=1, max_scores=999)
        assert made.calibration.scores.is_known.all()
        assert made.calibration.scores.distances == pytest.approx(0, abs=2e-3)
        assert np.isfinite(made.calibration.scores.lengths).all()
        assert all(at != closest for at, closest in zip(_drawn(100), made.calibration.scores.closest, strict=True))


def _drawn(size: int) -> list[int]:
    found: list[int] = np.random.default_rng(0).choice(size, size, replace=False).tolist()
    return found


def test_frames_are_scored_and_a_long_video_in_part() -> None:
    random = np.random.default_rng(5)
    vectors = draw(random, 60)
    novelty = Novelty.fit(index(vectors), num_neighbors=1, max_scores=999)
    frames = np.concatenate([vectors[:3], -vectors[:1], vectors[3:5]])
    found = novelty.frame_distances(frames)
    assert int(found.argmax()) == 3
    assert found[[0, 1, 2, 4, 5]] == pytest.approx(0, abs=2e-3)
    long = novelty.frame_distances(draw(random, 200))
    assert int(np.isfinite(long).sum()) == MAX_SCORED_FRAMES
    assert np.isfinite(long[[0, -1]]).all()


def test_few_videos_are_refused() -> None:
    vectors = draw(np.random.default_rng(6), MIN_VIDEOS)
    assert len(Novelty.fit(index(vectors), num_neighbors=100, max_scores=999).calibration) == MIN_VIDEOS
    with pytest.raises(ValueError, match=str(MIN_VIDEOS)):
        Novelty.fit(index(vectors[1:]), num_neighbors=1, max_scores=999)
