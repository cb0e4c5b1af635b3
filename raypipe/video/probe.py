"""Look at a video without decoding it: its packets, their times, its limits. Runs in the child process only."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, BinaryIO, cast

import av
import av.container
import numpy as np
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from raypipe.status import Status
from raypipe.video import avi_index
from raypipe.video.alpha import decoder_context, has_alpha_layer
from raypipe.video.container import CONTAINERS, SNIFF_BYTES, sniff_container
from raypipe.video.encryption import encryption_of, scrambling_of
from raypipe.video.ffmpeg_log import ErrorLog
from raypipe.video.fragments import SkippingFile, find_damage, with_losses
from raypipe.video.frame_order import (
    MAX_PACKETS,
    MAX_PIXELS,
    REORDERING,
    SAMPLE_PACKETS,
    decode_order,
    find_display_order,
)
from raypipe.video.index import VideoIndex, gaps_of_constant_rate, index_stream, with_lost_spans
from raypipe.video.located import read_located
from raypipe.video.matroska import declared_bytes
from raypipe.video.packed import Unpacker, announces_packed
from raypipe.video.packet_scan import PacketScan
from raypipe.video.picture_types import believable_keyframes
from raypipe.video.protocol import Limits, Ranges
from raypipe.video.ranges import RangedFile
from raypipe.video.sample_table import Samples, read_samples
from raypipe.video.timeline import (
    NO_TIME,
    DecodedOrder,
    Flags,
    Stamps,
    StreamKind,
    Timeline,
    assign_times,
    make_timeline,
)

_READ_BUFFER_BYTES = 64 * 1024
_AVI_FRAME_BYTES = 8  # at least, even of a frame without content
_MIN_FPS, _MAX_FPS = 0.5, 1000.0  # an average rate beyond these is made of wrong time stamps
_USUAL_FPS = 25.0
_STORE_CHECKSUMS = frozenset({"hevc", "ffv1", "png", "apng"})  # of pictures, where the encoder wants it


class VideoError(Exception):
    """This video ends as a row with ``status``; the message is its ``error``."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


def encrypted(reason: str) -> str:
    """Return the error of a video that is encrypted."""
    return f"The video is encrypted: {reason}. Decrypt it first."


