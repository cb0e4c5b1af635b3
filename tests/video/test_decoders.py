"""PyAV reads only parts of a video, but takes the same frames as a plain reading of the whole video."""

import io
import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Protocol

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.container import InputContainer
from av.video.frame import PictureType
from av.video.stream import VideoStream
from hypothesis import given
from hypothesis import strategies as st

from raypipe.status import Status
from raypipe.video.container import RAW_STREAMS
from raypipe.video.decode_request import DecodeRequest, Pixels
from raypipe.video.deinterlace import Deinterlacer
from raypipe.video.display import FrameWriter, pixel_aspect
from raypipe.video.frame_reader import packets_to_decode
from raypipe.video.packet_index import PacketIndex
from raypipe.video.sampling import Wanted, nearest, nearest_distinct, sample_timestamps, spread
from support.decoding import packet_index

REQUESTS: dict[str, dict[str, object]] = {
    "uniform": {},
    "uniform-2": {"num_frames": 2},
    "fps": {"mode": "fps"},
    "fps-capped": {"mode": "fps", "max_frames": 3},
    "keyframes": {"mode": "keyframes"},
    "all": {"mode": "all", "max_frames": 64},
    "all-capped": {"mode": "all", "max_frames": 7},
    "nearest_keyframe": {"nearest_keyframe": True},
}


class Settings(Protocol):
    """The recipe of a generated clip."""

    times: tuple[int, ...]
    num_frames: int
    fps: int
    width: int
    height: int
    rotation: int


class Clip(Protocol):
    """What the ``clip`` fixture returns."""

    name: str
    settings: Settings
    data: bytes


class Plain:
    """A plain reading: every frame, ordered by time in seconds from the first, and the expected frames of a request."""

    def __init__(self, data: bytes, request: DecodeRequest) -> None:
        with av.open(io.BytesIO(data), "r") as container:
            packets = [packet for packet in container.demux(_best(container)) if packet.size and not packet.is_discard]
        with av.open(io.BytesIO(data), "r") as container:
            stream = _best(container)
            aspect = pixel_aspect(stream)
            shown = Deinterlacer().deinterlace(container.decode(stream))
            decoded = [frame for frame in shown if frame is not None]
            times = [frame.pts or 0 for frame in decoded]
            keys = {packet.pts for packet in packets if packet.is_keyframe}
            time_base = stream.time_base or Fraction(1)
            if container.format.name in RAW_STREAMS:
                times, time_base = list(range(len(decoded))), 1 / Fraction(stream.codec_context.framerate)
            if container.format.name in {
                "avi",
                "mxf",
                *RAW_STREAMS,
            }:  # no display times, but the decoder knows the order
                times.sort()
                keys = {time for time, frame in zip(times, decoded, strict=True) if frame.pict_type == PictureType.I}
            frames = {time: _crop(frame, request, aspect) for time, frame in zip(times, decoded, strict=True)}
        ordered = sorted(frames)
        self.seconds = np.array([(pts - ordered[0]) * float(time_base) for pts in ordered])
        self.frames = np.stack([frames[pts] for pts in ordered])
        self.keys = np.array([at for at, pts in enumerate(ordered) if pts in keys])

    def expected(self, request: DecodeRequest, duration_seconds: float) -> npt.NDArray[np.int64]:
        """Return which of the frames a request takes."""
        among = np.arange(len(self.seconds))
        if request.mode == "keyframes" or request.nearest_keyframe:
            among = self.keys
        if request.mode in {"uniform", "fps"}:
            times = _asked(request, duration_seconds)
            is_distinct = request.mode == "uniform" and not request.nearest_keyframe
            return among[(nearest_distinct if is_distinct else nearest)(self.seconds[among], times)]
        return among[spread(len(among), request.max_frames)]


