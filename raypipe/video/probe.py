"""Look at a video without decoding it: its container by magic bytes, its packets, its limits.

Runs in the child process only, but for ``sniff_container``, which is pure.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import av
import av.container
import numpy as np
import numpy.typing as npt
from av.stream import Disposition
from av.video.stream import VideoStream

from raypipe.status import Status
from raypipe.video.protocol import Limits
from raypipe.video.sampling import Seconds

SNIFF_BYTES = 1024
_KEEP_PACKETS_BYTES = 64 * 1024 * 1024
_PACKET_BYTES = 640  # what a packet takes besides its content
_READ_BUFFER_BYTES = 256 * 1024
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"moof", b"styp", b"sidx", b"uuid")
_MAGIC = (
    (b"\x1a\x45\xdf\xa3", "matroska"),
    (b"FLV\x01", "flv"),
    (b"OggS", "ogg"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (b"\x00\x00\x01\xba", "mpeg"),
)
CONTAINERS = ("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "ogg", "asf")


class VideoError(Exception):
    """This video ends as a row with ``status``; the message is its ``error``."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


def sniff_container(head: bytes) -> str | None:
    """FFmpeg's name of the container that a file's first bytes show, or None where it is none of ``CONTAINERS``."""
    if head[4:8] in _MP4_BOXES:
        return "mov"
    if head[:4] in {b"RIFF", b"ON2 "} and head[8:11] in {b"AVI", b"ON2"}:
        return "avi"
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    for packet_size, offset in ((188, 0), (192, 4), (204, 0)):
        syncs = head[offset::packet_size]
        if len(syncs) > 1 and set(syncs[:5]) == {0x47}:
            return "mpegts"
    return None


@dataclass(frozen=True)
class VideoIndex:
    """Every packet of a video stream in file order, which is decoding order, and what the container says of it.

    Times are seconds from the first frame shown. P is the number of packets.
    """

    pts: npt.NDArray[np.int64]  # [P], in units of time_base
    is_keyframe: npt.NDArray[np.bool_]  # [P]
    is_disposable: npt.NDArray[np.bool_]  # [P]: no other frame refers to it
    is_shown: npt.NDArray[np.bool_]  # [P]: False where an edit list cuts it, though others may refer to it
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


