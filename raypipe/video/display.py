"""Convert decoded frames to RGB crops as a video player shows them, HDR as SDR. Runs in the child process only."""

import struct
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import cache
from math import hypot
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from raypipe.status import Status
from raypipe.video.container import VideoError
from raypipe.video.decode_request import DecodeRequest, Pixels
from raypipe.video.sampling import Wanted
from raypipe.video.timeline import Indices

Codes = npt.NDArray[np.uint16]
Light = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.float64]

PQ, HLG = int(ColorTrc.SMPTE2084), int(ColorTrc.ARIB_STD_B67)

_WHITE_NITS = 203.0  # cd/m²
_SIZE = 65_536
_SDR_GAMMA = 2.4
_PQ_NITS = 10_000.0
_PQ_M1, _PQ_M2 = 2610 / 16384, 2523 / 4096 * 128
_PQ_C1, _PQ_C2, _PQ_C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
_HLG_A, _HLG_B, _HLG_C = 0.17883277, 0.28466892, 0.55991073
_HLG_JOINT = 0.5  # the signal where the square root ends and the logarithm begins
_HLG_NITS, _HLG_GAMMA = 1000.0, 1.2  # peak luminance and system gamma of the nominal display
_BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)
_FROM_BT2020 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
_FROM_P3 = np.array(
    [[1.224940, -0.224940, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274]], np.float32
)
# Matrices to linear BT.709. PQ and HLG frames that do not declare their primaries are taken to be BT.2020.
_MATRICES = {
    int(ColorPrimaries.BT2020): _FROM_BT2020,
    int(ColorPrimaries.UNSPECIFIED): _FROM_BT2020,
    int(ColorPrimaries.SMPTE431): _FROM_P3,
    int(ColorPrimaries.SMPTE432): _FROM_P3,
}
_MAX_SCALED_SIDE = 16_384
_MAX_PIXEL_ASPECT = 100
_UNSPECIFIED_COLORSPACE = 2  # AVCOL_SPC_UNSPECIFIED
_RIGHT_ANGLE_TOLERANCE = 0.02  # the sine of about one degree
_BAND_ROWS = 64
_PACKED_RGB_WITH_ALPHA = {"rgba", "bgra", "argb", "abgr"}
Image = npt.NDArray[Any]  # [height, width, 3], with 8 or 16 bits per channel


def is_hdr(color_trc: int) -> bool:
    """Return whether a transfer characteristic (``VideoFrame.color_trc``) is PQ or HLG."""
    return color_trc in {PQ, HLG}


def to_sdr(image: Codes, *, color_trc: int, color_primaries: int) -> Pixels:
    """Tone-map an RGB picture [height, width, 3] of 16-bit PQ or HLG codes to 8-bit SDR in BT.709.

    Light that is brighter than reference white is clipped.
    """
    light: Light
    if color_trc == HLG:
        scene = _hlg_scene_light()[image]
        luma = np.einsum("hwc,c->hw", scene, _BT2020_LUMA)
        light = scene * _hlg_gain()[_root_codes(luma)][..., None]
    else:
        light = _pq_light()[image]
    matrix = _MATRICES.get(color_primaries)
    if matrix is not None:
        light = np.einsum("hwc,rc->hwr", light, matrix)
    return _sdr_codes()[_root_codes(light)]


def _root_codes(light: Light) -> Codes:
    """Return table indices for light values from 0 to 1.

    The indices are proportional to the square root of the light, so that dark tones stay distinct.
    """
    root = np.sqrt(np.clip(light, 0, 1)) * np.float32(_SIZE - 1)
    return (root + np.float32(0.5)).astype(np.uint16)


def _table(function: Callable[[Numbers], Numbers]) -> Light:
    table = function(np.linspace(0, 1, _SIZE)).astype(np.float32)
    table.flags.writeable = False
    return table


@cache
def _pq_light() -> Light:
    """Return a table [65536] that maps a PQ code to displayed light, where 1 is reference white.

    This is the PQ EOTF of BT.2100, table 4.
    """

    def light(signal: Numbers) -> Numbers:
        power = signal ** (1 / _PQ_M2)
        linear = (np.maximum(power - _PQ_C1, 0) / (_PQ_C2 - _PQ_C3 * power)) ** (1 / _PQ_M1)
        return np.asarray(linear * (_PQ_NITS / _WHITE_NITS), np.float64)

    return _table(light)


