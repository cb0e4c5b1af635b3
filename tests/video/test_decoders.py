"""Every decoder takes the frames that a plain reading of the whole video would have given."""

import importlib
import io
import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.container import InputContainer
from av.video.stream import VideoStream
from hypothesis import given
from hypothesis import strategies as st

from raypipe.status import Status
from raypipe.video.decoders import FrameWriter, Wanted, packets_to_decode
from raypipe.video.probe import VideoIndex
from raypipe.video.protocol import DecodeRequest, Pixels
from raypipe.video.sampling import nearest, sample_timestamps, spread

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
REAL = (
    "PaddleVideo_data_example.avi",
    "clip-video-encode_tests_test_videos_vid1.mp4",
    "clip-video-encode_tests_test_videos_vid2.mp4",
    "imageio_test_images_realshort.mp4",
    "imageio_test_images_test.webm",
    "intel_sample-videos_asl_gestures_again.mkv",
    "intel_sample-videos_asl_gestures_brother.mkv",
    "mmaction2_demo_demo_spatiotemporal_det.mp4",
    "mmaction2_tests_data_rawvideo_dataset_part_0.mp4",
    "mmaction2_tests_data_test.avi",
    "torchcodec_test_resources_av1_video.mkv",
    "torchcodec_test_resources_bt709_full_range.mp4",
    "torchcodec_test_resources_h264_10bits.mp4",
    "torchcodec_test_resources_h265_10bits.mp4",
    "torchcodec_test_resources_h265_video.mp4",
    "torchcodec_test_resources_nasa_13013.mp4",
)
HOSTILE = ("video_0", "video_90", "video_180", "video_270", "unordered")
# What the other decoders cannot do. They say so: a video that is not named here must come out whole.
CANNOT = {
    "decord": {
        "av1": "its FFmpeg has no AV1 decoder",
        "torchcodec_test_resources_av1_video.mkv": "its FFmpeg has no AV1 decoder",
        "vp8-ogg": "it needs a frame count in the header",
        "imageio_test_images_test.webm": "it needs a frame count in the header",
        "h264-ts": "it seeks to other frames",
        "h264-intra-refresh": "it seeks to other frames",
        "mpeg2": "it seeks to other frames",
        "mpeg4-avi": "it seeks to other frames",
        "mmaction2_tests_data_test.avi": "it seeks to other frames",
        "h264-open-gop": "it seeks to other frames",
        "h264-open-gop-mkv": "it seeks to other frames",
        "hevc": "it seeks to other frames",
        "torchcodec_test_resources_h265_video.mp4": "it seeks to other frames",
        "clip-video-encode_tests_test_videos_vid1.mp4": "it ignores edit lists",
        "clip-video-encode_tests_test_videos_vid2.mp4": "it ignores edit lists",
    },
    "torchcodec": {
        "h264-ts": "it seeks to other frames",
        "h264-intra-refresh": "it seeks to other frames",
        "mpeg2": "it seeks to other frames",
        "mpeg4-avi": "it times frames out of order otherwise",
        "mmaction2_tests_data_test.avi": "it times frames out of order otherwise",
        "h264-open-gop": "it misses the last frames",
        "h264-open-gop-mkv": "it misses the last frames",
        "clip-video-encode_tests_test_videos_vid1.mp4": "it seeks to other frames where an edit list cuts",
        "clip-video-encode_tests_test_videos_vid2.mp4": "it seeks to other frames where an edit list cuts",
    },
}
# Another FFmpeg, another scaler: mean absolute difference of a frame. A frame further on differs by 9 in our clips.
SAME = 4.5
# torchcodec turns a frame into RGB before it is scaled, which shows on the sharp edges of test cards.
ALIKE = {
    "torchcodec_test_resources_h264_10bits.mp4": 10,
    "torchcodec_test_resources_h265_10bits.mp4": 10,
}


class Settings(Protocol):
    """How a generated clip was made."""

    times: tuple[int, ...]
    num_frames: int
    fps: int
    width: int
    height: int


class Clip(Protocol):
    """What the fixture of that name gives."""

    name: str
    settings: Settings
    data: bytes


