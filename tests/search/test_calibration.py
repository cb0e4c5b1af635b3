import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raypipe.search.ann import TARGET_RECALL, Trials, least_nprobe, make_trials, trial_queries
from support.vectors import clustered


@given(st.integers(1, 500), st.integers(1, 500))
@example(258, 257)
def test_the_smallest_sufficient_number_of_lists(enough: int, nlist: int) -> None:
    def recall(nprobe: int) -> float:
        return 1.0 if nprobe >= enough else nprobe / enough * 0.97

    found = least_nprobe(recall, nlist=nlist)
    assert recall(found) >= min(TARGET_RECALL, recall(nlist)) - 0.005  # the last lists may add nothing
    assert found <= max(min(enough, nlist) * 1.1, 1)


def test_a_recall_that_no_number_of_lists_reaches_stops_the_search() -> None:
    asked: list[int] = []

    def recall(nprobe: int) -> float:
        asked.append(nprobe)
        return min(0.9, 0.1 * nprobe)

    assert 9 <= least_nprobe(recall, nlist=100_000) <= 10
    assert max(asked) == 32  # twice 16, which was just as good


def test_recall_counts_results_as_near_as_the_nearest() -> None:
    trials = Trials(np.zeros((2, 3), np.float32), np.array([0.5, 0.8], np.float32), 2)
    assert trials.recall(np.array([[0.9, 0.4], [0.9, 0.8]], np.float32)) == 0.75


def test_of_equal_vectors_any_is_found() -> None:
    vectors = np.ones((100, 1), np.float16)
    trials, _ = make_trials(vectors, seed=0)
    assert trials.recall(np.ones((len(trials.queries), trials.top_k), np.float32)) == 1


def test_queries_are_of_length_one_and_half_are_vectors_of_the_index() -> None:
    vectors = clustered(50, dim=6)
    queries = trial_queries(vectors, count=40, seed=0)
    assert np.linalg.norm(queries, axis=1) == pytest.approx(np.ones(40), abs=1e-5)
    closest = (queries @ vectors.astype(np.float32).T).max(axis=1)
    assert 15 <= np.sum(closest > 0.999) <= 30
    first, second = make_trials(vectors, seed=0)
    assert not np.array_equal(first.queries, second.queries)
    assert first.lowest.shape == second.lowest.shape == (256,)
