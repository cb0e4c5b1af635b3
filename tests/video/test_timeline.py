"""Timestamps that contradict each other are repaired, and valid ones stay the same."""

import itertools
from dataclasses import replace
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.video.packet_index import PacketIndex
from raypipe.video.sampling import choose_frames, num_frames_asked
from raypipe.video.timeline import (
    NO_TIME,
    DecodedOrder,
    DisplayTimes,
    Stamps,
    StreamKind,
    gap_limit,
    make_timeline,
    repair,
)
from support.decoding import packet_index
from video.conftest import make_request

MATROSKA = StreamKind(tick_seconds=0.001, frame_ticks=100.0, reorders=False, restarts=False, stores_dts=False)
TRANSPORT = replace(MATROSKA, restarts=True, stores_dts=True)
LONG = list(range(0, 6000, 100))  # 60 frames, 10 a second


def ticks(times: list[int | None]) -> np.ndarray:
    return np.array([NO_TIME if time is None else time for time in times], dtype=np.int64)


def stamps(pts: list[int | None], *, keys: tuple[int, ...] = (0,), dts: list[int | None] | None = None) -> Stamps:
    is_keyframe = np.isin(np.arange(len(pts)), keys)
    return Stamps(ticks(pts), ticks(dts or [None] * len(pts)), is_keyframe, np.ones(len(pts), dtype=np.bool_))


def repaired(pts: list[int | None], kind: StreamKind = MATROSKA) -> list[int] | None:
    """Return the repaired times relative to the first, or None if nothing was repaired."""
    timeline = make_timeline(stamps(pts), kind)
    if not timeline.is_repaired:
        np.testing.assert_array_equal(timeline.pts, ticks(pts))
        return None
    times: list[int] = (timeline.pts - timeline.pts[0]).tolist()
    return times


FAULTY: dict[str, list[int | None]] = {
    "joined": [*LONG[:30], *LONG[:30]],
    "joined while it goes on": [*LONG[:20], *LONG[10:30], *LONG[5:25]],
    "back a little": [*LONG[:30], *[time - 537 for time in LONG[30:]]],
    "forward": [*LONG[:30], *[time + 1_000_000 for time in LONG[30:]]],
    "forward twice": [*LONG[:20], *[time + 10**6 for time in LONG[20:40]], *[time + 2 * 10**6 for time in LONG[40:]]],
    "forward and back": [*LONG[:20], *[time + 50_000 for time in LONG[20:40]], *LONG[40:]],
    "last is late": [*LONG[:59], 20_000_000],
    "first is early": [-10_000_000, *LONG[1:]],
    "one is late": [*LONG[:30], 20_000_000, *LONG[31:]],
    "one is a little late": [*LONG[:30], 5000, *LONG[31:]],
    "one is early": [*LONG[:30], 0, *LONG[31:]],
    "one is repeated": [*LONG[:30], 2900, *LONG[31:]],
    "a few are wrong": [*LONG[:30], 9000, 7, 10**9, *LONG[33:]],
    "none at the start": [*[None] * 25, *[time - 2500 for time in LONG[25:]]],
    "none in the middle": [*LONG[:20], *[None] * 20, *LONG[40:]],
    "none in the middle, then going on": [*LONG[:20], *[None] * 20, *[time - 2000 for time in LONG[40:]]],
    "none at the end": [*LONG[:40], *[None] * 20],
    "every other": [time if time % 200 else None for time in LONG],
    "none": [None] * 60,
    "all equal": [7] * 60,
}


@pytest.mark.parametrize("name", FAULTY)
def test_faults_are_repaired(name: str) -> None:
    assert repaired(FAULTY[name]) == LONG


