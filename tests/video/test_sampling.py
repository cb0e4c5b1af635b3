"""Which times and frames a policy takes: laws that hold for every duration and count."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.video.sampling import Seconds, nearest, sample_timestamps, spread

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
    assert abs(int(chosen[0]) - (count - 1 - int(chosen[-1]))) <= 1  # as much is left out before as after


@given(st.lists(st.integers(0, 40), min_size=1, unique=True), st.lists(st.integers(-3, 43)))
def test_nearest_is_nearest_and_a_tie_takes_the_earlier(pts: list[int], timestamps: list[int]) -> None:
    ordered = sorted(pts)
    chosen = nearest(np.array(ordered, dtype=np.float64), np.array(timestamps, dtype=np.float64))
    expected = [min(range(len(ordered)), key=lambda at: (abs(ordered[at] - time), at)) for time in timestamps]
    assert chosen.tolist() == expected
