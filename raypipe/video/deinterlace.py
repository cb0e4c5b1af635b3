"""Deinterlace the frames that are flagged as interlaced. Runs in the child process only."""

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import cast

import av
from av.filter import Graph
from av.video.frame import VideoFrame

_MIN_SIDE = 4  # bwdif does not accept smaller frames
_UNKNOWN_TIME_BASE = Fraction(1, 90_000)  # the graph needs a time base; each frame gets its own back afterwards


class Deinterlacer:
    """Deinterlaces the frames of one video.

    Each interlaced frame is replaced by a progressive frame with the same time. Progressive frames stay unchanged,
    although the filter may need them as the neighbours of interlaced frames.
    """

    def __init__(self) -> None:
        self.interlaced = False  # whether any frame so far was deinterlaced

    def deinterlace(self, frames: Iterable[VideoFrame | None]) -> Iterator[VideoFrame | None]:
        """Deinterlace frames that are given in display order, and yield them in the same order.

        A None in ``frames`` marks the end of a run of consecutive frames. It is yielded too.
        """
        before: VideoFrame | None = None
        bwdif: _Bwdif | None = None
        for frame in frames:
            if bwdif is not None and not (frame and bwdif.accepts(frame)):
                yield from bwdif.filter(None)
                before = bwdif = None
            if frame is None:
                before = None
                yield None
            elif bwdif is not None:
                yield from bwdif.filter(frame)
            elif frame.interlaced_frame and min(frame.width, frame.height) >= _MIN_SIDE:
                self.interlaced = True
                bwdif = _Bwdif(frame, before)
                yield from bwdif.filter(frame)
            else:
                before = frame
                yield frame
        if bwdif is not None:
            yield from bwdif.filter(None)


class _Bwdif:
    """FFmpeg's bwdif filter, for frames of one size and format. Each input frame gives one output frame.

    ``before`` is the frame that precedes the first one, if there is such a frame. The filter needs it as a neighbour,
    but does not yield it.
    """

    def __init__(self, frame: VideoFrame, before: VideoFrame | None) -> None:
        self._shape = _shape(frame)
        self._times: deque[tuple[int | None, int | None, int, Fraction | None]] = deque()  # the filter changes them
        self._graph = Graph()
        self._graph.threads = 1
        self._source = self._graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or _UNKNOWN_TIME_BASE
        )
        # Without `parity`, the filter takes the field order from each frame.
        bwdif = self._graph.add("bwdif", "mode=send_frame:deint=interlaced")
        self._sink = self._graph.add("buffersink")
        self._graph.link_nodes(self._source, bwdif, self._sink).configure()
        self._to_drop = 0
        if before is not None and self.accepts(before):
            self._to_drop = 1
            self._push(before)

    def accepts(self, frame: VideoFrame) -> bool:
        """Return whether a frame has the size and format for which the filter was made."""
        return _shape(frame) == self._shape

    def filter(self, frame: VideoFrame | None) -> Iterator[VideoFrame]:
        """Push a frame, and yield the frames that are then complete. None yields all remaining frames."""
        self._push(frame)
        while True:
            try:
                done = cast("VideoFrame", self._sink.pull())
            except (av.error.BlockingIOError, av.error.EOFError):  # the filter waits for the next frame, or has ended
                return
            done.pts, done.dts, done.duration, time_base = self._times.popleft()
            if time_base is not None:
                done.time_base = time_base
            if self._to_drop:
                self._to_drop -= 1
                continue
            yield done

    def _push(self, frame: VideoFrame | None) -> None:
        if frame is not None:
            self._times.append((frame.pts, frame.dts, frame.duration, frame.time_base))
        self._source.push(frame)


def _shape(frame: VideoFrame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name
