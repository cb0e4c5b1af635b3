"""Which times and frames a sampling policy takes: properties that hold for every duration and count."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.video.sampling import nearest, nearest_distinct, sample_timestamps, spread
from raypipe.video.timeline import Seconds

durations = st.floats(0.01, 50_000)
counts = st.integers(1, 500)
rates = st.floats(0.01, 240)


def uniform(duration_seconds: float, num_frames: int, max_frames: int = 1000) -> Seconds:
    return sample_timestamps(duration_seconds, mode="uniform", num_frames=num_frames, fps=1, max_frames=max_frames)


def per_second(duration_seconds: float, fps: float, max_frames: int) -> Seconds:
    return sample_timestamps(duration_seconds, mode="fps", num_frames=1, fps=fps, max_frames=max_frames)


@given(durations, counts, counts)
def test_uniform_takes_the_centres_of_equal_spans(duration: float, num_frames: int, max_frames: int) -> None:
    times = uniform(duration, num_frames, max_frames)
    assert len(times) == min(num_frames, max_frames)
    assert times[0] >= 0
    assert times[-1] < duration
    assert (np.diff(times) > 0).all()
    np.testing.assert_allclose(times + times[::-1], duration)
    np.testing.assert_allclose(np.diff(times), duration / len(times))


@given(counts, rates, st.floats(0, 0.99), st.integers(0, 100))
def test_fps_takes_every_multiple_within_the_video(count: int, fps: float, less: float, spare: int) -> None:
    duration = (count - less) / fps
    times = per_second(duration, fps, count + spare)
    assert len(times) == count
    assert times[0] == 0
    assert times[-1] < duration
    np.testing.assert_allclose(times, np.arange(count) / fps)


@given(durations, counts, st.floats(1.01, 100))
def test_fps_beyond_the_cap_is_uniform_over_the_whole_video(duration: float, max_frames: int, excess: float) -> None:
    times = per_second(duration, (max_frames + 1) * excess / duration, max_frames)
    np.testing.assert_array_equal(times, uniform(duration, max_frames))


@pytest.mark.parametrize(("duration", "fps", "count"), [(0.1 * 3, 10, 3), (2.0, 12, 24), (1e-3, 1, 1), (10, 0.5, 5)])
def test_fps_counts_as_one_would(duration: float, fps: float, count: int) -> None:
    assert len(per_second(duration, fps, 1000)) == count


@given(st.integers(1, 10**6), counts)
def test_spread_is_even(count: int, max_count: int) -> None:
    chosen = spread(count, max_count)
    assert len(chosen) == min(count, max_count)
    assert chosen[0] >= 0
    assert chosen[-1] < count
    gaps = np.diff(chosen)
    assert (gaps >= 1).all()
    assert not len(gaps) or gaps.max() - gaps.min() <= 1
    assert abs(int(chosen[0]) - (count - 1 - int(chosen[-1]))) <= 1  # equal margins at both ends


@given(st.lists(st.integers(0, 40), min_size=1, unique=True), st.lists(st.integers(-3, 43)))
def test_nearest_is_nearest_and_a_tie_takes_the_earlier(pts: list[int], timestamps: list[int]) -> None:
    ordered = sorted(pts)
    chosen = nearest(np.array(ordered, dtype=np.float64), np.array(timestamps, dtype=np.float64))
    expected = [min(range(len(ordered)), key=lambda at: (abs(ordered[at] - time), at)) for time in timestamps]
    assert chosen.tolist() == expected


@given(st.lists(st.integers(0, 40), min_size=1, max_size=9, unique=True), st.lists(st.floats(0, 41), max_size=6))
def test_nearest_distinct_has_the_least_sum_of_distances(pts: list[int], timestamps: list[float]) -> None:
    seconds, asked = np.array(sorted(pts), dtype=np.float64), np.array(sorted(timestamps), dtype=np.float64)
    chosen = nearest_distinct(seconds, asked)
    assert len(chosen) == min(len(pts), len(timestamps))
    assert (np.diff(chosen) > 0).all()
    if len(pts) > len(timestamps):
        ways = itertools.combinations(range(len(pts)), len(timestamps))
        best = min(np.abs(seconds[list(way)] - asked).sum() for way in ways)
        assert np.abs(seconds[chosen] - asked).sum() == pytest.approx(best)


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([10, 25, 30, 60, 1000]))
def test_nearest_distinct_is_nearest_at_a_constant_rate(num_frames: int, extra: int, fps: int) -> None:
    seconds = np.arange(num_frames + extra) / fps
    asked = uniform(len(seconds) / fps, num_frames)
    np.testing.assert_array_equal(nearest_distinct(seconds, asked), nearest(seconds, asked))


@pytest.mark.parametrize("spread_of", ["even", "crowded"])
def test_nearest_distinct_of_very_many_frames(spread_of: str) -> None:
    count = 200_000
    seconds = np.arange(count) / 25.0
    if spread_of == "crowded":
        seconds[: count - 9] /= 1e6
    chosen = nearest_distinct(seconds, uniform(float(seconds[-1]), 65_536, max_frames=65_536))
    assert len(chosen) == 65_536
    assert (np.diff(chosen) > 0).all()
