"""What is known of a video before any of it is decoded."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

import numpy as np
from av.video.stream import VideoStream

from raypipe.video.sampling import Seconds
from raypipe.video.timeline import Flags, Ticks

_READ_AHEAD_PACKETS = 5
_MIN_LOST_FRAMES = 1.5
_CONSTANT_RATE = frozenset({"mpeg1video", "mpeg2video"})  # each frame's time follows from their number
_MIN_GAP_FRAMES = 2.5  # a frame may be shown for three fields
_MIN_STEPS = 8
_MAX_LOSSES = 1000


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
    corrupt: tuple[int, ...] = ()  # positions of packets of which the container says that data is lost
    losses: tuple[int, ...] = ()  # positions of packets before which others are lost
    lost_spans: tuple[tuple[float, float], ...] = ()  # [start, stop) in seconds, of frames that damage hides

    @cached_property
    def first_pts(self) -> int:
        """When the first frame is shown, in units of ``time_base``."""
        return int(self.pts[self.is_shown].min())

    @property
    def pts_seconds(self) -> Seconds:
        """[P], in decoding order."""
        return (self.pts - self.first_pts).astype(np.float64) * float(self.time_base)


def with_lost_spans(index: VideoIndex, losses: Iterable[int]) -> VideoIndex:
    """Add to an index the times that damage hides: before the packets at the positions ``losses``.

    The demuxer reads a few packets ahead, so that a loss may be before one of the next packets. Losses without a gap
    in time, such as those of sound, are left out.
    """
    seconds = np.where(index.is_shown, index.pts_seconds, np.nan)
    shown = np.sort(seconds[index.is_shown])
    frame_seconds = float(np.median(np.diff(shown))) if len(shown) > 1 else 1 / index.average_fps
    highest = np.fmax.accumulate(seconds)
    lowest = np.fmin.accumulate(seconds[::-1])[::-1]
    spans: dict[int, tuple[float, float]] = {}
    for loss in sorted({*losses, *index.losses}):
        near = np.arange(max(loss, 1), min(loss + _READ_AHEAD_PACKETS, len(seconds)))
        gaps = lowest[near] - highest[near - 1]
        if len(near) and np.nanmax(gaps, initial=0) > _MIN_LOST_FRAMES * frame_seconds:
            at = int(near[int(np.nanargmax(gaps))])
            spans[at] = float(highest[at - 1]) + frame_seconds, float(lowest[at])
    if not spans:
        return index
    end = float(shown[-1]) + frame_seconds
    lost = sum(stop - start for start, stop in spans.values())
    duration = index.duration_seconds if index.end_seconds < index.duration_seconds else end
    return replace(
        index,
        losses=tuple(sorted(spans)),
        lost_spans=tuple(spans[at] for at in sorted(spans)),
        end_seconds=end,
        duration_seconds=duration,
        average_fps=len(shown) / (end - lost),
    )


def gaps_of_constant_rate(index: VideoIndex) -> list[int]:
    """Return the positions of packets before which frames are missing, in codecs that always have a constant rate."""
    if index.codec not in _CONSTANT_RATE or index.container == "avi":  # which may store frames as "same as before"
        return []
    times = np.sort(index.pts[index.is_shown])
    steps = np.diff(times)
    if len(steps) < _MIN_STEPS:
        return []
    after = times[1:][steps > _MIN_GAP_FRAMES * np.median(steps)]
    return [int(np.argmax(index.is_shown & (index.pts >= time))) for time in after[:_MAX_LOSSES].tolist()]


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
