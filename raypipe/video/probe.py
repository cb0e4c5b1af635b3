"""Look at a video without decoding it: its container by magic bytes, its packets, its limits.

Runs in the child process only, but for ``sniff_container``, which is pure.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import av
import av.container
import numpy as np
from av.stream import Disposition
from av.video.stream import VideoStream

from raypipe.status import Status
from raypipe.video.index import VideoIndex, index_stream
from raypipe.video.located import read_located
from raypipe.video.protocol import Limits
from raypipe.video.ranges import RangedFile
from raypipe.video.sample_table import Samples, read_samples

SNIFF_BYTES = 1024
_KEEP_PACKETS_BYTES = 64 * 1024 * 1024
_PACKET_BYTES = 640  # what a packet takes besides its content
_READ_BUFFER_BYTES = 64 * 1024
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


class VideoFile:
    """One untrusted video, given as a nameless buffer.

    Without ``loop_filter`` the codec leaves out its smoothing of block edges: quicker, and other pixels.

    Raises:
        VideoError: with ``forbidden_format``, ``no_video_stream`` or ``too_large``.
        av.error.FFmpegError: FFmpeg cannot read it.
    """

    def __init__(self, file: BinaryIO, *, limits: Limits, loop_filter: bool = True) -> None:
        file.seek(0)
        head = file.read(SNIFF_BYTES)
        if not head:
            raise VideoError(Status.DECODE_ERROR, "The file is empty: 0 bytes.")
        container = sniff_container(head)
        if container is None:
            msg = f"Not a video container; begins with {head[:8]!r}. Choose one of {', '.join(CONTAINERS)}."
            raise VideoError(Status.FORBIDDEN_FORMAT, msg)
        self.file = file
        self.container = container
        self._limits = limits
        self._loop_filter = loop_filter
        self._kept: list[av.Packet[Any]] = []
        self._samples: Samples | None = None
        self._input, self.stream = self._open()
        self._check_duration(self._promised_seconds())
        self.index = self._locate() or self._scan()
        self._check_duration(self.index.duration_seconds)

    def packets(self) -> Iterable["av.Packet[Any]"]:
        """The video's packets in file order, once more; ``stream`` is then the one they belong to."""
        if self._kept:
            kept, self._kept = self._kept, []
            return kept
        self._reopen()
        return _all_packets(self._input.demux(self.stream))

    def read(self, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, "av.Packet[Any]"]]:
        """The packets of ascending ranges ``[start, stop)`` of the index, and their positions there.

        Raises:
            SampleTableError: the index, made of the container's tables, is wrong; ``scan`` makes one that is right.
        """
        if self._samples is not None:
            if isinstance(self.file, RangedFile):
                self.file.expect([self._samples.extent(start, stop) for start, stop in ranges])
            yield from read_located(self._input, self.stream, self._samples, ranges)
            return
        packets = enumerate(self.packets())
        for start, stop in ranges:
            for position, packet in packets:
                if position >= start:
                    yield position, packet
                if position + 1 == stop:
                    break

    def scan(self) -> None:
        """Index the file anew, by reading every packet."""
        self._samples = None
        self._reopen()
        self.index = self._scan()
        self._check_duration(self.index.duration_seconds)

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
        if context is None:
            raise VideoError(Status.DECODE_ERROR, "FFmpeg has no decoder for the codec of its video.")
        context.thread_count = 1
        context.thread_type = "NONE"
        if not self._loop_filter:
            context.options = {"skip_loop_filter": "all"}
        pixels, limit = context.width * context.height, self._limits.max_pixels
        if pixels > limit:
            msg = f"{context.width}x{context.height} is {pixels} pixels; decode.max_pixels is {limit}."
            raise VideoError(Status.TOO_LARGE, msg)
        return source, stream

    def _reopen(self) -> None:
        self._input.close()
        self._input, self.stream = self._open()

    def _locate(self) -> VideoIndex | None:
        """The index of the container's own tables, reading no packet but the first; None where they do not tell all."""
        if self.container != "mov":
            return None
        first = next(iter(_all_packets(self._input.demux(self.stream))), None)
        at = self.file.tell()
        samples = first and read_samples(self.file, self.stream, first, max_samples=self._limits.max_packets)
        whole = samples and samples.within(self.file.seek(0, os.SEEK_END))
        self.file.seek(at)  # where FFmpeg takes it to be
        if not samples or not whole or not whole.is_shown.any():
            self._reopen()
            return None
        self._samples = whole
        return index_stream(
            self.stream,
            self.container,
            pts=whole.pts,
            is_keyframe=whole.is_keyframe,
            is_shown=whole.is_shown,
            promised_seconds=self._promised_seconds(),
            is_cut=lambda *_: len(whole.pts) < len(samples.pts),
        )

    def _scan(self) -> VideoIndex:
        """Read every packet of every stream, decoding none."""
        rows: list[tuple[int, bool, bool]] = []
        kept_bytes = 0
        last_end = 0.0  # over all streams: a container's duration may be its audio's
        for packet in _all_packets(self._input.demux()):
            time = packet.pts if packet.pts is not None else packet.dts
            if time is not None and packet.time_base:
                last_end = max(last_end, float((time + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != self.stream.index:
                continue
            shown = not packet.is_discard
            rows.append((len(rows) if time is None else time, packet.is_keyframe, shown))
            if len(rows) > self._limits.max_packets:
                raise VideoError(Status.TOO_LARGE, f"More than {self._limits.max_packets} frames.")
            kept_bytes += packet.size + _PACKET_BYTES
            if kept_bytes <= _KEEP_PACKETS_BYTES:
                self._kept.append(packet)
        if not any(row[2] for row in rows):
            raise VideoError(Status.DECODE_ERROR, "The video stream holds no frame.")
        if kept_bytes > _KEEP_PACKETS_BYTES:
            self._kept = []
        pts, is_keyframe, is_shown = zip(*rows, strict=True)

        def is_cut(promised: float, start: float, end: float) -> bool:
            """A file that was cut short ends well before what its header promises, in every stream."""
            return promised - max(last_end - start, end) > max(0.5, 0.05 * promised)

        return index_stream(
            self.stream,
            self.container,
            pts=np.array(pts, dtype=np.int64),
            is_keyframe=np.array(is_keyframe, dtype=np.bool_),
            is_shown=np.array(is_shown, dtype=np.bool_),
            promised_seconds=self._promised_seconds(),
            is_cut=is_cut,
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
