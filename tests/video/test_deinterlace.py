"""Interlaced frames are deinterlaced, progressive frames stay the same, and every frame keeps its time."""

from collections.abc import Callable
from typing import Any

import av
import numpy as np
import pytest
from av.codec.context import Flags
from av.video.frame import VideoFrame

from raypipe.status import Status
from raypipe.video.decode_request import DecodeRequest, Pixels
from raypipe.video.deinterlace import Deinterlacer
from raypipe.video.display import turn_of
from support.pictures import decode_all, encode

Decode = Callable[..., Any]
MakeRequest = Callable[..., DecodeRequest]

WIDTH, HEIGHT = 96, 64
FIELDS = int(Flags.interlaced_dct) | int(Flags.interlaced_me)
BEST = {"qmin": "1", "qmax": "1"}
MPEG2 = {**BEST, "b": "8M"}
STORED: dict[str, dict[str, Any]] = {
    "h264-tff": {"field_order": "tff", "flags": FIELDS},
    "h264-bff": {"field_order": "bff", "flags": FIELDS, "container": "matroska"},
    "h264-ts": {"field_order": "tff", "flags": FIELDS, "container": "mpegts"},
    "mpeg2": {"codec": "mpeg2video", "field_order": "tff", "flags": FIELDS, "container": "mpeg", "options": MPEG2},
    "mpeg2-bff": {
        "codec": "mpeg2video",
        "field_order": "bff",
        "flags": FIELDS,
        "container": "mpegts",
        "options": MPEG2,
    },
    "mpeg4": {"codec": "mpeg4", "field_order": "tff", "flags": FIELDS, "container": "avi", "options": BEST},
}


def moving(moment: float) -> Pixels:
    """Return a picture of a bright bar that moves 4 pixels to the right per unit of time."""
    picture = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    left = 8 + round(4 * moment)
    picture[:, left : left + 24] = 200
    return picture


def woven(number: int, *, bottom_first: bool) -> Pixels:
    """Return an interlaced frame: one field shows the bar half a unit of time later than the other."""
    first, second = moving(number), moving(number + 0.5)
    picture = first.copy()
    picture[0 if bottom_first else 1 :: 2] = second[0 if bottom_first else 1 :: 2]
    return picture


def interlaced_clip(name: str = "h264-tff", *, num_frames: int = 8, **changes: Any) -> bytes:  # noqa: ANN401
    """Return a video whose frames are all interlaced."""
    pictures = [woven(number, bottom_first=STORED[name]["field_order"] == "bff") for number in range(num_frames)]
    return encode(pictures, **{**STORED[name], **changes})


def progressive_clip(num_frames: int = 8) -> bytes:
    """Return the progressive video that the interlaced one should look like."""
    return encode([moving(number) for number in range(num_frames)])


def combing(frames: Pixels) -> float:
    """Return how much neighboring rows differ; in pictures of upright bars, only interlacing makes them differ."""
    return float(np.abs(np.diff(frames.astype(np.int16), axis=-3)).mean())


def as_array(frame: VideoFrame) -> Pixels:
    """Return a frame as RGB."""
    return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)


@pytest.mark.parametrize("name", STORED)
def test_interlaced_videos_come_out_progressive(name: str, decode: Decode, make_request: MakeRequest) -> None:
    request = make_request(num_frames=4, resize_size=HEIGHT, crop_size=HEIGHT)
    data = interlaced_clip(name)
    video, before = decode(data, request), decode(data, make_request(num_frames=4, row_format=1))
    assert (video.reply.status, video.reply.interlaced, before.reply.interlaced) == (Status.OK, True, False)
    np.testing.assert_allclose(video.pts_seconds, before.pts_seconds)
    assert combing(video.frames) < 0.3 * combing(before.frames)
    expected = decode(progressive_clip(), request)
    assert not expected.reply.interlaced
    assert np.abs(video.frames.astype(int) - expected.frames).mean() < 4


@pytest.mark.parametrize("name", STORED)
def test_the_field_order_is_that_of_the_frames(name: str) -> None:
    # Only the right field order makes the bar move evenly, because the first field has the position of the frame.
    frames = [frame for frame in Deinterlacer().deinterlace(decode_all(interlaced_clip(name))) if frame]
    for number, frame in list(enumerate(frames))[2:-2]:
        assert np.abs(as_array(frame).astype(int) - moving(number)).mean() < 4


