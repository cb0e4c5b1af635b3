"""The next videos to label: doubted ones that many others resemble, and each similar group only once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.evaluation import next_labels
from raypipe.evaluation.next_labels import choose_next, draw_candidates, uncertainty


def groups(sizes: list[int], *, dim: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Return tight groups of videos far from each other, and the group of each video."""
    random = np.random.default_rng(0)
    members = np.repeat(np.arange(len(sizes)), sizes)
    centers = 20 * np.eye(len(sizes), dim)
    return (centers[members] + random.normal(size=(len(members), dim)) * 0.5).astype(np.float32), members


def test_each_group_is_chosen_once_and_the_largest_first() -> None:
    videos, members = groups([30, 12, 20])
    found = choose_next(videos, videos[:0], np.ones(len(videos)), count=3)
    assert members[found.rows].tolist() == [0, 2, 1]
    assert found.num_similar.tolist() == [30, 20, 12]


def test_a_labelled_group_is_not_chosen() -> None:
    videos, members = groups([30, 12, 20])
    found = choose_next(videos, videos[:3], np.ones(len(videos)), count=2)
    assert members[found.rows].tolist() == [2, 1]


def test_a_group_that_the_model_is_sure_of_comes_last() -> None:
    videos, members = groups([30, 12, 20])
    found = choose_next(videos, videos[:0], np.where(members == 0, 0.01, 1.0), count=5)
    assert set(members[found.rows].tolist()) == {1, 2}


@given(st.integers(1, 25), st.integers(0, 30), st.integers(0, 3), st.integers(0, 2**16))
def test_every_choice_is_the_best_of_all_that_are_left(num_videos: int, count: int, num_known: int, seed: int) -> None:
    """The lazy choice is that of the plain greedy algorithm: no other video has a larger gain."""
    random = np.random.default_rng(seed)
    similar = np.exp(-random.random((num_videos, num_videos)))
    similar = np.maximum(similar, similar.T)
    covered, weights = random.random(num_videos) * (num_known > 0), random.random(num_videos)
    rows = next_labels._greedy(similar, covered, weights, count=min(count, num_videos))
    assert len(set(rows.tolist())) == len(rows) == min(count, num_videos)
    for at, row in enumerate(rows.tolist()):
        gains = [float(weights @ np.maximum(one - covered, 0)) for one in similar]
        left = [gains[other] for other in range(num_videos) if other not in rows[:at]]
        assert gains[row] == pytest.approx(max(left))
        covered = np.maximum(covered, similar[row])


def test_equal_videos_are_all_chosen_in_the_end() -> None:
    found = choose_next(np.ones((5, 3), np.float32), np.ones((2, 3), np.float32), np.zeros(5), count=9)
    assert sorted(found.rows.tolist()) == [0, 1, 2, 3, 4]
    assert found.num_similar.sum() == 5


@pytest.mark.parametrize(
    ("probabilities", "multi_label", "expected"),
    [
        ([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]], False, [1.0, 0.0, 0.8]),
        ([[1.0]], False, [0.0]),
        ([[0.5, 0.0], [0.1, 0.9]], True, [1.0, 0.2]),
    ],
)
def test_uncertainty(probabilities: list[list[float]], *, multi_label: bool, expected: list[float]) -> None:
    assert uncertainty(np.array(probabilities), multi_label=multi_label) == pytest.approx(expected)


def test_candidates_are_drawn_by_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.repeat([1.0, 3.0], 5_000)
    assert draw_candidates(weights[:8_192], seed=0).tolist() == list(range(8_192))
    monkeypatch.setattr(next_labels, "MAX_CANDIDATES", 400)
    drawn = draw_candidates(weights, seed=0)
    assert len(set(drawn.tolist())) == 400
    assert (drawn >= 5_000).mean() == pytest.approx(0.75, abs=0.08)
