"""Pictures are shown as a player shows them: upright, mirrored if required, in square pixels, at the right size."""

import itertools
import math
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from av.codec.context import Flags
from hypothesis import given
from hypothesis import strategies as st

from raypipe.status import Status
from raypipe.video.container import ONLY_A_COVER
from raypipe.video.decode_request import DecodeRequest, Pixels
from raypipe.video.display import Turn, square_size, turn_of_matrix
from raypipe.video.sandbox.parent import DecodeSandbox
from support.pictures import BT2020, X265, corners, encode

Decode = Callable[..., Any]
MakeRequest = Callable[..., DecodeRequest]

ONE = 1 << 16
# The displayed direction of a step right and of a step down in the stored picture, for all eight orientations.
DIRECTIONS = [
    (right, down)
    for right, down in itertools.product([(1, 0), (-1, 0), (0, 1), (0, -1)], repeat=2)
    if right[0] * down[1] - right[1] * down[0]
]
CLOSE = 12  # mean absolute difference; a different corner differs by more than 40


def matrix_of(right: tuple[float, float], down: tuple[float, float]) -> list[int]:
    """Return FFmpeg's display matrix."""
    numbers = (*right, 0, *down, 0, 0, 0)
    return [*(round(one * ONE) for one in numbers), 1 << 30]


def displayed(picture: Pixels, right: tuple[int, int], down: tuple[int, int]) -> Pixels:
    """Move each pixel of a picture in the given directions, one by one."""
    height, width, _ = picture.shape
    places = {
        (x, y): (right[0] * x + down[0] * y, right[1] * x + down[1] * y) for x in range(width) for y in range(height)
    }
    left, top = (min(place[axis] for place in places.values()) for axis in (0, 1))
    size = (height, width) if right[0] else (width, height)
    shown = np.zeros((*size, 3), np.uint8)
    for (x, y), (to_x, to_y) in places.items():
        shown[to_y - top, to_x - left] = picture[y, x]
    return shown


def difference(one: Pixels, other: Pixels) -> float:
    """Return the mean absolute difference."""
    return float(np.abs(one.astype(np.int16) - other).mean())


@pytest.mark.parametrize(("right", "down"), DIRECTIONS)
def test_a_display_matrix_turns_and_mirrors(
    right: tuple[int, int], down: tuple[int, int], decode: Decode, make_request: MakeRequest
) -> None:
    request = make_request(num_frames=1, resize_size=64, crop_size=64)
    picture = corners(64, 64)
    video = decode(encode([picture] * 2, matrix=matrix_of(right, down)), request)
    assert video.reply.status == Status.OK
    assert difference(video.frames[0], displayed(picture, right, down)) < CLOSE


@pytest.mark.parametrize(("right", "down"), DIRECTIONS)
def test_the_size_is_that_after_turning(
    right: tuple[int, int], down: tuple[int, int], decode: Decode, make_request: MakeRequest
) -> None:
    reply = decode(encode([corners(96, 64)], matrix=matrix_of(right, down)), make_request(num_frames=1)).reply
    assert (reply.width, reply.height) == ((96, 64) if right[0] else (64, 96))


@given(
    directions=st.sampled_from(DIRECTIONS),
    degrees=st.floats(-1.0, 1.0),
    scales=st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)),
    size=st.tuples(st.integers(2, 5), st.integers(2, 5)),
)
def test_a_matrix_is_taken_as_the_nearest_right_angle(
    directions: tuple[tuple[int, int], tuple[int, int]],
    degrees: float,
    scales: tuple[float, float],
    size: tuple[int, int],
) -> None:
    (right, down), (width, height) = directions, size
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned = [
        (scale * (x * cos - y * sin), scale * (x * sin + y * cos))
        for scale, (x, y) in zip(scales, directions, strict=True)
    ]
    turn = turn_of_matrix(struct.pack("=9i", *matrix_of(turned[0], turned[1])))
    picture = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    np.testing.assert_array_equal(turn.apply(picture), displayed(picture, right, down))
    assert turn.apply_to_size(width, height) == turn.apply(picture).shape[1::-1]
    assert turn.is_mirrored == (right[0] * down[1] - right[1] * down[0] < 0)