def test_pairs_of_equal_stamps_are_taken_apart() -> None:
    assert repaired([time // 200 * 200 for time in LONG]) == LONG


@pytest.mark.parametrize(
    ("pts", "kind"),
    [
        (LONG, MATROSKA),
        ([0], MATROSKA),
        ([5, 4_000_000], MATROSKA),
        ([time**2 for time in range(60)], MATROSKA),
        # Nothing moves for a while.
        ([*LONG[:30], *[time + 20_000 for time in LONG[30:]]], MATROSKA),
        # Slides, with some frames at each change.
        ([slide * 60_000 + frame * 40 for slide in range(20) for frame in range(3)], MATROSKA),
        (list(range(0, 6_000_000, 100_000)), MATROSKA),
        (list(range(0, 6_000_000, 100_000)), TRANSPORT),
        ([*LONG[:30], *[time + 9_000 for time in LONG[30:]]], TRANSPORT),
    ],
    ids=str,
)
def test_valid_stamps_stay(pts: list[int | None], kind: StreamKind) -> None:
    assert repaired(pts, kind) is None


def test_a_clock_starts_again_where_the_container_allows_it() -> None:
    jump: list[int | None] = [*LONG[:30], *[time + 12_000 for time in LONG[30:]]]
    assert repaired(jump) is None
    assert repaired(jump, TRANSPORT) == LONG


def test_a_gap_is_an_error_if_it_dwarfs_the_rest() -> None:
    gaps = np.full(59, 100)
    for gap, is_error in ((29_000, False), (57_000, False), (60_000, True), (10**9, True)):
        gaps[30] = gap
        assert (gap > gap_limit(gaps, MATROSKA)) == is_error
        assert (gap > gap_limit(gaps, TRANSPORT)) == (gap > 10_000)
    gaps[40] = gaps[30]  # two such gaps, and enough frames for them
    assert gap_limit(gaps, MATROSKA) < 10**9
    assert gap_limit(gaps[25:45], MATROSKA) == np.inf


REORDERS = replace(MATROSKA, reorders=True)
MINI_GROUPS = [group * 4 + frame for group in range(15) for frame in (4, 2, 1, 3)]
B_FRAMES = [0, *[frame for frame in MINI_GROUPS if frame < 60]][:60]  # number of each frame, in decoding order


def refuse() -> None:
    """Fail, because this timeline needs no decoding."""
    pytest.fail("decoded")


def decoded(order: list[int]) -> DecodedOrder:
    """Return the decoder's order of packets that hold these frames."""
    return DecodedOrder(np.argsort(order), len(order))


@pytest.mark.parametrize(
    "order",
    [
        B_FRAMES,
        [0, *[group * 17 + frame for group in range(3) for frame in (17, *range(1, 17))]],  # 16 B-frames in a row
        [0, *[group * 8 + frame for group in range(6) for frame in (8, 4, 2, 1, 3, 6, 5, 7)]],
        [0, *[group * 32 + frame for group in range(3) for frame in (32, *range(1, 32))]],
        list(range(40)),
    ],
    ids=lambda order: str(order[:4]),
)
def test_reordered_frames_are_sound(order: list[int]) -> None:
    pts: list[int | None] = [frame * 100 for frame in order]
    keys = tuple(np.flatnonzero(np.array(order) % 16 == 0).tolist())
    assert not make_timeline(stamps(pts, keys=(0,)), REORDERS, decode_order=refuse).is_repaired
    is_anchor = [all(frame > before for before in order[:at]) for at, frame in enumerate(order)]
    anchors = tuple(key for key in keys if is_anchor[key])
    assert not make_timeline(stamps(pts, keys=anchors), REORDERS, decode_order=refuse).is_repaired


@pytest.mark.parametrize("name", FAULTY)
@pytest.mark.parametrize("asks", [True, False], ids=["decoder", "guess"])
def test_faults_of_reordered_frames_are_repaired(name: str, *, asks: bool) -> None:
    shown = FAULTY[name]
    pts = [shown[frame] for frame in B_FRAMES]
    timeline = make_timeline(stamps(pts), REORDERS, decode_order=lambda: decoded(B_FRAMES) if asks else None)
    times = timeline.pts[np.argsort(B_FRAMES)]
    assert (np.diff(np.sort(times)) > 0).all()
    if asks:
        assert (times - times[0]).tolist() == LONG
    else:  # without decoding, these two faults look like reordered frames
        assert timeline.is_repaired or name in {"back a little", "one is a little late"}


def test_a_short_step_back_is_found_by_decoding() -> None:
    shown = [*LONG[:30], *[time - 350 for time in LONG[30:]]]
    pts: list[int | None] = [shown[frame] for frame in B_FRAMES]
    timeline = make_timeline(stamps(pts), REORDERS, decode_order=lambda: decoded(B_FRAMES))
    assert timeline.is_repaired
    times = timeline.pts[np.argsort(B_FRAMES)]
    assert (times - times[0]).tolist() == LONG


def test_a_decoding_time_that_goes_back_is_a_fault() -> None:
    pts: list[int | None] = [*[frame * 100 for frame in B_FRAMES[:33]], *[frame * 100 - 350 for frame in B_FRAMES[33:]]]
    dts: list[int | None] = [at * 100 - 300 - 350 * (at >= 33) for at in range(60)]
    kind = replace(TRANSPORT, reorders=True)
    assert not make_timeline(stamps(pts), kind).is_repaired
    timeline = make_timeline(stamps(pts, dts=dts), kind, decode_order=lambda: decoded(B_FRAMES))
    assert timeline.is_repaired
    times = timeline.pts[np.argsort(B_FRAMES)]
    assert (times - times[0]).tolist() == LONG


@pytest.mark.parametrize("count", [30, 8], ids=["all", "first"])
def test_second_fields_are_hidden(count: int) -> None:
    pts: list[int | None] = [time for frame in B_FRAMES[:30] for time in (frame * 100, None)]
    order = np.argsort(B_FRAMES[:count]) * 2
    kind = replace(TRANSPORT, reorders=True)
    timeline = make_timeline(stamps(pts), kind, decode_order=lambda: DecodedOrder(order, 2 * count))
    assert not timeline.is_repaired
    assert timeline.is_shown.tolist() == [True, False] * 30
    assert not np.isin(timeline.pts[1::2], timeline.pts[::2]).any()


@st.composite
def faulty_stamps(draw: st.DrawFn) -> list[int | None]:
    """Draw segments of varying rate with jumps, and wrong, repeated and missing stamps."""
    times: list[int | None] = []
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.sampled_from([0, 50, 10**6, -(10**9), 2**61]))
        steps = draw(st.lists(st.sampled_from([1, 40, 41, 100, 3000, 60_000]), max_size=8))
        times += [start + step for step in itertools.accumulate(steps, initial=0)]
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(times) - 1))
        times[at] = draw(st.sampled_from([None, times[at - 1], 0, -(2**50), 2**50, 20_000_000, 77]))
    return times


