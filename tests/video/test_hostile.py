"""Corrupt and malicious files: each one gets a status, and the videos after it decode as before."""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from raypipe.status import HAS_FRAMES, Status
from raypipe.video.container import CONTAINERS, sniff_container
from raypipe.video.decode_request import DecodeRequest
from raypipe.video.sandbox.parent import DecodedVideo, DecodeSandbox

AsFile = Callable[[bytes], BinaryIO]
MakeClip = Callable[..., bytes]
MakeRequest = Callable[..., DecodeRequest]

# Any damage must give one of these; a timeout or a dead child would be a different problem.
DAMAGED = HAS_FRAMES | {
    Status.DECODE_ERROR,
    Status.NO_VIDEO_STREAM,
    Status.FORBIDDEN_FORMAT,
    Status.TOO_LARGE,
    Status.OUT_OF_MEMORY,
    Status.CRASHED,
    Status.ENCRYPTED,
}
LONG = {"name": "mjpeg", "fps": 6, "width": 640, "height": 480}  # 4 s, all frames of equal size
CUT = {
    "mov": LONG,
    "mov-faststart": {**LONG, "container_options": (("movflags", "faststart"),)},
    "mkv": {**LONG, "container": "matroska"},
    "avi": {**LONG, "container": "avi"},
    "ts": {**LONG, "name": "mpeg2", "fps": 25, "container": "mpegts"},
}
PROMISE = {"mov-faststart", "mkv", "avi"}  # the header states the duration


@pytest.fixture(scope="module")
def auto(make_request: MakeRequest) -> Iterator[DecodeSandbox]:
    """Return one sandbox for all tests here, as a job has one for every video."""
    with DecodeSandbox(make_request(), decoder="auto", timeout_seconds=20) as opened:
        yield opened


@pytest.fixture(scope="module")
def pyav(make_request: MakeRequest) -> Iterator[DecodeSandbox]:
    """Return a sandbox with PyAV only; the other decoders would just retry its failures."""
    with DecodeSandbox(make_request(), decoder="pyav", timeout_seconds=20) as opened:
        yield opened


@pytest.fixture
def decode_in(as_file: AsFile) -> Callable[[DecodeSandbox, bytes], DecodedVideo]:
    """Return a function that decodes bytes in a sandbox."""

    def decode(sandbox: DecodeSandbox, data: bytes) -> DecodedVideo:
        with as_file(data) as file:
            return sandbox.decode(file)

    return decode


@pytest.fixture
def healthy(
    make_clip: MakeClip, decode: Callable[..., DecodedVideo], decode_in: Callable[..., DecodedVideo]
) -> Callable[[DecodeSandbox], None]:
    """Return a check that a sandbox decodes a good video exactly as without a sandbox."""
    data = make_clip()

    def check(sandbox: DecodeSandbox) -> None:
        video, alone = decode_in(sandbox, data), decode(data, sandbox._request)
        assert (video.status, video.error, video.decoder) == (Status.OK, "", "pyav")
        np.testing.assert_array_equal(video.frames, alone.frames)
        np.testing.assert_array_equal(video.pts_seconds, alone.pts_seconds)

    return check


def check_form(video: DecodedVideo) -> None:
    assert video.status in DAMAGED
    assert (len(video.frames) > 0) == (video.status in HAS_FRAMES)
    assert len(video.frames) == len(video.pts_seconds)
    assert np.isfinite(video.pts_seconds).all()
    assert bool(video.error) == (video.status is not Status.OK)
    assert "\n" not in video.error
    assert "StopIteration" not in video.error


def numbers_in(text: str) -> list[str]:
    """Return the numbers in a text as they are written."""
    return re.findall(r"\d+(?:\.\d+)?", text)


def test_files_that_broke_parsers(auto: DecodeSandbox, assets: Path, healthy: Callable[[DecodeSandbox], None]) -> None:
    files = sorted((assets / "hostile").iterdir())
    statuses: Counter[Status] = Counter()
    for number, path in enumerate(files):
        with path.open("rb") as file:
            video = auto.decode(file)
        check_form(video)
        statuses[video.status] += 1
        if number % 50 == 0:
            healthy(auto)
    healthy(auto)
    assert statuses.total() == len(files) > 900
    assert not {Status.TIMEOUT, Status.CRASHED, Status.OUT_OF_MEMORY} & set(statuses), statuses
    assert statuses[Status.OK] > 100