class Plain:
    """A plain reading: every frame, in order of time, seconds from the first; what to expect of a request."""

    def __init__(self, data: bytes, request: DecodeRequest) -> None:
        with av.open(io.BytesIO(data), "r") as container:
            packets = [packet for packet in container.demux(_best(container)) if packet.size and not packet.is_discard]
        with av.open(io.BytesIO(data), "r") as container:
            stream = _best(container)
            frames = {frame.pts or 0: _crop(frame, request) for frame in container.decode(stream)}
            time_base = stream.time_base or Fraction(1)
        ordered = sorted(frames)
        keys = {packet.pts for packet in packets if packet.is_keyframe}
        self.seconds = np.array([(pts - ordered[0]) * float(time_base) for pts in ordered])
        self.frames = np.stack([frames[pts] for pts in ordered])
        self.keys = np.array([at for at, pts in enumerate(ordered) if pts in keys])

    def expected(self, request: DecodeRequest, duration_seconds: float) -> npt.NDArray[np.int64]:
        """Which of the frames a request takes."""
        among = np.arange(len(self.seconds))
        if request.mode == "keyframes" or request.nearest_keyframe:
            among = self.keys
        if request.mode in {"uniform", "fps"}:
            times = _asked(request, duration_seconds)
            return among[nearest(self.seconds[among], times)]
        return among[spread(len(among), request.max_frames)]


