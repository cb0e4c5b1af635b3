"""The laws of discoveries and drift: BH equals its definition, a CUSUM is never negative and starts again at 0."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.evaluation.discoveries import (
    cusum,
    drift_threshold,
    fewest_discoveries,
    find_drift,
    normal_scores,
    q_values,
)
from support.properties import examples

p_lists = st.lists(st.integers(1, 40).map(lambda step: step / 40), min_size=1, max_size=30)
score_lists = st.lists(st.floats(-5, 5), min_size=1, max_size=40)


def discoveries(p_values: list[float], rate: float) -> set[int]:
    """Return the discoveries by the definition of Benjamini and Hochberg: all p-values up to the largest good one."""
    size = len(p_values)
    good = [
        place for place, value in enumerate(sorted(p_values), start=1) if value <= place * rate / size * (1 + 1e-12)
    ]
    limit = sorted(p_values)[max(good) - 1] if good else -1.0
    return {at for at, value in enumerate(p_values) if value <= limit}


@settings(max_examples=examples(200))
@given(p_values=p_lists, rate=st.sampled_from([0.013, 0.05, 0.1, 0.33, 0.77]))
def test_q_values_are_the_definition_of_benjamini_and_hochberg(p_values: list[float], rate: float) -> None:
    found = q_values(np.array(p_values))
    assert set(np.flatnonzero(found <= rate * (1 + 1e-12)).tolist()) == discoveries(p_values, rate)


@settings(max_examples=examples(100))
@given(p_values=p_lists)
def test_q_values_are_monotone_and_at_least_the_p_values(p_values: list[float]) -> None:
    values = np.array(p_values)
    found = q_values(values)
    order = np.argsort(values)
    assert (np.diff(found[order]) >= 0).all()
    assert (found >= values - 1e-12).all()
    assert (found <= 1).all()


@settings(max_examples=examples(100))
@given(num_tests=st.integers(1, 500), num_scores=st.integers(1, 500), rate=st.sampled_from([0.01, 0.05, 0.2]))
def test_the_fewest_discoveries_are_found_and_one_less_is_not(num_tests: int, num_scores: int, rate: float) -> None:
    smallest = 1 / (num_scores + 1)
    fewest = fewest_discoveries(num_tests, smallest_p_value=smallest, rate=rate)
    for count, are_found in ((fewest, True), (fewest - 1, False)):
        if 1 <= count <= num_tests:
            p_values = np.ones(num_tests)
            p_values[:count] = smallest
            assert bool((q_values(p_values) <= rate * (1 + 1e-9)).any()) is are_found


@settings(max_examples=examples(100))
@given(scores=score_lists, allowance=st.floats(0, 2))
def test_a_cusum_is_never_negative_and_forgets_what_was_before_a_zero(scores: list[float], allowance: float) -> None:
    path = cusum(np.array(scores), allowance=allowance)
    assert (path >= 0).all()
    for at in np.flatnonzero(path == 0).tolist():
        assert path[at + 1 :] == pytest.approx(cusum(np.array(scores[at + 1 :]), allowance=allowance))
    for at, (before, after) in enumerate(pairwise(path.tolist()), start=1):
        assert after == pytest.approx(max(0.0, before + scores[at] - allowance))


def test_normal_scores_are_symmetric_and_finite() -> None:
    every = np.arange(1, 51) / 50
    scores = normal_scores(every, num_scores=49)
    assert np.isfinite(scores).all()
    assert scores == pytest.approx(-scores[::-1], abs=1e-9)
    assert (np.diff(scores) < 0).all()


def test_the_threshold_grows_with_the_stream_and_keeps_the_false_alarm_rate() -> None:
    assert drift_threshold(10, false_alarm_rate=0.05) < drift_threshold(10_000, false_alarm_rate=0.05)
    random = np.random.default_rng(0)
    size, streams, num_scores = 300, 600, 10_000
    alarms = [
        find_drift(
            np.ceil(random.uniform(size=size) * (num_scores + 1)) / (num_scores + 1),
            num_scores=num_scores,
            false_alarm_rate=0.1,
        ).alarm
        for _ in range(streams)
    ]
    assert 0.02 < np.mean([alarm is not None for alarm in alarms]) < 0.16


def test_a_shift_is_noticed_and_dated() -> None:
    random = np.random.default_rng(1)
    p_values = np.ceil(random.uniform(size=400) * 1001) / 1001
    p_values[200:] = np.maximum(1, np.round(p_values[200:] * 300)) / 1001
    drift = find_drift(p_values, num_scores=1000, false_alarm_rate=0.01)
    assert drift.alarm is not None
    assert drift.since is not None
    assert abs(drift.since - 200) < 12
    assert 200 < drift.alarm < 230
    assert drift.path[drift.alarm] > drift.threshold >= drift.path[drift.alarm - 1]
    assert (drift.path[drift.since : drift.alarm] > 0).all()


def test_no_video_has_no_drift() -> None:
    drift = find_drift(np.empty(0), num_scores=20, false_alarm_rate=0.05)
    assert (len(drift.path), drift.alarm, drift.since) == (0, None, None)
    assert q_values(np.empty(0)).tolist() == []