@cache
def _hlg_scene_light() -> Light:
    """Return a table [65536] that maps an HLG code to scene light, where 1 is the peak.

    This is the inverse HLG OETF of BT.2100, table 5.
    """

    def light(signal: Numbers) -> Numbers:
        return np.where(signal <= _HLG_JOINT, signal**2 / 3, (np.exp((signal - _HLG_C) / _HLG_A) + _HLG_B) / 12)

    return _table(light)


@cache
def _hlg_gain() -> Light:
    """Return a table [65536] with the ratio of displayed light to scene light, which is the HLG OOTF.

    The index is proportional to the square root of scene luminance. In displayed light, 1 is reference white.
    """
    return _table(lambda root: root ** (2 * (_HLG_GAMMA - 1)) * (_HLG_NITS / _WHITE_NITS))


@cache
def _sdr_codes() -> Pixels:
    """Return a table [65536] that maps the square root of linear light to an 8-bit code.

    This is the inverse BT.1886 EOTF.
    """
    codes: Pixels = np.rint(_table(lambda root: root ** (2 / _SDR_GAMMA)) * 255).astype(np.uint8)
    codes.flags.writeable = False
    return codes


class Turn(NamedTuple):
    """How to turn a picture upright: first swap its axes, then reverse its rows and its columns."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, image: Image) -> Image:
        """Return a turned view of an image [height, width, 3]."""
        turned = image.swapaxes(0, 1) if self.transpose else image
        return turned[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def apply_to_size(self, width: int, height: int) -> tuple[int, int]:
        return (height, width) if self.transpose else (width, height)

    @property
    def is_mirrored(self) -> bool:
        """Return whether the turn mirrors the picture, so that it is more than a rotation."""
        return (self.transpose + self.flip_rows + self.flip_columns) % 2 == 1


class FrameWriter:
    """Takes decoded frames in any order and writes their RGB crops into ``frames`` [max_frames, crop, crop, 3].

    Each crop is written into one or more slots, which are positions in ``frames``. ``pixel_aspect`` is the width of a
    pixel divided by its height. ``container`` is needed because AVI files often have 32-bit pixels whose alpha is 0 by
    mistake.
    """

    def __init__(
        self,
        wanted: Wanted,
        frames: Pixels,
        request: DecodeRequest,
        *,
        pixel_aspect: Fraction = Fraction(1),
        container: str = "",
    ) -> None:
        self.frames = frames
        self.pts_seconds = np.full(len(wanted.packets), np.nan)
        self.request = request
        self.displayed_size: tuple[int, int] | None = None  # (width, height) of the first frame
        self._pixel_aspect = pixel_aspect
        self._container = container
        self._turn: tuple[int, Turn] | None = None  # the last frame's rotation in degrees, and its turn
        self._reformatter = VideoReformatter()
        self._full_size = VideoReformatter()

    @property
    def missing(self) -> Indices:
        """Return the slots that have no frame yet."""
        return np.flatnonzero(np.isnan(self.pts_seconds))

    def put(self, slots: Sequence[int], frame: VideoFrame, pts_seconds: float) -> None:
        """Scale and crop a PyAV frame, and write it into each of ``slots``."""
        pixels = frame.width * frame.height
        if pixels > self.request.limits.max_pixels:
            limit = self.request.limits.max_pixels
            msg = f"A frame of {frame.width}x{frame.height} is {pixels} pixels; decode.max_pixels is {limit}."
            raise VideoError(Status.TOO_LARGE, msg)
        if self.request.row_format > 1:
            self.put_pixels(slots, self._displayed(frame), pts_seconds)
            return
        size = scaled_size(frame.width, frame.height, self.request.resize_size)
        upright = _rotation(frame.rotation).apply(self._scaled(frame, size))
        self.put_pixels(slots, upright, pts_seconds)

    def put_pixels(self, slots: Sequence[int], image: Pixels, pts_seconds: float) -> None:
        """Crop a scaled, upright image [height, width, 3], and write it into each of ``slots``."""
        crop = center_crop(image, self.request.crop_size)
        for slot in slots:
            self.frames[slot] = crop
            self.pts_seconds[slot] = pts_seconds

    def _displayed(self, frame: VideoFrame) -> Pixels:
        """Return a frame as it is displayed, as an RGB image [height, width, 3].

        The frame is composited on black, scaled, turned upright and, if it is HDR, cropped and tone-mapped.
        """
        turn = self._turn_of(frame)
        shown = square_size(frame.width, frame.height, self._pixel_aspect, resize_size=self.request.resize_size)
        if self.displayed_size is None:
            self.displayed_size = turn.apply_to_size(*shown)
        color_trc, color_primaries = frame.color_trc, frame.color_primaries
        deep = is_hdr(color_trc)
        # HDR that does not declare its matrix is taken to be BT.2020. swscale would assume BT.601.
        colorspace = Colorspace.BT2020 if deep and frame.colorspace == _UNSPECIFIED_COLORSPACE else None
        if has_alpha(frame.format.name):
            zero_is_opaque = self._container == "avi" and frame.format.name in _PACKED_RGB_WITH_ALPHA
            frame = _composite(
                frame, self._full_size, deep=deep, src_colorspace=colorspace, zero_is_opaque=zero_is_opaque
            )
        size = scaled_size(*shown, self.request.resize_size)
        image = turn.apply(self._scaled(frame, size, deep=deep, src_colorspace=colorspace))
        if deep:
            codes = center_crop(image, self.request.crop_size)
            return to_sdr(codes, color_trc=color_trc, color_primaries=color_primaries)
        return image

    def _turn_of(self, frame: VideoFrame) -> Turn:
        """Return the turn of a frame, like ``turn_of``.

        Reading side data is slow, so the last turn is returned again while the rotation stays the same.
        """
        rotation = frame.rotation
        if self._turn is None or rotation != self._turn[0]:
            self._turn = rotation, turn_of(frame)
        return self._turn[1]

    def _scaled(
        self, frame: VideoFrame, size: tuple[int, int], *, deep: bool = False, src_colorspace: int | None = None
    ) -> Image:
        """Return a frame as an RGB image [height, width, 3] with 8 bits per channel, or 16 if ``deep``."""
        width, height = size
        scaled = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb48le" if deep else "rgb24",
            src_colorspace=src_colorspace,
            interpolation=Interpolation.BILINEAR,
            threads=1,
        )
        plane, kind = scaled.planes[0], np.dtype("<u2" if deep else np.uint8)
        rows = np.frombuffer(memoryview(plane), dtype=kind).reshape(-1, plane.line_size // kind.itemsize)
        return rows[:height, : width * 3].reshape(height, width, 3)


@cache
def has_alpha(pixel_format: str) -> bool:
    """Return whether a pixel format has an alpha channel. Alpha in a palette is ignored."""
    described = VideoFormat(pixel_format)
    return not described.has_palette and any(one.is_alpha for one in described.components)


def _composite(
    frame: VideoFrame, reformatter: VideoReformatter, *, deep: bool, src_colorspace: int | None, zero_is_opaque: bool
) -> VideoFrame:
    """Composite a frame on black at full size. Return an RGBA or BGRA frame whose alpha must be ignored.

    ``deep`` selects 16 bits per channel instead of 8. ``zero_is_opaque`` treats a fully transparent frame as opaque,
    because many programs leave the fourth byte of 32-bit pixels at zero.
    """
    rgba, bgra = ("rgba64le", "bgra64le") if deep else ("rgba", "bgra")
    copy = reformatter.reformat(
        frame,
        format=bgra if frame.format.name == rgba else rgba,  # not the same format: that would return the frame itself
        src_colorspace=src_colorspace,
        interpolation=Interpolation.BILINEAR,
        threads=1,
    )
    plane = copy.planes[0]
    kind, wide = (np.dtype("<u2"), np.uint32) if deep else (np.dtype(np.uint8), np.uint16)
    values = np.frombuffer(memoryview(plane), dtype=kind).reshape(-1, plane.line_size // kind.itemsize)
    pixels = values[: frame.height, : frame.width * 4].reshape(frame.height, frame.width, 4)
    if zero_is_opaque and not pixels[..., 3].any():
        return copy
    most = np.iinfo(kind).max
    for top in range(0, frame.height, _BAND_ROWS):  # one band at a time needs little memory
        band = pixels[top : top + _BAND_ROWS]
        color = np.multiply(band[..., :3], band[..., 3:], dtype=wide) + wide(most // 2)
        band[..., :3] = color // wide(most)
    return copy


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Return the width of a pixel divided by its height.

    The container's value takes precedence over the codec's. The result is 1 if neither has a value, or if the value is
    invalid: above 100 or below 1/100.
    """
    ratio = stream.sample_aspect_ratio
    return ratio if ratio and Fraction(1, _MAX_PIXEL_ASPECT) <= ratio <= _MAX_PIXEL_ASPECT else Fraction(1)


