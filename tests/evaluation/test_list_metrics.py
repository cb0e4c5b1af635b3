"""Metrics of what lists contain equal their definitions; users without a value do not count."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.evaluation.compare import compare
from raypipe.evaluation.list_metrics import EMPTY, diversity, mean_in_lists
from raypipe.evaluation.protocols import Split, leave_one_out
from raypipe.evaluation.ranking_metrics import intervals, ratios
from raypipe.search.watch_events import Events

NUM_ITEMS = 8
LISTS = st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=4, unique=True), min_size=1, max_size=5)
VECTORS = np.random.default_rng(0).standard_normal((NUM_ITEMS, 5)).astype(np.float16)
VECTORS[0] = 0  # a video without content


def padded(lists: list[list[int]]) -> np.ndarray:
    return np.array([[*one, *[EMPTY] * (4 - len(one))] for one in lists])


@given(LISTS)
def test_diversity_is_the_mean_of_one_minus_the_cosine_over_pairs(lists: list[list[int]]) -> None:
    wide = VECTORS.astype(float)
    wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-9)
    expected = [
        np.mean([1 - wide[a] @ wide[b] for a, b in itertools.combinations(one, 2)]) if len(one) > 1 else np.nan
        for one in lists
    ]
    np.testing.assert_allclose(diversity(padded(lists), VECTORS), expected, atol=1e-5)


@given(LISTS)
def test_the_mean_of_a_list_ignores_empty_places(lists: list[list[int]]) -> None:
    values = np.arange(NUM_ITEMS) ** 2.0
    expected = [np.mean(values[one]) if one else np.nan for one in lists]
    np.testing.assert_allclose(mean_in_lists(padded(lists), values), expected)


def test_users_without_a_value_do_not_count_and_a_series_without_values_has_no_result() -> None:
    some = np.array([1.0, np.nan, 3.0, np.nan] * 50)
    found = intervals({"some": some, "nothing": np.full(200, np.nan)})
    assert found.keys() == {"some"}
    assert found["some"].value == 2
    assert 1.5 < found["some"].low < 2 < found["some"].high < 2.5
    ratio = ratios({"some": some, "nothing": np.full(200, np.nan)}, np.array([4.0, 4.0, np.nan, 4.0] * 50))
    assert ratio.keys() == {"some"}
    assert ratio["some"].value == 0.5
    assert 0.35 < ratio["some"].low < 0.5 < ratio["some"].high < 0.65
    assert ratios({"some": some}, np.zeros(200)) == ratios({"some": some}, np.full(200, np.nan)) == {}


class Fixed:
    """Recommends the same videos to everyone."""

    def __init__(self, *items: int) -> None:
        self._items = [*items]

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        scores = np.full((len(histories), NUM_ITEMS), -np.inf, np.float32)
        scores[:, self._items] = 1
        return scores


def small_split() -> Split:
    """Four users of whom three have trained: videos 1, 2 and 3 have 3, 2 and 1 viewers."""
    return leave_one_out(Events.of_histories([[1, 2, 3, 5, 6], [1, 2, 6, 7], [1]]))


def test_popularity_lift_novelty_and_coverage_of_a_known_list() -> None:
    split = small_split()
    found = compare(split, {"served": Fixed(3, 4), "popular": Fixed(2)}, num_items=NUM_ITEMS, ks=[2], vectors=VECTORS)
    served = found.rankers["served"]
    assert served["coverage@2"].value == 2 / NUM_ITEMS
    # The histories [1, 2, 3, 5] and [1, 2, 6] have 3, 2, 1, 0 and 3, 2, 0 viewers; the lists [4] and [3, 4] 0 and 1, 0.
    assert served["popularity_lift@2"].value == pytest.approx(np.mean([0, 0.5]) / np.mean([6 / 4, 5 / 3]))
    assert served["novelty@2"].value == pytest.approx(-np.mean([np.log2(1 / 4), np.log2([2 / 4, 1 / 4]).mean()]))
    cosine = VECTORS[3].astype(float) @ VECTORS[4] / np.linalg.norm(VECTORS[3]) / np.linalg.norm(VECTORS[4])
    assert served["diversity@2"].value == pytest.approx(1 - cosine, abs=1e-3)
    # Every user has watched the only video of the other ranker: its lists are empty.
    assert found.rankers["popular"].keys() & {"novelty@2", "diversity@2", "popularity_lift@2"} == set()


def test_a_reference_is_never_the_best_baseline_but_is_compared() -> None:
    split = small_split()
    best = Fixed(6, 7)  # the targets
    rankers = {"served": Fixed(3), "popular": Fixed(4), "served_exact": best, "served_shuffled": best, "random": best}
    found = compare(split, rankers, num_items=NUM_ITEMS, ks=[2])
    assert set(found.best_baseline.values()) == {"popular"}
    references = found.as_json()["references"]
    assert references.keys() == {"served_exact", "served_shuffled", "random"}
    assert references["served_exact"]["hr@2"]["value"] == -1
    assert len(found.notes) == 2
