"""The messages between a decode child and its parent, and the parent's checks. Loads no video library."""

import itertools
import math
import mmap
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from raypipe.status import HAS_FRAMES, Status
from raypipe.video.decode_request import Pixels, Ranges

MAX_MESSAGE_BYTES = 65_536
WANT = "want"  # the key of a child's message that asks for missing ranges of the file, sent before a reply
_PTS_BYTES = 8
_MAX_TEXT = 300
_FOUND_BY_DECODING = HAS_FRAMES | {
    Status.DECODE_ERROR,
    Status.NO_VIDEO_STREAM,
    Status.ENCRYPTED,
    Status.FORBIDDEN_FORMAT,
    Status.TOO_LARGE,
    Status.OUT_OF_MEMORY,
}


@dataclass(frozen=True, slots=True)
class Reply:
    """The child's reply about one video. Frames and their times are in shared memory."""

    status: Status
    error: str = ""
    container: str = ""
    codec: str = ""
    width: int = 0  # as displayed; in row format 1, as coded and before rotation
    height: int = 0
    num_frames: int = 0
    duration_seconds: float = 0.0
    average_fps: float = 0.0
    num_corrupt_frames: int = 0
    interlaced: bool = False
    timeline_repaired: bool = False


class SharedFrames:
    """The memory that parent and child share: the times and pixels of up to ``max_frames`` frames.

    It holds the times [max_frames] in seconds, followed by the RGB crops [max_frames, crop, crop, 3].
    """

    def __init__(self, memory: mmap.mmap, *, crop_size: int, max_frames: int) -> None:
        self.pts_seconds: npt.NDArray[np.float64] = np.frombuffer(memory, dtype=np.float64, count=max_frames)
        pixels: Pixels = np.frombuffer(memory, dtype=np.uint8, offset=max_frames * _PTS_BYTES)
        self.frames = pixels.reshape(max_frames, crop_size, crop_size, 3)

    @staticmethod
    def size_bytes(*, crop_size: int, max_frames: int) -> int:
        return max_frames * (_PTS_BYTES + crop_size * crop_size * 3)


def read_reply(message: dict[str, Any], *, max_frames: int) -> Reply | None:
    """Check a child's message. Return the reply in it, or None if any value is invalid."""
    try:
        reply = Reply(**message)
        status = Status(reply.status)
        numbers = (reply.width, reply.height, reply.num_frames, reply.duration_seconds, reply.average_fps)
        makes_sense = (
            all(math.isfinite(number) and 0 <= number < 2**31 for number in numbers)
            and status in _FOUND_BY_DECODING
            and (reply.num_frames > 0) == (status in HAS_FRAMES)
            and all(type(one) is int and 0 <= one <= max_frames for one in (reply.num_frames, reply.num_corrupt_frames))
            and all(type(flag) is bool for flag in (reply.interlaced, reply.timeline_repaired))
            and all(isinstance(text, str) for text in (reply.error, reply.container, reply.codec))
        )
    except (TypeError, ValueError, OverflowError):
        return None
    if not makes_sense:
        return None
    return replace(
        reply,
        status=status,
        error=printable_line(reply.error),
        container=printable_line(reply.container),
        codec=printable_line(reply.codec),
        width=int(reply.width),
        height=int(reply.height),
        duration_seconds=float(reply.duration_seconds),
        average_fps=float(reply.average_fps),
    )


def read_ranges(wanted: object, size_bytes: int) -> Ranges | None:
    """Check the byte ranges that a child asks for. Return them, or None if they are invalid.

    ``size_bytes`` is the size of the video file.
    """
    if not isinstance(wanted, list) or not all(isinstance(one, list) and len(one) == 2 for one in wanted):  # noqa: PLR2004
        return None
    edges = [edge for one in wanted for edge in one]
    if not edges or not all(type(edge) is int for edge in edges):
        return None
    if edges[0] < 0 or edges[-1] > size_bytes or any(before >= after for before, after in itertools.pairwise(edges)):
        return None
    return [(start, stop) for start, stop in wanted]


def printable_line(text: str) -> str:
    """Convert untrusted text to one printable line of limited length, which is safe in a table or terminal."""
    return "".join(char if char.isprintable() else " " for char in text)[:_MAX_TEXT].strip()