class VideoFile:
    """One untrusted video, given as a nameless buffer.

    Raises:
        VideoError: with ``forbidden_format``, ``no_video_stream`` or ``too_large``.
        av.error.FFmpegError: FFmpeg cannot read it.
    """

    def __init__(self, file: BinaryIO, *, limits: Limits) -> None:
        file.seek(0)
        head = file.read(SNIFF_BYTES)
        if not head:
            raise VideoError(Status.DECODE_ERROR, "The file is empty.")
        container = sniff_container(head)
        if container is None:
            msg = f"Not a video container; begins with {head[:8]!r}. Choose one of {', '.join(CONTAINERS)}."
            raise VideoError(Status.FORBIDDEN_FORMAT, msg)
        self.file = file
        self.container = container
        self._limits = limits
        self._kept: list[av.Packet[Any]] = []
        self._input, self.stream = self._open()
        self.index = self._index()

    def packets(self) -> Iterable["av.Packet[Any]"]:
        """The video's packets in file order, once more; ``stream`` is then the one they belong to."""
        if self._kept:
            kept, self._kept = self._kept, []
            return kept
        self._input.close()
        self._input, self.stream = self._open()
        return _all_packets(self._input.demux(self.stream))

    def close(self) -> None:
        """Free what FFmpeg holds."""
        self._kept = []
        self._input.close()

    def _open(self) -> tuple[av.container.InputContainer, VideoStream]:
        self.file.seek(0)
        # The demuxer is named, so nothing is guessed from content, and no protocol may be opened from inside the file.
        options = {
            "format_whitelist": self.container,
            "protocol_whitelist": "none",
            "max_streams": str(self._limits.max_streams),
        }
        source = av.open(
            self.file,
            "r",
            format=self.container,
            options=options,
            metadata_errors="replace",
            buffer_size=_READ_BUFFER_BYTES,
        )
        streams = [one for one in source.streams.video if not one.disposition & Disposition.attached_pic]  # cover art
        best = source.streams.best("video")
        if not streams:
            kinds = ", ".join(sorted({one.type for one in source.streams})) or "none"
            raise VideoError(Status.NO_VIDEO_STREAM, f"No video stream; the streams are: {kinds}.")
        stream = next((one for one in streams if one is best), streams[0])
        context = stream.codec_context
        context.thread_count = 1
        context.thread_type = "NONE"
        pixels, limit = context.width * context.height, self._limits.max_pixels
        if pixels > limit:
            msg = f"{context.width}x{context.height} is {pixels} pixels; decode.max_pixels is {limit}."
            raise VideoError(Status.TOO_LARGE, msg)
        return source, stream

    def _index(self) -> VideoIndex:
        """Read every packet of every stream, decoding none."""
        self._check_duration(self._promised_seconds())
        rows: list[tuple[int, bool, bool, bool]] = []
        kept_bytes = 0
        last_end = 0.0  # over all streams: a container's duration may be its audio's
        for packet in _all_packets(self._input.demux()):
            time = packet.pts if packet.pts is not None else packet.dts
            if time is not None and packet.time_base:
                last_end = max(last_end, float((time + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != self.stream.index:
                continue
            shown = not packet.is_discard
            rows.append((len(rows) if time is None else time, packet.is_keyframe, packet.is_disposable, shown))
            if len(rows) > self._limits.max_packets:
                raise VideoError(Status.TOO_LARGE, f"More than {self._limits.max_packets} frames.")
            kept_bytes += packet.size + _PACKET_BYTES
            if kept_bytes <= _KEEP_PACKETS_BYTES:
                self._kept.append(packet)
        if not any(row[3] for row in rows):
            raise VideoError(Status.DECODE_ERROR, "The video stream holds no frame.")
        if kept_bytes > _KEEP_PACKETS_BYTES:
            self._kept = []
        return self._describe(rows, last_end)

    def _describe(self, rows: list[tuple[int, bool, bool, bool]], last_end: float) -> VideoIndex:
        stream, context = self.stream, self.stream.codec_context
        time_base = stream.time_base or Fraction(1, 90_000)
        pts = np.array([row[0] for row in rows], dtype=np.int64)
        is_shown = np.array([row[3] for row in rows], dtype=np.bool_)
        shown_pts = pts[is_shown]
        span = float((int(shown_pts.max()) - int(shown_pts.min())) * time_base)
        rate = float(stream.average_rate or 0)
        measured = (len(shown_pts) - 1) / span if span > 0 else 0.0
        fps = measured or rate or 1.0
        end = span + 1 / fps
        promised = self._promised_seconds()
        start = float(int(shown_pts.min()) * time_base)
        if not stream.duration:
            promised = max(0.0, promised - start)  # the container's, which counts from zero
        # A file that was cut short ends well before what its header promises, in every stream.
        is_cut = promised - max(last_end - start, end) > max(0.5, 0.05 * promised)
        duration = promised if is_cut else end
        self._check_duration(duration)
        return VideoIndex(
            pts=pts,
            is_keyframe=np.array([row[1] for row in rows], dtype=np.bool_),
            is_disposable=np.array([row[2] for row in rows], dtype=np.bool_),
            is_shown=is_shown,
            time_base=time_base,
            container=self.container,
            codec=context.name,
            width=context.width,
            height=context.height,
            average_fps=fps,
            duration_seconds=duration,
            end_seconds=end,
        )

    def _promised_seconds(self) -> float:
        if self.container == "avi" and self.stream.frames and self.stream.average_rate:
            return float(self.stream.frames / self.stream.average_rate)  # its duration is scaled to the file's size
        if self.stream.duration and self.stream.time_base:
            return max(0.0, float(self.stream.duration * self.stream.time_base))
        return max(0.0, (self._input.duration or 0) / av.time_base)

    def _check_duration(self, seconds: float) -> None:
        if seconds > self._limits.max_duration_seconds:
            limit = self._limits.max_duration_seconds
            msg = f"{seconds:.0f} s long; decode.max_duration_seconds is {limit:g}."
            raise VideoError(Status.TOO_LARGE, msg)


def _all_packets(packets: Iterator["av.Packet[Any]"]) -> Iterator["av.Packet[Any]"]:
    """Packets with content; damage that ends the reading ends the packets."""
    try:
        for packet in packets:
            if packet.size:
                yield packet
    except MemoryError:
        raise
    except (av.error.FFmpegError, ValueError):
        return