class VideoFile:
    """One untrusted video, given as a nameless buffer.

    ``row_format`` says whose rules apply: 2 repairs time stamps that contradict each other.
    ``log`` collects FFmpeg's errors where the caller wants them.
    Without ``loop_filter`` the codec leaves out its smoothing of block edges: quicker, and other pixels.

    Raises:
        VideoError: with ``forbidden_format``, ``no_video_stream``, ``encrypted`` or ``too_large``.
        av.error.FFmpegError: FFmpeg cannot read it.
    """

    def __init__(
        self,
        file: BinaryIO,
        *,
        limits: Limits,
        loop_filter: bool = True,
        row_format: int = 2,
        log: ErrorLog | None = None,
    ) -> None:
        file.seek(0)
        head = file.read(SNIFF_BYTES)
        if not head:
            raise VideoError(Status.DECODE_ERROR, "The file is empty: 0 bytes.")
        container = sniff_container(head, row_format=row_format)
        if container is None:
            msg = f"Not a video container; begins with {head[:8]!r}. Choose one of {', '.join(CONTAINERS)}."
            raise VideoError(Status.FORBIDDEN_FORMAT, msg)
        self.file = file
        self.container = container
        if row_format > 1 and (reason := encryption_of(file, container)):
            raise VideoError(Status.ENCRYPTED, encrypted(reason))
        self._limits = limits
        self._loop_filter = loop_filter
        self.row_format = row_format
        self.log = log if log is not None else ErrorLog([])
        self._kept: list[av.Packet[Any]] = []
        self._samples: Samples | None = None
        self._stamps: tuple[list[int], list[int]] | None = None  # what packets get instead of their own
        self._damage: Ranges = ()
        self._decoder: VideoCodecContext | None = None
        self._decodes_corrupt = False
        self.is_packed = False  # packets of MPEG-4 with two pictures each, which are taken apart
        self.palette: av.Packet[Any] | None = None  # the first packet, where it brings the palette of all others
        self.may_be_encrypted = row_format > 1 and container == "mov"
        self._input, self.stream = self._open()
        self.log.take()
        if row_format > 1 and container == "mpegts" and (reason := scrambling_of(file, self.stream.id)):
            raise VideoError(Status.ENCRYPTED, encrypted(reason))
        if row_format == 1:
            self._check_duration(self._promised_seconds())
        index = self._locate()
        if index is None:
            self._skip_damage()
            index = self._scan()
        self.index = index
        self._check_duration(self.index.duration_seconds)

    @property
    def decoder(self) -> VideoCodecContext:
        """The decoder of ``stream``: FFmpeg's usual one, or one that decodes what that one drops."""
        if self._decoder is None:
            is_own = self.row_format == 1 or (self._decodes_corrupt and not has_alpha_layer(self.stream))
            self._decoder = self.stream.codec_context if is_own else decoder_context(self.stream)
        return self._decoder

    def decode_corrupt(self) -> None:
        """Use a decoder that gives pictures of corrupt data too, from the next reading on."""
        self._decodes_corrupt = True

    def packets(self) -> Iterable["av.Packet[Any]"]:
        """The video's packets in file order, once more; ``stream`` is then the one they belong to."""
        if self._kept:
            kept, self._kept = self._kept, []
            return self._restamped(kept)
        self._reopen()
        return self._restamped(self._demux())

    def _demux(self) -> Iterator["av.Packet[Any]"]:
        packets = _all_packets(self._input.demux(self.stream))
        return Unpacker(self.stream).unpack(packets) if self.row_format > 1 else packets

    def _restamped(self, packets: Iterable["av.Packet[Any]"]) -> Iterable["av.Packet[Any]"]:
        return packets if self._stamps is None else itertools.starmap(self._restamp, enumerate(packets))

    def _restamp(self, position: int, packet: "av.Packet[Any]") -> "av.Packet[Any]":
        """Give a packet its time on the repaired timeline, so that its frame has it too."""
        if self._stamps is not None and position < len(self._stamps[0]):
            packet.pts, packet.dts = self._stamps[0][position], self._stamps[1][position]
        return packet

    def read(self, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, "av.Packet[Any]"]]:
        """The packets of ascending ranges ``[start, stop)`` of the index, and their positions there.

        Raises:
            SampleTableError: the index, made of the container's tables, is wrong; ``scan`` makes one that is right.
        """
        if self._samples is not None:
            if isinstance(self.file, RangedFile):
                self.file.expect([self._samples.extent(start, stop) for start, stop in ranges])
            packets = read_located(self._input, self.stream, self._samples, ranges)
            if self._stamps is None:
                yield from packets
            else:
                yield from ((position, self._restamp(position, packet)) for position, packet in packets)
            return
        numbered = enumerate(self.packets())
        for start, stop in ranges:
            for position, packet in numbered:
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
            if source.streams.video:
                msg = f"The only video stream is a cover picture; the streams are: {kinds}."
                raise VideoError(Status.NO_VIDEO_STREAM, msg)
            raise VideoError(Status.NO_VIDEO_STREAM, f"No video stream; the streams are: {kinds}.")
        stream = next((one for one in streams if one is best), streams[0])
        context = stream.codec_context
        if context is None:
            raise VideoError(Status.DECODE_ERROR, "FFmpeg has no decoder for the codec of its video.")
        context.thread_count = 1
        context.thread_type = "NONE"
        if not self._loop_filter:
            context.options = {"skip_loop_filter": "all"}
        elif self.row_format > 1 and context.codec.canonical_name in _STORE_CHECKSUMS:
            context.options = {"err_detect": "crccheck"}
        pixels, limit = context.width * context.height, self._limits.max_pixels
        if pixels > limit:
            msg = f"{context.width}x{context.height} is {pixels} pixels; decode.max_pixels is {limit}."
            raise VideoError(Status.TOO_LARGE, msg)
        return source, stream

    def _reopen(self) -> None:
        self._input.close()
        self._decoder = None
        self._input, self.stream = self._open()
        self.log.take()  # what was logged to find out the codec is of no packet

    def _locate(self) -> VideoIndex | None:
        """The index of the container's own tables, reading no packet but the first; None where they do not tell all."""
        if self.container != "mov":
            return None
        first = next(iter(_all_packets(self._input.demux(self.stream))), None)
        if first and self.row_format > 1 and announces_packed(self.stream, first):
            self._reopen()
            return None
        at = self.file.tell()
        samples = read_samples(self.file, self.stream, first, max_samples=self._limits.max_packets) if first else None
        inside = np.zeros(0, dtype=np.bool_) if samples is None else samples.within(self.file.seek(0, os.SEEK_END))
        self.file.seek(at)  # where FFmpeg takes it to be
        if samples is None or not samples.is_shown[inside].any():
            self._reopen()
            return None
        self._note_palette(first)
        if len(self._input.streams.video) == 1:
            self.may_be_encrypted = False  # in a file without fragments all that says so stands in its tables
        self._samples = samples.only(inside)
        is_whole = bool(inside.all())
        untold = np.full(len(samples.pts), NO_TIME)
        stamps = Stamps(samples.pts, untold, samples.is_keyframe, samples.is_shown)
        timeline = self._make_timeline(stamps, frame_ticks=0.0, may_decode=is_whole)
        is_keyframe = self._believable(samples.is_keyframe)
        if is_whole:
            return self._index(
                timeline, is_keyframe=is_keyframe, is_cut=lambda *_: False, missing_seconds=lambda _: 0.0
            )
        last = timeline.pts[timeline.is_shown].max()  # what was cut off is in the tables
        return self._index(
            replace(timeline, pts=timeline.pts[inside], is_shown=timeline.is_shown[inside]),
            is_keyframe=is_keyframe[inside],
            is_cut=lambda *_: True,
            missing_seconds=lambda _: float((last - timeline.pts[inside & timeline.is_shown].max()) * self._time_base),
        )

    def _scan(self) -> VideoIndex:
        """Read every packet of every stream, decoding none."""
        scan = PacketScan(self.stream, read_types=self.row_format > 1)
        promised = self._promised_seconds()
        self.is_packed = self._read_all(scan, promised)
        self._kept = scan.kept
        timeline = self._assign_times(scan) if self.container == "avi" or self.is_packed else None
        stamps = scan.stamps
        timeline = timeline or self._make_timeline(stamps, frame_ticks=scan.duration_ticks)

        def is_cut(promised: float, start: float, end: float) -> bool:
            """A file that was cut short ends well before what its header promises, in every stream."""
            return promised - max(scan.last_end_seconds - start, end) > max(0.5, 0.05 * promised)

        def missing_seconds(end: float) -> float:
            """The same by the stamps as they were, or by the file's length."""
            start = float(stamps.as_stored[stamps.is_shown].min() * self._time_base)
            missing = promised - (0 if self.stream.duration else max(0.0, start))
            missing -= max(scan.last_end_seconds - start, end)
            if missing > max(0.5, 0.05 * promised):
                return missing
            size = self.file.seek(0, os.SEEK_END)
            declared = declared_bytes(self.file) if self.container == "matroska" else size
            return end * (declared / size - 1)

        index = self._index(timeline, is_keyframe=stamps.is_keyframe, is_cut=is_cut, missing_seconds=missing_seconds)
        if self.row_format > 1:
            index = replace(index, corrupt=tuple(scan.corrupt))
            index = with_lost_spans(index, [*scan.errors, *gaps_of_constant_rate(index)])
        return with_losses(index, scan.places, self._damage, size_bytes=self.file.seek(0, os.SEEK_END))

    def _read_all(self, scan: PacketScan, promised: float) -> bool:
        """Note every packet within the limits; return whether they were packed."""
        longest = self._limits.max_duration_seconds
        unpacker = Unpacker(self.stream)
        packets = _all_packets(self._input.demux())
        for packet in unpacker.unpack(packets) if self.row_format > 1 else packets:
            errors = self.log.take() if self.log.lines else []
            scan.add(packet, is_after_error=any(self.container in line.source for line in errors))
            if len(scan) == 1:
                self._note_palette(packet)
            if len(scan) > self._limits.max_packets:
                raise VideoError(Status.TOO_LARGE, f"More than {self._limits.max_packets} frames.")
            if promised > longest and scan.covered_ticks * self._time_base > longest:
                self._check_duration(promised)
        if not scan.is_shown.any():
            raise VideoError(Status.DECODE_ERROR, "The video stream holds no frame.")
        return unpacker.is_packed

    def _index(
        self,
        timeline: Timeline,
        *,
        is_keyframe: Flags,
        is_cut: Callable[[float, float, float], bool],
        missing_seconds: Callable[[float], float],
    ) -> VideoIndex:
        """Remember what to give the packets where their stamps were repaired or assigned, and index them."""
        self._stamps = None
        if timeline.is_repaired or timeline.is_assigned:
            shown = np.where(timeline.is_shown, timeline.pts, np.iinfo(np.int64).max)
            dts = np.minimum.accumulate(np.append(shown, timeline.pts.max())[::-1])[::-1][:-1]
            self._stamps = timeline.pts.tolist(), dts.tolist()
        return index_stream(
            self.stream,
            self.container,
            pts=timeline.pts,
            is_keyframe=is_keyframe,
            is_shown=timeline.is_shown,
            promised_seconds=self._promised_seconds(),
            is_cut=is_cut,
            row_format=self.row_format,
            missing_seconds=missing_seconds if timeline.is_repaired else None,
        )

    def _make_timeline(self, stamps: Stamps, *, frame_ticks: float, may_decode: bool = True) -> Timeline:
        """Repair the stamps of row format 2; those of AVI count frames in file order, and cannot be wrong."""
        if self.row_format == 1 or self.container == "avi":
            return Timeline(stamps.as_stored, stamps.is_shown, is_repaired=False)
        average = float(self.stream.average_rate or 0)
        if _MIN_FPS <= average <= _MAX_FPS:
            frame_ticks = 1 / (average * self._time_base)
        kind = StreamKind(
            tick_seconds=self._time_base,
            frame_ticks=frame_ticks or 1 / (_USUAL_FPS * self._time_base),
            reorders=self.stream.codec_context.codec.canonical_name in REORDERING,
            restarts=self.container in {"mpegts", "mpeg"},
            stores_dts=self.container in {"mov", "mpegts", "mpeg", "flv"},
        )
        return make_timeline(stamps, kind, decode_order=lambda: self._decode_order(stamps) if may_decode else None)

    def _assign_times(self, scan: PacketScan) -> Timeline | None:
        """Return the times of frames in display order, where the container stores only those of packets."""
        if self.row_format == 1:
            return None
        is_avi = self.container == "avi"
        lost = avi_index.find_lost_frames(self.file, self.stream.index, scan.places) if is_avi else None
        if lost:
            scan.renumber(lost.numbers, after_losses=lost.after_losses)
        context = self.stream.codec_context
        order = find_display_order(
            context.codec.canonical_name,
            scan.types,
            has_b_frames=bool(context.has_b_frames),
            decode_order=lambda: self._decode_order(scan.stamps, may_sample=False),
        )
        if order is None and lost:
            order = np.arange(len(scan), dtype=np.int64)
        if order is None:
            return None
        return assign_times(scan.stamps, order, prefer_dts=is_avi)

    def _decode_order(self, stamps: Stamps, *, may_sample: bool = True) -> DecodedOrder | None:
        """Let the decoder tell the order of frames, of all or, where that takes too long, of the first."""
        count = len(stamps.pts)
        pixels = max(1, self.stream.codec_context.width * self.stream.codec_context.height)
        if count > min(MAX_PACKETS, MAX_PIXELS // pixels):
            if not may_sample:
                return None
            count = min(count, SAMPLE_PACKETS, MAX_PIXELS // pixels)
        if not self._kept:
            self._reopen()
        packets = self._kept or self._demux()
        order = decode_order(itertools.islice(packets, count), self.decoder)
        self.log.take()
        return order

    def _note_palette(self, packet: "av.Packet[Any] | None") -> None:
        if packet is not None and packet.stream_index == self.stream.index and packet.has_sidedata("palette"):
            self.palette = packet

    def _skip_damage(self) -> None:
        """Hide damaged boxes of a fragmented MP4 from FFmpeg, which would end at the first."""
        if self.container != "mov" or self.row_format == 1:
            return
        at = self.file.tell()
        self._damage = find_damage(self.file)
        self.file.seek(at)  # where FFmpeg takes it to be
        if self._damage:
            self.file = cast("BinaryIO", SkippingFile(self.file, self._damage))
            self._reopen()

    @property
    def _time_base(self) -> float:
        return float(self.stream.time_base or Fraction(1, 90_000))

    def _believable(self, is_keyframe: Flags) -> Flags:
        if self.row_format == 1:
            return is_keyframe
        return believable_keyframes(is_keyframe, self.stream.codec_context.codec.canonical_name)

    def _is_placeholder(self, num_frames: int) -> bool:
        """Return whether the number of frames in a header of AVI is one that the file cannot hold."""
        at = self.file.tell()
        size = self.file.seek(0, os.SEEK_END)
        self.file.seek(at)  # where FFmpeg takes it to be
        return num_frames > size // _AVI_FRAME_BYTES

    def _promised_seconds(self) -> float:
        if self.container == "avi" and self.stream.frames and self.stream.average_rate:
            if self.row_format > 1 and self._is_placeholder(self.stream.frames):
                return 0.0
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