def _best(container: InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    assert isinstance(stream, VideoStream)
    return stream


def _crop(frame: av.VideoFrame, request: DecodeRequest) -> Pixels:
    crop: Pixels = np.zeros((request.crop_size, request.crop_size, 3), dtype=np.uint8)
    FrameWriter(Wanted(np.zeros(1, np.int64), np.zeros(1)), crop[None], request).put([0], frame, 0)
    return crop


def _asked(request: DecodeRequest, duration_seconds: float) -> npt.NDArray[np.float64]:
    return sample_timestamps(
        duration_seconds,
        mode="fps" if request.mode == "fps" else "uniform",
        num_frames=request.num_frames,
        fps=request.fps,
        max_frames=request.max_frames,
    )


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    level = av.logging.get_level()
    av.logging.set_level(None)
    yield
    av.logging.set_level(level)


@pytest.fixture(params=[*REAL, *HOSTILE])
def real(request: pytest.FixtureRequest, assets: Path) -> tuple[str, bytes]:
    """Each of the real clips: its name and its bytes."""
    name: str = request.param
    file = next((assets / "hostile").glob(f"decord_*_{name}.mov")) if name in HOSTILE else assets / "videos" / name
    return name, file.read_bytes()


@pytest.fixture(scope="session", params=CANNOT)
def other_decoder(request: pytest.FixtureRequest) -> str:
    """Each decoder but PyAV."""
    decoder = str(request.param)
    _import_or_skip(decoder)
    return decoder


def _import_or_skip(decoder: str) -> None:
    try:
        importlib.import_module("av" if decoder == "pyav" else decoder)
    except Exception as error:  # noqa: BLE001  # torchcodec says in several ways that it finds no FFmpeg
        pytest.skip(f"{decoder} cannot be imported: {str(error).splitlines()[0]}")


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
            assert differences(video.frames, plain.frames[expected]).max() < SAME, name


def differences(frames: Pixels, others: Pixels) -> npt.NDArray[np.float64]:
    """Mean absolute difference [T] of frames [T, height, width, 3]."""
    difference: npt.NDArray[np.float64] = np.abs(frames.astype(np.int16) - others).mean(axis=(1, 2, 3))
    return difference


def test_pyav_takes_the_frames_of_a_plain_reading(
    clip: Clip, decode: Callable[..., Any], make_request: Callable[..., DecodeRequest]
) -> None:
    # A reading that starts where a video refreshes itself bit by bit may keep traces of what it did not read.
    check_all_requests(clip.data, decode, make_request, exactly=clip.name != "h264-intra-refresh")


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
    assert (np.abs(video.pts_seconds - asked) <= np.diff(seconds, append=seconds[-1] + 1).max() / 2).all()
    expected = nearest(seconds, asked)
    np.testing.assert_allclose(video.pts_seconds, seconds[expected], atol=0.002)  # as fine as FLV and Matroska count
    numbers = (video.frames[:, 20:50, 20:36].mean(axis=(1, 2, 3)) - 24) / 9
    np.testing.assert_allclose(numbers, expected, atol=0.4)
    if not settings.times:
        assert video.reply.duration_seconds == pytest.approx(settings.num_frames / settings.fps, abs=0.01)
    assert (video.reply.width, video.reply.height) == (settings.width, settings.height)


@pytest.mark.parametrize("decoder", ["pyav", "decord", "torchcodec"])
def test_frames_are_upright(
    decoder: str,
    make_clip: Callable[..., bytes],
    decode: Callable[..., Any],
    make_request: Callable[..., DecodeRequest],
) -> None:
    _import_or_skip(decoder)
    for name, corner in (("h264", 0), ("h264-90", 3), ("h264-180", 2), ("h264-270", 1)):
        frame = decode(make_clip(name), make_request(), decoder=decoder).frames[0]
        clockwise = frame[1:4, 1:4], frame[1:4, -4:-1], frame[-4:-1, -4:-1], frame[-4:-1, 1:4]
        assert [int(patch.mean() > 200) for patch in clockwise] == [int(at == corner) for at in range(4)], name


def check_same_frames(
    data: bytes, name: str, decoder: str, decode: Callable[..., Any], make_request: Callable[..., DecodeRequest]
) -> None:
    whole = True
    for request in (make_request(num_frames=8), make_request(mode="all", max_frames=48)):
        ours, theirs = decode(data, request), decode(data, request, decoder=decoder)
        at = nearest(ours.pts_seconds, theirs.pts_seconds)
        np.testing.assert_allclose(theirs.pts_seconds, ours.pts_seconds[at], atol=1e-3)
        assert differences(theirs.frames, ours.frames[at]).max(initial=0) < ALIKE.get(name, SAME)
        assert theirs.reply.status in {Status.OK, Status.PARTIAL, Status.DECODE_ERROR}
        whole = whole and theirs.reply.status == Status.OK
    assert whole != (name in CANNOT[decoder]), theirs.reply.error


def test_the_other_decoders_give_the_same_frames_or_say_that_they_cannot(
    clip: Clip, other_decoder: str, decode: Callable[..., Any], make_request: Callable[..., DecodeRequest]
) -> None:
    check_same_frames(clip.data, clip.name, other_decoder, decode, make_request)


def test_the_other_decoders_give_the_same_frames_of_real_clips_or_say_that_they_cannot(
    real: tuple[str, bytes], other_decoder: str, decode: Callable[..., Any], make_request: Callable[..., DecodeRequest]
) -> None:
    check_same_frames(real[1], real[0], other_decoder, decode, make_request)


@st.composite
def indices(draw: st.DrawFn) -> tuple[VideoIndex, list[int]]:
    """Packets of some groups of pictures, in any order of times within two groups, and some wanted ones."""
    is_keyframe = np.array(draw(st.lists(st.booleans(), min_size=1, max_size=40)))
    count = len(is_keyframe)
    shift = draw(st.lists(st.integers(0, 6), min_size=count, max_size=count))
    pts = np.argsort(np.argsort(np.arange(count) + np.array(shift), kind="stable"), kind="stable").astype(np.int64)
    wanted = draw(st.lists(st.integers(0, count - 1), min_size=1))
    shown = np.ones(count, dtype=np.bool_)
    index = VideoIndex(
        pts=pts,
        is_keyframe=is_keyframe,
        is_disposable=~shown,
        is_shown=shown,
        time_base=Fraction(1, 25),
        container="mov",
        codec="h264",
        width=96,
        height=72,
        average_fps=25.0,
        duration_seconds=count / 25,
        end_seconds=count / 25,
    )
    return index, wanted


@given(indices())
def test_ranges_hold_what_the_wanted_packets_need(drawn: tuple[VideoIndex, list[int]]) -> None:
    index, wanted = drawn
    ranges = packets_to_decode(index, np.array(wanted, dtype=np.int64))
    keys = np.flatnonzero(index.is_keyframe).tolist()
    assert all(start < stop for start, stop in ranges)
    assert all(stop < start for (_, stop), (start, _) in itertools.pairwise(ranges))  # else one would do
    assert all(start in keys or start == 0 for start, _ in ranges)
    assert {stop - 1 for _, stop in ranges} <= set(wanted)
    for packet in wanted:
        (start,) = (start for start, stop in ranges if start <= packet < stop)
        before = [key for key in keys if key <= packet]
        refers_back = bool(before) and index.pts[packet] < index.pts[before[-1]]
        needed = ([0, 0, *before] if not before else [0, *before])[-2 if refers_back else -1]
        assert start <= needed