def needs(frame: VideoFrame) -> str:
    """Return what a decoder must do to display a frame, apart from rotations by right angles.

    The result is "" if the decoder needs to do nothing else.
    """
    if frame.interlaced_frame:
        return "deinterlace"
    if is_hdr(frame.color_trc):
        return "tone-map HDR"
    if has_alpha(frame.format.name):
        return "composite alpha"
    if turn_of(frame).is_mirrored:
        return "mirror"
    return ""


def square_size(width: int, height: int, aspect: Fraction, *, resize_size: int) -> tuple[int, int]:
    """Return the width and height of a frame in square pixels.

    The size stays unchanged if the size in square pixels would be too large to scale.
    """
    if aspect == 1:
        return width, height
    square = max(1, round(width * aspect))
    return (square if max(_scaled_sides(square, height, resize_size)) <= _MAX_SCALED_SIDE else width), height


def turn_of(frame: VideoFrame) -> Turn:
    """Return the turn that a frame's display matrix describes.

    A turn is one of the four rotations by right angles, with or without mirroring. The matrix may deviate from it by
    about one degree. Other angles give no turn.
    """
    try:
        side_data = cast("Mapping[Type, Any]", frame.side_data)
        return turn_of_matrix(bytes(side_data[Type.DISPLAYMATRIX]))
    except KeyError:
        return Turn()
    except ValueError:  # side data of a type that PyAV does not know
        return _rotation(frame.rotation)


