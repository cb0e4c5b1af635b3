"""decord and torchcodec give the frames that PyAV gives, or report that they cannot."""

import importlib
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest
from av.codec.context import Flags

from raypipe.status import Status
from raypipe.video.decode_request import DecodeRequest, Pixels
from raypipe.video.sampling import nearest
from support.pictures import BT2020, X265, corners, encode

WITHOUT_TIMES = dict.fromkeys(("h264-mxf", "h264-raw", "hevc-raw"), "it guesses display times otherwise")
CANNOT_SHOW = {
    "h264-interlaced": "it does not deinterlace",
    "alpha": "it does not composite",
    "mmaction2_tests_data_rawvideo_dataset_part_0.mp4": "it ignores that its pixels are not square",
}
# What the other decoders cannot do and report. A video that is not listed here must decode completely.
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
        "mxf": "it seeks to other frames",
        "vp8-ivf": "it needs a frame count in the header",
        **WITHOUT_TIMES,
        "torchcodec_test_resources_h265_video.mp4": "it seeks to other frames",
        "clip-video-encode_tests_test_videos_vid1.mp4": "it ignores edit lists",
        "clip-video-encode_tests_test_videos_vid2.mp4": "it ignores edit lists",
        **CANNOT_SHOW,
    },
    "torchcodec": {
        "h264-ts": "it seeks to other frames",
        "h264-intra-refresh": "it seeks to other frames",
        "mpeg2": "it seeks to other frames",
        "mpeg4-avi": "it times frames out of order otherwise",
        "mmaction2_tests_data_test.avi": "it times frames out of order otherwise",
        "mxf": "it times frames out of order otherwise",
        **WITHOUT_TIMES,
        "h264-open-gop": "it misses the last frames",
        "h264-open-gop-mkv": "it misses the last frames",
        "clip-video-encode_tests_test_videos_vid1.mp4": "it seeks to other frames where an edit list cuts",
        "clip-video-encode_tests_test_videos_vid2.mp4": "it seeks to other frames where an edit list cuts",
        **CANNOT_SHOW,
    },
}
# Mean absolute difference of a frame, due to another FFmpeg and scaler. The next frame differs by 9 in our clips.
SAME = 4.5
# torchcodec converts to RGB before scaling, which is visible at the sharp edges of test cards.
ALIKE = {
    "torchcodec_test_resources_h264_10bits.mp4": 10,
    "torchcodec_test_resources_h265_10bits.mp4": 10,
}


class Clip(Protocol):
    """What the ``clip`` fixture returns."""

    name: str
    data: bytes


@pytest.fixture(scope="session", params=CANNOT)
def other_decoder(request: pytest.FixtureRequest) -> str:
    """Return each decoder except PyAV."""
    decoder = str(request.param)
    _import_or_skip(decoder)
    return decoder


def _import_or_skip(decoder: str) -> None:
    try:
        importlib.import_module("av" if decoder == "pyav" else decoder)
    except Exception as error:  # noqa: BLE001  # torchcodec says in several ways that it finds no FFmpeg
        pytest.skip(f"{decoder} cannot be imported: {str(error).splitlines()[0]}")


def differences(frames: Pixels, others: Pixels) -> npt.NDArray[np.float64]:
    """Return the mean absolute difference [T] of frames [T, height, width, 3]."""
    difference: npt.NDArray[np.float64] = np.abs(frames.astype(np.int16) - others).mean(axis=(1, 2, 3))
    return difference


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


BARS = corners()
NOT_PLAIN = {
    "interlaced": encode([BARS] * 4, field_order="tff", flags=int(Flags.interlaced_dct)),
    "hdr": encode([BARS] * 4, codec="libx265", options=X265, pix_fmt="yuv420p10le", color_trc=16, color=BT2020),
    "not-square": encode([BARS] * 4, pixel_aspect=Fraction(4, 3)),
    "mirrored": encode([BARS] * 4, matrix=[-(1 << 16), 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30]),
    "alpha": encode([np.dstack([BARS, BARS[..., 0]])] * 4, codec="png", container="mov", pix_fmt="rgba", options={}),
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_what_needs_more_than_turning_is_refused(
    kind: str, other_decoder: str, decode: Callable[..., Any], make_request: Callable[..., DecodeRequest]
) -> None:
    data, request = NOT_PLAIN[kind], make_request(num_frames=2)
    assert decode(data, request).reply.status == Status.OK
    reply = decode(data, request, decoder=other_decoder).reply
    assert (reply.status, reply.num_frames) == (Status.DECODE_ERROR, 0)
    assert "pyav" in reply.error
    before = decode(data, make_request(num_frames=2, row_format=1), decoder=other_decoder).reply
    assert "does not" not in before.error


def test_the_other_decoders_report_the_size_as_displayed(
    other_decoder: str,
    make_clip: Callable[..., bytes],
    decode: Callable[..., Any],
    make_request: Callable[..., DecodeRequest],
) -> None:
    reply = decode(make_clip("h264-90"), make_request(), decoder=other_decoder).reply
    assert (reply.status, reply.width, reply.height) == (Status.OK, 72, 96)
    before = decode(make_clip("h264-90"), make_request(row_format=1), decoder=other_decoder).reply
    assert (before.width, before.height) == (96, 72)


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
