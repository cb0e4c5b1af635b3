"""What is known of a video before any of it is decoded."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream

from raypipe.video.sampling import Seconds

Ticks = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class VideoIndex:
    """Every packet of a video stream in file order, which is decoding order, and what the container says of it.

    Times are seconds from the first frame shown. P is the number of packets.
    """

    pts: Ticks  # [P], in units of time_base
    is_keyframe: Flags  # [P]
    is_shown: Flags  # [P]: False where an edit list cuts it, though others may refer to it
    time_base: Fraction
    container: str
    codec: str
    width: int
    height: int
    average_fps: float
    duration_seconds: float  # what the container promises; a truncated file has less
    end_seconds: float  # where the last frame that is there ends

    @property
    def first_pts(self) -> int:
        """When the first frame is shown, in units of ``time_base``."""
        return int(self.pts[self.is_shown].min())

    @property
    def pts_seconds(self) -> Seconds:
        """[P], in decoding order."""
        return (self.pts - self.first_pts).astype(np.float64) * float(self.time_base)


def index_stream(
    stream: VideoStream,
    container: str,
    *,
    pts: Ticks,
    is_keyframe: Flags,
    is_shown: Flags,
    promised_seconds: float,
    is_cut: Callable[[float, float, float], bool],
) -> VideoIndex:
    """Measure the rate and the duration of a stream whose container promises so many seconds.

    ``is_cut`` tells a file that was cut short from the promise, when the first frame is shown, and how long the frames
    last from then, all in seconds.
    """
    time_base = stream.time_base or Fraction(1, 90_000)
    shown_pts = pts[is_shown]
    span = float((int(shown_pts.max()) - int(shown_pts.min())) * time_base)
    measured = (len(shown_pts) - 1) / span if span > 0 else 0.0
    fps = measured or float(stream.average_rate or 0) or 1.0
    end = span + 1 / fps
    start = float(int(shown_pts.min()) * time_base)
    if not stream.duration:
        promised_seconds = max(0.0, promised_seconds - start)  # the container's, which counts from zero
    context = stream.codec_context
    return VideoIndex(
        pts=pts,
        is_keyframe=is_keyframe,
        is_shown=is_shown,
        time_base=time_base,
        container=container,
        codec=context.name,
        width=context.width,
        height=context.height,
        average_fps=fps,
        duration_seconds=promised_seconds if is_cut(promised_seconds, start, end) else end,
        end_seconds=end,
    )