@pytest.mark.parametrize(
    ("right", "down"), [((0.7, 0.7), (-0.7, 0.7)), ((0, 0), (0, 0)), ((1, 0), (0, 0)), ((1, 0.1), (-0.1, 1))]
)
def test_other_angles_are_ignored(right: tuple[float, float], down: tuple[float, float]) -> None:
    assert turn_of_matrix(struct.pack("=9i", *matrix_of(right, down))) == Turn()


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "avi"])
def test_pixels_are_made_square(container: str, decode: Decode, make_request: MakeRequest) -> None:
    stored, wide = corners(72, 64), corners(72 * 16 // 9, 64)
    options: dict[str, Any] = {"codec": "mpeg4", "options": {"qmin": "1", "qmax": "1"}} if container == "avi" else {}
    data = encode([stored] * 3, container=container, pixel_aspect=Fraction(16, 9), **options)
    video = decode(data, make_request(num_frames=1))
    expected = decode(encode([wide] * 3), make_request(num_frames=1))
    assert (video.reply.width, video.reply.height) == (128, 64)
    assert difference(video.frames[0], expected.frames[0]) < CLOSE
    assert difference(video.frames[0], decode(data, make_request(num_frames=1, row_format=1)).frames[0]) > CLOSE


def test_a_turned_picture_is_made_square_before(decode: Decode, make_request: MakeRequest) -> None:
    data = encode([corners(72, 64)], pixel_aspect=Fraction(16, 9), matrix=matrix_of((0, 1), (-1, 0)))
    reply = decode(data, make_request(num_frames=1)).reply
    assert (reply.width, reply.height) == (64, 128)


@pytest.mark.parametrize(
    ("aspect", "expected"),
    [
        (Fraction(64, 45), (1024, 576)),
        (Fraction(8, 9), (640, 576)),
        (Fraction(4), (2880, 576)),
        (Fraction(1, 50), (14, 576)),
        (Fraction(1, 100), (720, 576)),  # the same as an upright picture
        (Fraction(90), (720, 576)),  # 112 times as wide as high, which cannot be scaled
    ],
)
def test_the_size_in_square_pixels(aspect: Fraction, expected: tuple[int, int]) -> None:
    assert square_size(720, 576, aspect, resize_size=256) == expected


@pytest.mark.parametrize("aspect", [Fraction(101), Fraction(1, 101), Fraction(0)])
def test_an_absurd_pixel_aspect_is_ignored(aspect: Fraction, decode: Decode, make_request: MakeRequest) -> None:
    video = decode(encode([corners()], pixel_aspect=aspect), make_request(num_frames=1))
    assert (video.reply.status, video.reply.width, video.reply.height) == (Status.OK, 96, 64)


def test_row_format_1_ignores_display_properties(decode: Decode, make_request: MakeRequest) -> None:
    request = make_request(num_frames=1, resize_size=64, crop_size=64, row_format=1)
    plain = decode(encode([corners(96, 64)]), request)
    squeezed = decode(encode([corners(96, 64)], pixel_aspect=Fraction(2)), request)
    np.testing.assert_array_equal(squeezed.frames, plain.frames)
    flipped = decode(encode([corners(96, 64)], matrix=matrix_of((1, 0), (0, -1))), request)
    np.testing.assert_array_equal(flipped.frames, plain.frames)
    turned = decode(encode([corners(96, 64)], matrix=matrix_of((0, 1), (-1, 0))), request)
    assert [(one.reply.width, one.reply.height) for one in (squeezed, turned)] == [(96, 64)] * 2
    np.testing.assert_array_equal(turned.frames[0], np.rot90(plain.frames[0], -1))


def test_the_codec_is_named_and_not_its_decoder(
    make_clip: Callable[..., bytes], decode: Decode, make_request: MakeRequest
) -> None:
    data = make_clip("av1", num_frames=2)
    assert decode(data, make_request(num_frames=1)).reply.codec == "av1"
    assert decode(data, make_request(num_frames=1, row_format=1)).reply.codec == "libdav1d"


def test_a_cover_picture_is_not_a_video(assets: Path, decode: Decode, make_request: MakeRequest) -> None:
    file = assets / "faults" / "videos" / "cover_only.m4v"
    if not file.exists():
        pytest.skip(f"no {file}")
    reply = decode(file.read_bytes(), make_request()).reply
    assert reply.status == Status.NO_VIDEO_STREAM
    assert ONLY_A_COVER in reply.error


def test_a_child_that_can_open_no_file_shows_them_all(
    pyav: DecodeSandbox, decode: Decode, request_: DecodeRequest, as_file: Callable[[bytes], BinaryIO]
) -> None:
    # Everything that a filter, libvpx or a table needs must be loaded before the child gives up file access.
    picture = corners()
    see_through = np.dstack([picture, picture[..., 0]])
    deep = (picture.astype(np.uint16) * 257) // 2
    vp9 = {"deadline": "realtime", "crf": "4", "b": "4M"}
    videos = {
        "interlaced": encode([picture] * 8, field_order="tff", flags=int(Flags.interlaced_dct)),
        "PQ": encode([deep] * 4, codec="libx265", options=X265, pix_fmt="yuv420p10le", color_trc=16, color=BT2020),
        "HLG": encode([deep] * 4, codec="libx265", options=X265, pix_fmt="yuv420p10le", color_trc=18, color=BT2020),
        "alpha": encode(
            [see_through] * 4,
            codec="libvpx-vp9",
            container="webm",
            pix_fmt="yuva420p",
            options=vp9,
            metadata={"alpha_mode": "1"},
        ),
    }
    for name, data in videos.items():
        with as_file(data) as file:
            video = pyav.decode(file)
        assert (video.status, video.error) == (Status.OK, ""), name
        np.testing.assert_array_equal(video.frames, decode(data, request_).frames, err_msg=name)
