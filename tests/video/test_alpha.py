"""Transparent pictures are shown on black."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from raypipe.video.decode_request import DecodeRequest, Pixels
from raypipe.video.display import has_alpha
from support.pictures import X264, encode

Decode = Callable[..., Any]
MakeRequest = Callable[..., DecodeRequest]

LOSSLESS: dict[str, Any] = {"options": {}}
VPX: dict[str, Any] = {
    "container": "webm",
    "pix_fmt": "yuva420p",
    "options": {"deadline": "realtime", "crf": "4", "b": "4M", "auto-alt-ref": "0"},
    "metadata": {"alpha_mode": "1"},
}
STORED: dict[str, dict[str, Any]] = {
    "vp9": {"codec": "libvpx-vp9", **VPX},
    "vp8": {"codec": "libvpx", **VPX},
    "qtrle": {"codec": "qtrle", "container": "mov", "pix_fmt": "argb", **LOSSLESS},
    "png": {"codec": "png", "container": "mov", "pix_fmt": "rgba", **LOSSLESS},
    "prores": {"codec": "prores_ks", "container": "mov", "pix_fmt": "yuva444p10le", **LOSSLESS},
    "ffv1-16-bit": {"codec": "ffv1", "container": "matroska", "pix_fmt": "gbrap16le", **LOSSLESS},
    "avi": {"codec": "rawvideo", "container": "avi", "pix_fmt": "bgra", **LOSSLESS},
}


def striped() -> Pixels:
    """Return a bright picture [64, 64, 4] with stripes that are transparent, half opaque and opaque."""
    picture = np.full((64, 64, 4), 200, np.uint8)
    for column, opacity in ((0, 0), (1, 128), (2, 255), (3, 64)):
        picture[:, column * 16 : (column + 1) * 16, 3] = opacity
    return picture


@pytest.mark.parametrize("name", STORED)
def test_alpha_is_composited_on_black(name: str, decode: Decode, make_request: MakeRequest) -> None:
    request = make_request(num_frames=1, resize_size=64, crop_size=64)
    video = decode(encode([striped()] * 3, **STORED[name]), request)
    shades = video.frames[0].mean(axis=(0, 2)).reshape(4, 16)[:, 4:12].mean(axis=1)
    assert shades == pytest.approx([0, 100, 200, 50], abs=5)
    assert video.reply.codec in {name, *name.split("-"), "rawvideo"}


def test_row_format_1_shows_what_alpha_hides(decode: Decode, make_request: MakeRequest) -> None:
    request = make_request(num_frames=1, resize_size=64, crop_size=64, row_format=1)
    for name in ("vp9", "png"):
        frame = decode(encode([striped()] * 3, **STORED[name]), request).frames[0]
        assert frame[:, 4:12].mean() == pytest.approx(200, abs=5), name


@pytest.mark.parametrize(
    ("stored", "shade"),
    [
        ({"container": "avi", "codec": "rawvideo", "pix_fmt": "bgra"}, 200),
        ({"container": "avi", "codec": "ffv1", "pix_fmt": "bgra"}, 200),
        ({"container": "mov", "codec": "qtrle", "pix_fmt": "argb"}, 0),
        ({"container": "matroska", "codec": "ffv1", "pix_fmt": "yuva420p"}, 0),
    ],
)
def test_a_fourth_byte_of_zero_is_opaque_in_avi_only(
    stored: dict[str, Any], shade: int, decode: Decode, make_request: MakeRequest
) -> None:
    picture = striped()
    picture[..., 3] = 0
    data = encode([picture] * 2, options={}, **stored)
    assert decode(data, make_request(num_frames=1)).frames[0].mean() == pytest.approx(shade, abs=3)


def test_frames_wanted_twice_are_composited_once(decode: Decode, make_request: MakeRequest) -> None:
    data = encode([striped()], **STORED["png"])
    frames = decode(data, make_request(num_frames=4, resize_size=64, crop_size=64)).frames
    assert (frames == frames[0]).all()
    assert frames[-1][:, 20:28].mean() == pytest.approx(100, abs=2)


def test_vp9_without_alpha_keeps_its_decoder(decode: Decode, make_request: MakeRequest) -> None:
    opaque = {**STORED["vp9"], "pix_fmt": "yuv420p", "metadata": {}}
    picture = striped()[..., :3].copy()
    video = decode(encode([picture] * 3, **opaque), make_request(num_frames=1))
    assert video.frames[0].mean() == pytest.approx(200, abs=5)


@pytest.mark.parametrize("name", ["yuva420p", "ya8", "argb", "bgra", "gbrap16le", "yuva444p12le", "rgba64le"])
def test_formats_with_alpha(name: str) -> None:
    assert has_alpha(name)


@pytest.mark.parametrize("name", ["yuv420p", "pal8", "rgb0", "0rgb", "nv12", "gray", "rgb24", "gbrp", "p010le"])
def test_formats_without_alpha(name: str) -> None:
    assert not has_alpha(name)


def test_an_opaque_video_is_as_before(decode: Decode, make_request: MakeRequest) -> None:
    data = encode([striped()[..., :3].copy()] * 2, options=X264)
    after, before = (decode(data, make_request(num_frames=1, row_format=row_format)) for row_format in (2, 1))
    np.testing.assert_array_equal(after.frames, before.frames)