def as_index(timeline: DisplayTimes) -> PacketIndex:
    shown = np.sort(timeline.pts[timeline.is_shown])
    end = float(shown[-1] - shown[0]) / 1000 + 0.1
    is_keyframe = np.ones(len(timeline.pts), dtype=np.bool_)
    return packet_index(
        timeline.pts,
        is_keyframe,
        is_shown=timeline.is_shown,
        time_base=Fraction(1, 1000),
        fps=10.0,
        duration_seconds=end,
        container="matroska",
        codec="vp9",
    )


KINDS = [replace(kind, reorders=reorders) for kind in (MATROSKA, TRANSPORT) for reorders in (True, False)]


@given(faulty_stamps(), st.sampled_from(KINDS), st.integers(1, 6), st.randoms(use_true_random=False))
def test_uniform_takes_the_closest_distinct_frames(
    times: list[int | None], kind: StreamKind, num_frames: int, random: Random
) -> None:
    packets = list(range(len(times)))
    if kind.reorders:
        random.shuffle(packets)
    pts = [times[frame] for frame in packets]
    timeline = make_timeline(stamps(pts), kind, decode_order=lambda: decoded(packets))
    shown = timeline.pts[np.argsort(packets)]
    assert (np.diff(shown) > 0).all() or not timeline.is_repaired
    assert len(np.unique(timeline.pts)) == len(times)
    index, request = as_index(timeline), make_request(num_frames=num_frames)
    wanted = choose_frames(index, request)
    assert num_frames_asked(index, request, wanted) == len(wanted.packets) == min(num_frames, len(times))
    assert (np.diff(wanted.pts_seconds) > 0).all()
    np.testing.assert_array_equal(index.pts_seconds[wanted.packets], wanted.pts_seconds)
    if num_frames < len(times) <= 12:
        centres = (np.arange(num_frames) + 0.5) * index.duration_seconds / num_frames
        seconds = np.sort(index.pts_seconds)
        ways = itertools.combinations(range(len(times)), num_frames)
        best = min(np.abs(seconds[list(way)] - centres).sum() for way in ways)
        assert np.abs(wanted.pts_seconds - centres).sum() == pytest.approx(best)


@given(st.lists(st.one_of(st.none(), st.integers(-(2**61), 2**61)), min_size=1, max_size=40))
def test_repaired_times_always_increase(times: list[int | None]) -> None:
    found = repair(ticks(times), MATROSKA)
    assert len(found) == len(times)
    assert (np.diff(found) > 0).all()


def test_packets_with_a_time_of_their_own_are_not_hidden_because_they_gave_no_frame() -> None:
    pts: list[int | None] = [0, 100, 200, 300, 0, 100, 200, 300]
    order = DecodedOrder(np.array([0, 1, 2, 3, 6, 7]), len(pts))  # the second segment starts with open-GOP frames
    timeline = make_timeline(stamps(pts), REORDERS, decode_order=lambda: order)
    assert timeline.is_repaired
    assert timeline.is_shown.all()
    assert (np.diff(timeline.pts) > 0).all()


def test_a_short_video_gives_all_its_frames_once() -> None:
    index = as_index(make_timeline(stamps([0, 100, 200]), MATROSKA))
    new, old = make_request(num_frames=7), make_request(num_frames=7, row_format=1)
    assert choose_frames(index, new).packets.tolist() == [0, 1, 2]
    assert num_frames_asked(index, new, choose_frames(index, new)) == 3
    assert len(choose_frames(index, old).packets) == 7
    assert num_frames_asked(index, old, choose_frames(index, old)) == 7


def test_times_that_damage_hides_are_not_taken() -> None:
    pts: list[int | None] = [*LONG[:20], *LONG[30:]]
    index = replace(as_index(make_timeline(stamps(pts), MATROSKA)), lost_spans=((2.0, 3.0),))
    request = make_request(num_frames=12)
    wanted = choose_frames(index, request)
    assert wanted.pts_seconds.tolist() == pytest.approx([0.2, 0.7, 1.2, 1.7, 3.2, 3.7, 4.2, 4.7, 5.2, 5.7], abs=0.06)
    assert num_frames_asked(index, request, wanted) == 12
    assert num_frames_asked(index, make_request(num_frames=90, max_frames=90), wanted) == 60
