"""A request to decode a video: which frames, at what size, and under which limits.

This module loads no video library.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from raypipe.config.embed import DecodeConfig  # needs pydantic, which a decode child does not load


DECODERS = ("pyav", "decord", "torchcodec")
Pixels = npt.NDArray[np.uint8]
Ranges = Sequence[tuple[int, int]]  # ascending byte ranges [start, stop) in a file


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """The limits that a video may not exceed. They are checked before the video is decoded."""

    max_pixels: int
    max_duration_seconds: float
    max_streams: int = 64
    max_packets: int = 5_000_000


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    mode: Literal["uniform", "fps", "keyframes", "all"]
    num_frames: int
    fps: float
    max_frames: int
    nearest_keyframe: bool
    loop_filter: bool  # False skips the codec's smoothing of block edges, which is faster and gives different pixels
    resize_size: int  # the shorter side is scaled to this number of pixels
    crop_size: int  # then a centered square with this side is cut out
    limits: DecodeLimits
    row_format: int = 2  # rules; 1 (older outputs) trusts time stamps and decoders, and ignores display properties


def request_of_settings(settings: Mapping[str, Any], decode: "DecodeConfig") -> DecodeRequest:
    """Return the request that ``raypipe embed`` uses for each video of an output.

    ``settings`` are the settings stored with the output. The limits come from ``decode``.
    """
    sampling = settings["sampling"]
    num_frames = sampling.get("num_frames", 1)
    return DecodeRequest(
        mode=sampling["mode"],
        num_frames=num_frames,
        fps=sampling.get("fps", 1.0),
        max_frames=sampling.get("max_frames", num_frames),
        nearest_keyframe=sampling.get("nearest_keyframe", False),
        loop_filter=sampling.get("loop_filter", True),
        resize_size=settings["resize_size"],
        crop_size=settings["crop_size"],
        limits=DecodeLimits(max_pixels=decode.max_pixels, max_duration_seconds=decode.max_duration_seconds),
        row_format=settings.get("format", 1),
    )
