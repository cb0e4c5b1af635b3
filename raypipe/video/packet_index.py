"""The index of a video: its packets and their times, known before any frame is decoded."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

import numpy as np
from av.video.stream import VideoStream

from raypipe.video.decode_request import Ranges
from raypipe.video.timeline import DisplayTimes, Flags, Seconds, Ticks

_READ_AHEAD_PACKETS = 5
_MIN_LOST_FRAMES = 1.5
_CONSTANT_RATE = frozenset({"mpeg1video", "mpeg2video"})  # each frame's time follows from its number
_MIN_GAP_FRAMES = 2.5  # a frame may be shown for three fields
_MIN_STEPS = 8
_MAX_LOSSES = 1000


@dataclass(frozen=True)
class PacketIndex:
    """The packets of a video stream in file order, which is also decoding order, and the stream's properties.

    Times in seconds count from the first frame that is shown. P is the number of packets.
    """

    pts: Ticks  # [P], in units of time_base
    is_keyframe: Flags  # [P]
    is_shown: Flags  # [P]; False if an edit list cuts the packet, to which other packets may still refer
    time_base: Fraction
    container: str
    codec: str
    width: int
    height: int
    average_fps: float
    duration_seconds: float  # as the container declares it; a truncated file holds less
    end_seconds: float  # where the last frame in the file ends
    ends_inside_fragment: bool = False  # a truncated MP4 that does not declare how long it was
    timeline_repaired: bool = False  # the container's time stamps contradicted each other, so they were repaired
    corrupt: tuple[int, ...] = ()  # positions of packets that the demuxer flags as corrupt
    losses: tuple[int, ...] = ()  # positions of packets before which other packets are lost
    lost_spans: tuple[tuple[float, float], ...] = ()  # [start, stop) in seconds: the times of lost frames

    @cached_property
    def first_pts(self) -> int:
        """Return the display time of the first frame that is shown, in units of ``time_base``."""
        return int(self.pts[self.is_shown].min())

    @property
    def pts_seconds(self) -> Seconds:
        """Return the display time [P] of each packet in seconds, in decoding order."""
        return (self.pts - self.first_pts).astype(np.float64) * float(self.time_base)


def index_stream(
    stream: VideoStream, container: str, times: DisplayTimes, *, is_keyframe: Flags, row_format: int
) -> PacketIndex:
    """Build the index of a complete stream. The frame rate and the duration are computed from ``times``."""
    time_base = stream.time_base or Fraction(1, 90_000)
    shown_pts = times.pts[times.is_shown]
    span = float((int(shown_pts.max()) - int(shown_pts.min())) * time_base)
    measured = (len(shown_pts) - 1) / span if span > 0 else 0.0
    fps = measured or float(stream.average_rate or 0) or 1.0
    context = stream.codec_context
    return PacketIndex(
        pts=times.pts,
        is_keyframe=is_keyframe,
        is_shown=times.is_shown,
        time_base=time_base,
        container=container,
        codec=context.codec.canonical_name if row_format > 1 else context.name,  # 'av1', not its decoder 'libdav1d'
        width=context.width,
        height=context.height,
        average_fps=fps,
        duration_seconds=span + 1 / fps,
        end_seconds=span + 1 / fps,
        timeline_repaired=times.is_repaired,
    )


def with_lost_spans(index: PacketIndex, losses: Iterable[int]) -> PacketIndex:
    """Return the index with the times of lost frames added.

    ``losses`` holds the positions of packets before which frames are lost. The demuxer reads a few packets ahead, so
    the frames may be missing before one of the next packets instead. Losses that leave no gap in time, such as lost
    audio packets, are ignored.
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


def with_damage(index: PacketIndex, places: Ticks, damage: Ranges, *, size_bytes: int) -> PacketIndex:
    """Return the index with the times of frames that are lost to damaged byte ranges added.

    ``places`` [P] holds the file offset of each packet. Damage between two frames hides the time between them. If the
    damage reaches the end of the file, the time that it hides there is estimated from the file size.
    """
    if not damage:
        return index
    losses = [int(np.argmax(places >= stop)) for _, stop in damage if (places >= stop).any()]
    index = with_lost_spans(index, losses)
    start, stop = damage[-1]
    duration = index.end_seconds * size_bytes / start if stop == size_bytes and start else index.end_seconds
    return replace(index, duration_seconds=duration)


def gaps_of_constant_rate(index: PacketIndex) -> list[int]:
    """Return the positions of packets before which frames are missing, in codecs with a constant frame rate.

    The list is empty for other codecs.
    """
    if index.codec not in _CONSTANT_RATE or index.container == "avi":  # AVI may leave out repeated frames
        return []
    times = np.sort(index.pts[index.is_shown])
    steps = np.diff(times)
    if len(steps) < _MIN_STEPS:
        return []
    after = times[1:][steps > _MIN_GAP_FRAMES * np.median(steps)]
    return [int(np.argmax(index.is_shown & (index.pts >= time))) for time in after[:_MAX_LOSSES].tolist()]
