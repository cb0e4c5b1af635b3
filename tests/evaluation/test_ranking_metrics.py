"""Ranking metrics equal an independent implementation; ties share their expected rank; intervals cover the mean."""

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import RR, R, Success, nDCG

from raypipe.evaluation.ranking_metrics import expected_ranks, gini, intervals, user_metrics

KS = (1, 5, 10, 20)


def test_metrics_equal_those_of_ir_measures_on_random_cases() -> None:
    random = np.random.default_rng(0)
    ours: dict[str, dict[str, float]] = {}
    judged: dict[str, dict[str, int]] = {}
    run: dict[str, dict[str, float]] = {}
    for case in range(1000):
        size = int(random.integers(5, 60))
        scores = random.permutation(size).astype(float)
        known = np.zeros(size, np.bool_)
        known[random.choice(size, int(random.integers(0, size - 3)), replace=False)] = True
        targets = random.choice(np.flatnonzero(~known), int(random.integers(1, 4)), replace=False)
        ours[f"q{case}"] = user_metrics(expected_ranks(scores, known, targets), ks=KS)
        judged[f"q{case}"] = {f"d{item}": 1 for item in targets}
        run[f"q{case}"] = {f"d{item}": scores[item] for item in np.flatnonzero(~known)}
    names = {RR: "mrr"} | {
        measure @ k: f"{name}@{k}" for measure, name in ((Success, "hr"), (R, "recall"), (nDCG, "ndcg")) for k in KS
    }
    found = list(ir_measures.iter_calc(list(names), judged, run))
    assert len(found) == 1000 * len(names)
    for one in found:
        assert ours[one.query_id][names[one.measure]] == pytest.approx(one.value, abs=1e-9), one


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.data())
def test_equal_scores_share_the_mean_of_their_ranks(scores: list[int], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, len(scores) - 1))
    rank = expected_ranks(np.array(scores, float), np.zeros(len(scores), np.bool_), np.array([target]))[0]
    higher, equal = sum(one > scores[target] for one in scores), scores.count(scores[target])
    assert rank == higher + (equal + 1) / 2


def test_a_score_that_is_not_a_number_is_the_lowest() -> None:
    ranks = expected_ranks(np.array([np.nan, 1.0, -np.inf, 2.0]), np.zeros(4, np.bool_), np.array([0, 3]))
    assert ranks.tolist() == [3.5, 1.0]


def test_intervals_cover_the_mean_and_shrink_with_users() -> None:
    random = np.random.default_rng(0)
    widths = []
    for num_users in (100, 10_000):
        found = intervals({"one": random.random(num_users), "constant": np.ones(num_users)})
        assert found["one"].low < found["one"].value < found["one"].high
        assert (found["constant"].low, found["constant"].high) == (1, 1)
        widths.append(found["one"].high - found["one"].low)
    assert widths[1] == pytest.approx(widths[0] / 10, rel=0.4)


def test_gini_is_0_for_equal_counts_and_near_1_for_one_video() -> None:
    assert gini(np.full(10, 3)) == pytest.approx(0)
    assert gini(np.eye(10, dtype=np.int64)[0]) == pytest.approx(0.9)
    assert gini(np.zeros(10, np.int64)) == 0