def turn_of_matrix(matrix: bytes) -> Turn:
    """Return the turn that a display matrix describes. The matrix is FFmpeg's: nine native 32-bit numbers.

    The first row of the matrix gives the displayed direction of a step to the right in the stored picture. The second
    row gives the displayed direction of a step down.
    """
    a, b, _, c, d = struct.unpack_from("=5i", matrix)
    right, down = hypot(a, b), hypot(c, d)
    if not right or not down:
        return Turn()
    a, b, c, d = a / right, b / right, c / down, d / down
    if max(abs(b), abs(c)) <= _RIGHT_ANGLE_TOLERANCE:
        return Turn(transpose=False, flip_rows=d < 0, flip_columns=a < 0)
    if max(abs(a), abs(d)) <= _RIGHT_ANGLE_TOLERANCE:
        return Turn(transpose=True, flip_rows=b < 0, flip_columns=c < 0)
    return Turn()


def _rotation(degrees: int) -> Turn:
    """Return a rotation by ``degrees`` counterclockwise. An angle that is not a right angle gives no turn."""
    turns = {
        90: Turn(transpose=True, flip_rows=True),
        180: Turn(flip_rows=True, flip_columns=True),
        270: Turn(transpose=True, flip_columns=True),
    }
    return turns.get(degrees % 360, Turn())


def scaled_size(width: int, height: int, resize_size: int) -> tuple[int, int]:
    """Return the width and height of a frame after its shorter side is scaled to ``resize_size``.

    The longer side is rounded as torchvision's ``Resize`` does.

    Raises:
        VideoError: the longer side would be too long.
    """
    scaled = _scaled_sides(width, height, resize_size)
    if max(scaled) > _MAX_SCALED_SIDE:
        msg = f"{width}x{height} would be scaled to {scaled[0]}x{scaled[1]}; no side may exceed {_MAX_SCALED_SIDE}."
        raise VideoError(Status.TOO_LARGE, msg)
    return scaled


def _scaled_sides(width: int, height: int, resize_size: int) -> tuple[int, int]:
    if width <= height:
        return resize_size, int(resize_size * height / width)
    return int(resize_size * width / height), resize_size


def center_crop(image: Image, crop_size: int) -> Image:
    """Return the centered square of an image [height, width, 3]. The sides of the square are ``crop_size``.

    The position of the square is rounded as torchvision's ``CenterCrop`` does.
    """
    height, width = image.shape[:2]
    top, left = round((height - crop_size) / 2), round((width - crop_size) / 2)
    return image[top : top + crop_size, left : left + crop_size]