@pytest.mark.parametrize("num_frames", [1, 2, 7])
def test_every_frame_keeps_its_place(num_frames: int) -> None:
    frames = decode_all(interlaced_clip(num_frames=num_frames))
    deinterlacer = Deinterlacer()
    out = list(deinterlacer.deinterlace([*frames, None, *frames]))
    assert deinterlacer.interlaced
    assert out[num_frames] is None
    for run in (out[:num_frames], out[num_frames + 1 :]):
        for frame, before in zip(run, frames, strict=True):
            assert frame is not None
            for name in ("pts", "dts", "duration", "time_base", "color_range", "colorspace", "is_corrupt"):
                assert getattr(frame, name) == getattr(before, name), name
            assert not frame.interlaced_frame


def test_progressive_frames_are_untouched() -> None:
    frames = [*decode_all(progressive_clip(3)), None]
    deinterlacer = Deinterlacer()
    assert [id(frame) for frame in deinterlacer.deinterlace(frames)] == [id(frame) for frame in frames]
    assert not deinterlacer.interlaced


def test_a_mix_of_both_is_told_apart() -> None:
    plain, fields = decode_all(progressive_clip(8)), decode_all(interlaced_clip(num_frames=8))
    mixed = [*plain[:2], *fields[2:5], *plain[5:]]
    out = [frame for frame in Deinterlacer().deinterlace(mixed) if frame is not None]
    assert [frame.pts for frame in out] == [frame.pts for frame in mixed]
    for number, frame in enumerate(out):
        difference = np.abs(as_array(frame).astype(int) - as_array(plain[number])).mean()
        assert difference < (4 if 2 <= number < 5 else 1e-9), number


def test_nothing_is_mixed_across_a_boundary() -> None:
    frames = decode_all(interlaced_clip())
    alone = [as_array(frame) for frame in Deinterlacer().deinterlace(frames[4:6]) if frame is not None]
    after = list(Deinterlacer().deinterlace([*frames[:2], None, *frames[4:6]]))
    for frame, expected in zip(after[3:], alone, strict=True):
        assert frame is not None
        np.testing.assert_array_equal(as_array(frame), expected)


def test_a_change_of_size_starts_over() -> None:
    small = [frame.reformat(width=48, height=32) for frame in decode_all(interlaced_clip(num_frames=3))]
    large = decode_all(interlaced_clip(num_frames=3))
    out = [frame for frame in Deinterlacer().deinterlace([*large, *small, *large]) if frame is not None]
    assert [frame.width for frame in out] == [96] * 3 + [48] * 3 + [96] * 3


@pytest.mark.parametrize(("width", "height"), [(2, 2), (96, 2)])
def test_frames_too_small_for_the_filter_pass(width: int, height: int) -> None:
    frames = [frame.reformat(width=width, height=height) for frame in decode_all(interlaced_clip(num_frames=2))]
    assert list(Deinterlacer().deinterlace(frames)) == frames


@pytest.mark.parametrize("pix_fmt", ["yuyv422", "nv12", "yuv422p10le", "rgb24"])
def test_every_pixel_format_is_deinterlaced(pix_fmt: str) -> None:
    frames = [frame.reformat(format=pix_fmt) for frame in decode_all(interlaced_clip())]
    out = [frame for frame in Deinterlacer().deinterlace(frames) if frame is not None]
    assert combing(np.stack([as_array(one) for one in out])) < 0.3 * combing(
        np.stack([as_array(one) for one in frames])
    )


def test_a_turned_frame_stays_turned() -> None:
    frames = decode_all(interlaced_clip(matrix=[0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]))
    for frame in Deinterlacer().deinterlace(frames):
        assert frame is not None
        assert turn_of(frame) == turn_of(frames[0])
        assert turn_of(frame).transpose


def test_an_abandoned_video_frees_its_filter() -> None:
    frames = Deinterlacer().deinterlace(decode_all(interlaced_clip()))
    assert isinstance(next(frames), av.VideoFrame)
    frames.close()  # type: ignore[attr-defined]
