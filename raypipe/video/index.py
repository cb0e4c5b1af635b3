"""What is known of a video before any of it is decoded."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from av.video.stream import VideoStream

from raypipe.video.sampling import Seconds
from raypipe.video.timeline import Flags, Ticks


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
    timeline_repaired: bool = False  # the container's time stamps contradict each other
    lost_spans: tuple[tuple[float, float], ...] = ()  # [start, stop) in seconds, of frames that damage hides

    @property
    def first_pts(self) -> int:
        """When the first frame is shown, in units of ``time_base``."""
        return int(self.pts[self.is_shown].min())

    @property
    def pts_seconds(self) -> Seconds:
        """[P], in decoding order."""
        return (self.pts - self.first_pts).astype(np.float64) * float(self.time_base)


def with_lost_spans(index: VideoIndex, partings: Iterable[tuple[Flags, Flags]]) -> VideoIndex:
    """Add to an index the times that damage hides: those between the packets before it and those after it, [P] each."""
    seconds = index.pts_seconds
    shown = np.sort(seconds[index.is_shown])
    frame_seconds = float(np.median(np.diff(shown))) if len(shown) > 1 else 1 / index.average_fps
    spans = []
    for before, after in partings:
        before, after = before & index.is_shown, after & index.is_shown  # noqa: PLW2901
        if before.any() and after.any():
            span = float(seconds[before].max()) + frame_seconds, float(seconds[after].min())
            if span[1] - span[0] > frame_seconds / 2:
                spans.append(span)
    if not spans:
        return index
    end = float(shown[-1]) + frame_seconds
    fps = len(shown) / (end - sum(stop - start for start, stop in spans))
    duration = index.duration_seconds if index.end_seconds < index.duration_seconds else end
    return replace(index, lost_spans=tuple(spans), end_seconds=end, duration_seconds=duration, average_fps=fps)


def index_stream(
    stream: VideoStream,
    container: str,
    *,
    pts: Ticks,
    is_keyframe: Flags,
    is_shown: Flags,
    promised_seconds: float,
    is_cut: Callable[[float, float, float], bool],
    row_format: int,
    missing_seconds: Callable[[float], float] | None = None,
) -> VideoIndex:
    """Measure the rate and the duration of a stream whose container promises so many seconds.

    ``is_cut`` tells a file that was cut short from the promise, when the first frame is shown, and how long the frames
    last from then, all in seconds. ``missing_seconds`` is for a repaired timeline, of which the container promises
    nothing: it tells from the last of these how much was cut off.
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
    duration = promised_seconds if is_cut(promised_seconds, start, end) else end
    if missing_seconds is not None:
        duration = end + missing_seconds(end)
    context = stream.codec_context
    return VideoIndex(
        pts=pts,
        is_keyframe=is_keyframe,
        is_shown=is_shown,
        time_base=time_base,
        container=container,
        codec=context.codec.canonical_name if row_format > 1 else context.name,  # of AV1, 'libdav1d' decodes 'av1'
        width=context.width,
        height=context.height,
        average_fps=fps,
        duration_seconds=duration,
        end_seconds=end,
        timeline_repaired=missing_seconds is not None,
    )
