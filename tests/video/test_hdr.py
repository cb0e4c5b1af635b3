"""PQ and HLG are mapped back to the SDR that they were made from: reference white is 203 cd/m²."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from av.video.reformatter import ColorPrimaries, ColorTrc

from raypipe.video import display
from raypipe.video.decode_request import DecodeRequest, Pixels
from support.pictures import BT709, BT2020, X265, encode

Decode = Callable[..., Any]
MakeRequest = Callable[..., DecodeRequest]
Numbers = npt.NDArray[np.float64]

PQ, HLG = int(ColorTrc.SMPTE2084), int(ColorTrc.ARIB_STD_B67)
# BT.2087, table 2.
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593])


def pq_signal(nits: Numbers) -> Numbers:
    """Return the inverse of the PQ EOTF: BT.2100, table 4."""
    power = (nits / 10_000) ** 0.1593017578125
    signal: Numbers = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    return signal


def hlg_signal(nits: Numbers) -> Numbers:
    """Return the HLG OETF of the inverse OOTF of a display of 1000 cd/m²: BT.2100, table 5."""
    luma = np.maximum((nits / 1000) @ BT2020_LUMA, 1e-9)[..., None]
    scene = nits / 1000 * luma ** (1 / 1.2 - 1)
    log: Numbers = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), log)


def to_hdr(picture: Pixels, color_trc: int, *, matrix: Numbers = TO_BT2020) -> npt.NDArray[np.uint16]:
    """Map SDR to HDR as in BT.2408: display light, SDR white at 203 cd/m²."""
    nits = ((picture / 255) ** 2.4 @ matrix.T) * 203
    signal = pq_signal(nits) if color_trc == PQ else hlg_signal(nits)
    return np.rint(signal * 65_535).astype(np.uint16)


@pytest.fixture
def colors() -> Pixels:
    """Return all colours with 9 levels per channel: [9, 81, 3]."""
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(9, 81, 3)


@pytest.mark.parametrize("color_trc", [PQ, HLG])
def test_sdr_comes_back(color_trc: int, colors: Pixels) -> None:
    back = display.to_sdr(to_hdr(colors, color_trc), color_trc=color_trc, color_primaries=BT2020)
    error = np.abs(back.astype(int) - colors)
    assert error[colors.min(axis=-1) > 30].max() <= 1
    assert error.max() <= 6  # the gamma is steep near black


@pytest.mark.parametrize(
    ("primaries", "matrix"), [(ColorPrimaries.BT709, np.eye(3)), (ColorPrimaries.UNSPECIFIED, TO_BT2020)]
)
def test_primaries_decide_the_matrix(primaries: int, matrix: Numbers, colors: Pixels) -> None:
    codes = to_hdr(colors, PQ, matrix=matrix)
    back = display.to_sdr(codes, color_trc=PQ, color_primaries=primaries)
    assert np.abs(back.astype(int) - colors)[colors.min(axis=-1) > 30].max() <= 1


@pytest.mark.parametrize("primaries", [ColorPrimaries.SMPTE431, ColorPrimaries.SMPTE432])
def test_p3_greys_stay_grey(primaries: int) -> None:
    greys = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=-1)
    back = display.to_sdr(to_hdr(greys, PQ, matrix=np.eye(3)), color_trc=PQ, color_primaries=primaries)
    assert np.abs(back.astype(int) - greys)[:, 16:].max() <= 1


@pytest.mark.parametrize(("color_trc", "white"), [(PQ, 0.5807), (HLG, 0.75)])
def test_reference_white_is_white_and_brighter_is_clipped(color_trc: int, white: float) -> None:
    signals = np.array([0, white - 0.005, white, 1])
    codes = np.repeat(np.rint(signals * 65_535).astype(np.uint16)[None, :, None], 3, axis=-1)
    shades = display.to_sdr(codes, color_trc=color_trc, color_primaries=BT2020)[0, :, 0]
    assert shades[0] == 0
    assert 248 <= shades[1] < 255
    assert shades[2:].tolist() == [255, 255]


@pytest.mark.parametrize("color_trc", [PQ, HLG])
def test_an_hdr_video_decodes_to_its_sdr(color_trc: int, decode: Decode, make_request: MakeRequest) -> None:
    levels = np.linspace(20, 250, 4).astype(np.uint8)
    blocks = (
        np.stack(np.meshgrid(levels, levels, [40, 200]), axis=-1)
        .astype(np.uint8)
        .reshape(4, 8, 3)
        .repeat(16, 0)
        .repeat(16, 1)
    )
    request = make_request(num_frames=1, resize_size=64, crop_size=64)
    sdr = decode(encode([blocks] * 2, color_trc=BT709), request)
    data = encode(
        [to_hdr(blocks, color_trc)] * 2,
        codec="libx265",
        options=X265,
        pix_fmt="yuv420p10le",
        color_trc=color_trc,
        color=BT2020,
    )
    inner = np.abs(np.arange(64) % 16 - 7.5) < 5  # not at the block edges, where neighbors share chroma
    shown, expected = (
        decode(one, request).frames[0][inner][:, inner] for one in (data, encode([blocks] * 2, color_trc=BT709))
    )
    assert np.abs(shown.astype(int) - expected).mean() < 2.5
    before = decode(data, make_request(num_frames=1, resize_size=64, crop_size=64, row_format=1)).frames[0]
    assert np.abs(before.astype(int) - sdr.frames[0]).mean() > 15


def test_ten_bits_alone_change_nothing(
    make_clip: Callable[..., bytes], decode: Decode, make_request: MakeRequest
) -> None:
    data = make_clip("h264-10-bit")
    np.testing.assert_array_equal(decode(data, make_request()).frames, decode(data, make_request(row_format=1)).frames)