@pytest.mark.parametrize(
    ("data", "status", "pattern"),
    [
        (b"", Status.DECODE_ERROR, r"\b0\b"),
        (b"\0", Status.FORBIDDEN_FORMAT, re.escape(r"b'\x00'")),
        (b"hello, world\n" * 99, Status.FORBIDDEN_FORMAT, "b'hello, w'"),
        (b"<html><body>404</body></html>", Status.FORBIDDEN_FORMAT, "mov, matroska"),
        (b'{"error": "Not Found"}', Status.FORBIDDEN_FORMAT, '{"error"'),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0" + b"\0" * 99, Status.FORBIDDEN_FORMAT, re.escape(r"b'\xff\xd8\xff\xe0")),
        (b"8BPS\x00\x01" + b"\0" * 99, Status.FORBIDDEN_FORMAT, "b'8BPS"),
        (b"RIFF\0\0\0\0WAVEfmt " + b"\0" * 99, Status.FORBIDDEN_FORMAT, "b'RIFF"),
        (b"\0\0\0\x18ftypmp42", Status.DECODE_ERROR, "Invalid data"),  # FFmpeg's own message
        (b"\x1a\x45\xdf\xa3" + b"\0" * 999, Status.DECODE_ERROR, ""),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_video(
    pyav: DecodeSandbox, decode_in: Callable[..., DecodedVideo], data: bytes, status: Status, pattern: str
) -> None:
    video = decode_in(pyav, data)
    check_form(video)
    assert video.status is status
    assert re.search(pattern, video.error)


def test_sound_alone(pyav: DecodeSandbox, make_clip: MakeClip, decode_in: Callable[..., DecodedVideo]) -> None:
    video = decode_in(pyav, make_clip(video=False, audio=True))
    assert video.status is Status.NO_VIDEO_STREAM
    assert "audio" in video.error


def test_an_unknown_codec(pyav: DecodeSandbox, make_clip: MakeClip, decode_in: Callable[..., DecodedVideo]) -> None:
    data = make_clip("h264", num_frames=6).replace(b"avc1", b"?1?1")
    result = decode_in(pyav, data)
    assert result.status is Status.DECODE_ERROR
    assert "FFmpeg" in result.error


@pytest.mark.parametrize("name", CUT)
def test_a_file_that_was_cut_short(
    pyav: DecodeSandbox,
    make_clip: MakeClip,
    decode_in: Callable[..., DecodedVideo],
    name: str,
) -> None:
    data = make_clip(**CUT[name])
    whole = decode_in(pyav, data)
    assert whole.status is Status.OK
    for percent in range(2, 100, 5):
        video = decode_in(pyav, data[: len(data) * percent // 100])
        check_form(video)
        if name == "mov":  # its tables come last
            assert video.status in {Status.DECODE_ERROR, Status.NO_VIDEO_STREAM}
        elif name in PROMISE and 40 <= percent <= 70:
            assert video.status is Status.PARTIAL, percent
            assert video.duration_seconds == pytest.approx(4, abs=0.01)
            count = len(video.frames)
            assert {str(count), "7", f"{video.duration_seconds:.2f}"} <= set(numbers_in(video.error))
            # The last frame may be damaged, or it may be the last one before the cut instead of the one after it.
            np.testing.assert_allclose(video.pts_seconds[:-1], whole.pts_seconds[: count - 1], atol=1e-3)
            np.testing.assert_array_equal(video.frames[:-1], whole.frames[: count - 1])


def test_a_file_cut_before_the_first_frame_asked_for(
    make_request: MakeRequest, make_clip: MakeClip, decode_in: Callable[..., DecodedVideo]
) -> None:
    data = make_clip(**CUT["mkv"])
    with DecodeSandbox(make_request(num_frames=1), decoder="pyav") as opened:
        video = decode_in(opened, data[: len(data) * 4 // 10])
    assert video.status is Status.DECODE_ERROR
    assert f"{video.duration_seconds:.2f}" in numbers_in(video.error)


def test_damaged_bytes(
    pyav: DecodeSandbox,
    make_clip: MakeClip,
    decode_in: Callable[..., DecodedVideo],
    healthy: Callable[[DecodeSandbox], None],
) -> None:
    draw = random.Random(5)
    names = ("h264", "h264-mkv", "mpeg4-avi", "h264-ts", "vp9", "h264-flv", "wmv2", "mpeg2", "vp8-ogg", "palette")
    for name in names:
        data = make_clip(name)
        for _ in range(6):
            damaged = bytearray(data)
            for _ in range(draw.choice((1, 4, 30))):
                where = draw.randrange(4, min(len(data), draw.choice((200, len(data)))))
                damaged[where] = draw.choice((0, 255, draw.randrange(256)))
            check_form(decode_in(pyav, bytes(damaged)))
    healthy(pyav)


def test_a_frame_that_is_too_large(
    pyav: DecodeSandbox, huge_picture: bytes, decode_in: Callable[..., DecodedVideo], make_clip: MakeClip
) -> None:
    video = decode_in(pyav, huge_picture)
    assert video.status is Status.TOO_LARGE
    assert "decode.max_pixels" in video.error
    assert set(numbers_in(video.error)) == {"16000", "256000000", "16777216"}
    # Thin, but scaled to the requested size it would be this wide.
    thin = decode_in(pyav, make_clip("rgb", width=4096, height=2))
    assert thin.status is Status.TOO_LARGE
    assert {"131072", "64"} <= set(numbers_in(thin.error))


def test_a_video_that_is_too_long(
    pyav: DecodeSandbox, make_clip: MakeClip, decode_in: Callable[..., DecodedVideo]
) -> None:
    video = decode_in(pyav, make_clip(times=(0, 4000 * 12), num_frames=2))
    assert video.status is Status.TOO_LARGE
    assert "decode.max_duration_seconds" in video.error
    assert "3600" in numbers_in(video.error)


def test_a_size_that_changes_midway(
    pyav: DecodeSandbox, make_request: MakeRequest, make_clip: MakeClip, decode_in: Callable[..., DecodedVideo]
) -> None:
    small, large = make_clip("h264-ts"), make_clip("h264-ts", width=192, height=144)
    video = decode_in(pyav, small + large)
    assert video.status in HAS_FRAMES
    assert video.frames.shape[1:] == (56, 56, 3)
    request = make_request(mode="all", max_frames=64)
    limits = replace(request.limits, max_pixels=96 * 72)
    with DecodeSandbox(replace(request, limits=limits), decoder="pyav") as opened:
        assert decode_in(opened, small).status is Status.OK
        video = decode_in(opened, small + large)
    assert (video.status, len(video.frames)) == (Status.TOO_LARGE, 0)


def test_many_streams(
    pyav: DecodeSandbox, many_streams: Callable[[int], bytes], decode_in: Callable[..., DecodedVideo]
) -> None:
    for count in (20, 300):  # streams beyond the limit are ignored
        assert decode_in(pyav, many_streams(count)).status is Status.OK


def test_more_frames_than_allowed(
    make_request: MakeRequest, make_clip: MakeClip, decode_in: Callable[..., DecodedVideo]
) -> None:
    request = make_request()
    limits = replace(request.limits, max_packets=23)
    with DecodeSandbox(replace(request, limits=limits), decoder="pyav") as opened:
        video = decode_in(opened, make_clip())
    assert video.status is Status.TOO_LARGE
    assert numbers_in(video.error) == ["23"]


def test_containers_by_their_first_bytes(make_clip: MakeClip) -> None:
    names = {
        "h264": "mov",
        "vp9": "matroska",
        "mpeg4-avi": "avi",
        "h264-ts": "mpegts",
        "mpeg2": "mpeg",
        "h264-flv": "flv",
        "vp8-ogg": "ogg",
        "wmv2": "asf",
        "mxf": "mxf",
        "vp8-ivf": "ivf",
        "h264-raw": "h264",
        "hevc-raw": "hevc",
    }
    assert {name: sniff_container(make_clip(name)[:1024]) for name in names} == names
    assert {*names.values(), "gif", "apng"} == set(CONTAINERS)
    old = {sniff_container(make_clip(name)[:1024], row_format=1) for name in names}
    assert old == {"mov", "matroska", "avi", "mpegts", "mpeg", "flv", "ogg", "asf", None}
    assert sniff_container(b"") is None
    assert sniff_container(b"G") is None