def _best(container: InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    assert isinstance(stream, VideoStream)
    return stream


def _crop(frame: av.VideoFrame, request: DecodeRequest, aspect: Fraction) -> Pixels:
    crop: Pixels = np.zeros((request.crop_size, request.crop_size, 3), dtype=np.uint8)
    wanted = Wanted(np.zeros(1, np.int64), np.zeros(1))
    FrameWriter(wanted, crop[None], request, pixel_aspect=aspect).put([0], frame, 0)
    return crop


def _asked(request: DecodeRequest, duration_seconds: float) -> npt.NDArray[np.float64]:
    return sample_timestamps(
        duration_seconds,
        mode="fps" if request.mode == "fps" else "uniform",
        num_frames=request.num_frames,
        fps=request.fps,
        max_frames=request.max_frames,
    )


def check_all_requests(
    data: bytes, decode: Callable[..., Any], make_request: Callable[..., DecodeRequest], *, exactly: bool = True
) -> None:
    plain = Plain(data, make_request())
    for name, changes in REQUESTS.items():
        request = make_request(**changes)
        video = decode(data, request)
        assert (video.reply.status, video.reply.error) == (Status.OK, ""), name
        expected = plain.expected(request, video.reply.duration_seconds)
        np.testing.assert_allclose(video.pts_seconds, plain.seconds[expected], atol=1e-6, err_msg=name)
        if exactly:
            np.testing.assert_array_equal(video.frames, plain.frames[expected], err_msg=name)
        else:
            assert np.abs(video.frames.astype(np.int16) - plain.frames[expected]).mean() < 1, name


def test_pyav_takes_the_frames_of_a_plain_reading(
    clip: Clip, decode: Callable[..., Any], make_request: Callable[..., DecodeRequest]
) -> None:
    # If a video refreshes itself gradually, a reading that starts there may keep traces of what it did not read. The
    # first frame of a group of pictures is deinterlaced without the previous frame.
    exactly = clip.name not in {"h264-intra-refresh", "h264-interlaced"}
    check_all_requests(clip.data, decode, make_request, exactly=exactly)


def test_pyav_takes_the_frames_of_a_plain_reading_of_real_clips(
    real: tuple[str, bytes], decode: Callable[..., Any], make_request: Callable[..., DecodeRequest]
) -> None:
    check_all_requests(real[1], decode, make_request)


def test_pyav_takes_the_frame_on_screen(
    clip: Clip, decode: Callable[..., Any], make_request: Callable[..., DecodeRequest]
) -> None:
    request = make_request()
    video = decode(clip.data, request)
    settings = clip.settings
    times = np.array(settings.times or range(settings.num_frames), dtype=np.float64)
    seconds = (times - times[0]) / settings.fps
    asked = _asked(request, video.reply.duration_seconds)
    expected = nearest_distinct(seconds, asked)
    if len(seconds) > len(asked):
        assert (np.abs(video.pts_seconds - asked) <= np.diff(seconds, append=seconds[-1] + 1).max() / 2).all()
    np.testing.assert_allclose(video.pts_seconds, seconds[expected], atol=0.002)  # the precision of FLV and Matroska
    numbers = (video.frames[:, 20:50, 20:36].mean(axis=(1, 2, 3)) - 24) / 9
    np.testing.assert_allclose(numbers, expected, atol=0.4)
    if not settings.times:
        assert video.reply.duration_seconds == pytest.approx(settings.num_frames / settings.fps, abs=0.01)
    size = (settings.width, settings.height)
    assert (video.reply.width, video.reply.height) == (size[::-1] if settings.rotation % 180 else size)


@st.composite
def indices(draw: st.DrawFn) -> tuple[PacketIndex, list[int]]:
    """Draw packets of some groups of pictures, whose display order may mix two groups, and some wanted packets."""
    is_keyframe = np.array(draw(st.lists(st.booleans(), min_size=1, max_size=40)))
    count = len(is_keyframe)
    shift = draw(st.lists(st.integers(0, 6), min_size=count, max_size=count))
    pts = np.argsort(np.argsort(np.arange(count) + np.array(shift), kind="stable"), kind="stable").astype(np.int64)
    wanted = draw(st.lists(st.integers(0, count - 1), min_size=1))
    return make_index(pts, is_keyframe), wanted


def make_index(pts: npt.NDArray[np.int64], is_keyframe: npt.NDArray[np.bool_]) -> PacketIndex:
    """Return packets with these times, 25 per second."""
    return packet_index(pts, is_keyframe, time_base=Fraction(1, 25), fps=25.0, duration_seconds=len(pts) / 25)


@given(indices())
def test_ranges_hold_what_the_wanted_packets_need(drawn: tuple[PacketIndex, list[int]]) -> None:
    index, wanted = drawn
    ranges = packets_to_decode(index, np.array(wanted, dtype=np.int64))
    keys = np.flatnonzero(index.is_keyframe).tolist()
    assert all(start < stop for start, stop in ranges)
    assert all(stop < start for (_, stop), (start, _) in itertools.pairwise(ranges))  # adjacent ranges would be merged
    assert all(start in keys or start == 0 for start, _ in ranges)
    assert {stop - 1 for _, stop in ranges} <= set(wanted)
    for packet in wanted:
        (start,) = (start for start, stop in ranges if start <= packet < stop)
        before = [key for key in keys if key <= packet]
        refers_back = bool(before) and index.pts[packet] < index.pts[before[-1]]
        needed = ([0, 0, *before] if not before else [0, *before])[-2 if refers_back else -1]
        assert start <= needed


def test_a_range_grows_back_to_the_group_before() -> None:
    pts = np.array([0, 1, 2, 5, 3, 4, 6, 9, 7, 8])
    index = make_index(pts, np.isin(np.arange(10), (0, 3, 7)))
    assert packets_to_decode(index, np.array([3])) == [(3, 4)]
    assert packets_to_decode(index, np.array([3, 6])) == [(3, 7)]
    assert packets_to_decode(index, np.array([3, 4])) == [(0, 5)]  # shown before the key frame that precedes it
    assert packets_to_decode(index, np.array([0, 3, 7, 8])) == [(0, 1), (3, 9)]
    assert packets_to_decode(index, np.array([0, 7])) == [(0, 1), (7, 8)]
