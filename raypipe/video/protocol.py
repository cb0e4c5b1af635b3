"""What the decode child and its parent say to each other. Loads no video library."""

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

MAX_MESSAGE_BYTES = 65_536
_PTS_BYTES = 8

DECODERS = ("pyav", "decord", "torchcodec")
Pixels = npt.NDArray[np.uint8]
Ranges = Sequence[tuple[int, int]]  # of bytes in a file, [start, stop), ascending
WANT = "want"  # what a child says instead of a reply: these ranges of the file are not there yet


@dataclass(frozen=True, slots=True)
class Limits:
    """What a video may be at most, checked before it is decoded."""

    max_pixels: int
    max_duration_seconds: float
    max_streams: int = 64
    max_packets: int = 5_000_000


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """Which frames to take of a video, at what size, under which limits."""

    mode: Literal["uniform", "fps", "keyframes", "all"]
    num_frames: int
    fps: float
    max_frames: int
    nearest_keyframe: bool
    loop_filter: bool
    resize_size: int  # the shorter side is scaled to this
    crop_size: int  # then a centred square of this is kept
    limits: Limits
    row_format: int = 2  # whose rules apply: 1 trusts time stamps and decoders, and ignores display properties


def request_of_settings(settings: Mapping[str, Any], limits: Limits) -> DecodeRequest:
    """Return what was asked of the videos of an output of ``raypipe embed``, from the settings that it stores."""
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
        limits=limits,
        row_format=settings.get("format", 1),
    )


@dataclass(frozen=True, slots=True)
class Reply:
    """What the child tells of one video; its frames and their times lie in the shared memory."""

    status: str
    error: str = ""
    container: str = ""
    codec: str = ""
    width: int = 0  # as displayed; of row format 1 as coded, before it is turned upright
    height: int = 0
    num_frames: int = 0
    duration_seconds: float = 0.0
    average_fps: float = 0.0
    num_corrupt_frames: int = 0
    interlaced: bool = False
    timeline_repaired: bool = False


class SharedFrames:
    """A block of memory that both map: times [max_frames] in seconds, then crops [max_frames, crop, crop, 3]."""

    def __init__(self, memory: mmap.mmap, *, crop_size: int, max_frames: int) -> None:
        self.pts_seconds: npt.NDArray[np.float64] = np.frombuffer(memory, dtype=np.float64, count=max_frames)
        pixels: Pixels = np.frombuffer(memory, dtype=np.uint8, offset=max_frames * _PTS_BYTES)
        self.frames = pixels.reshape(max_frames, crop_size, crop_size, 3)

    @staticmethod
    def size_bytes(*, crop_size: int, max_frames: int) -> int:
        """How large the block is."""
        return max_frames * (_PTS_BYTES + crop_size * crop_size * 3)
