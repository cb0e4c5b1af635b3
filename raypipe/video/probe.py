"""Index the packets of a video and check its limits, without decoding its frames. Runs in the child process only."""

from dataclasses import replace
from fractions import Fraction
from typing import BinaryIO, cast

import av
import numpy as np

from raypipe.status import Status
from raypipe.video.container import (
    CONTAINERS,
    RAW_STREAMS,
    SNIFF_BYTES,
    ErrorLog,
    VideoError,
    declared_bytes,
    encrypted,
    size_of,
    sniff_container,
)
from raypipe.video.decode_request import DecodeRequest
from raypipe.video.encryption import encryption_of, scrambling_of
from raypipe.video.mp4 import BoxDamage, SkippingFile, find_damage, read_samples
from raypipe.video.packet_index import PacketIndex, gaps_of_constant_rate, index_stream, with_damage, with_lost_spans
from raypipe.video.packet_reader import PacketReader, announces_packed
from raypipe.video.packets import REORDERING, PacketScan, believable_keyframes
from raypipe.video.timeline import NO_TIME, DisplayTimes, Flags, Stamps, StreamKind, assign_times, make_timeline

_AVI_FRAME_BYTES = 8  # the minimum size of a frame, even without content
_MIN_FPS, _MAX_FPS = 0.5, 1000.0  # an average rate outside this range comes from wrong time stamps
_USUAL_FPS = 25.0


class VideoFile:
    """An untrusted video in an open file: a ``reader`` for its packets, and their ``index``.

    Raises:
        VideoError: the video is refused. Its status is ``forbidden_format``, ``no_video_stream``, ``encrypted``,
            ``too_large`` or ``decode_error``.
        av.error.FFmpegError: FFmpeg cannot read the file.
    """

    def __init__(self, file: BinaryIO, request: DecodeRequest, *, log: ErrorLog | None = None) -> None:
        container = _recognise(file, row_format=request.row_format)
        self._limits = request.limits
        self._damage = BoxDamage()
        self.reader = PacketReader(file, container, request, log=log)
        if request.row_format == 1:
            self._check_duration(self._promised_seconds())
        elif container == "mpegts" and (reason := scrambling_of(file, self.reader.stream.id)):
            raise encrypted(reason)
        if (index := self._locate()) is None:
            self._skip_damage()
            index = self._scan()
        self.index = index
        self._check_duration(self.index.duration_seconds)

    def scan(self) -> None:
        """Build the index again by reading every packet. Call this if the container's tables turn out to be wrong."""
        self.reader.samples = None
        self.reader.reopen()
        self.index = self._scan()
        self._check_duration(self.index.duration_seconds)

    def close(self) -> None:
        self.reader.close()

    def _locate(self) -> PacketIndex | None:
        """Build the index from the container's tables and the first packet.

        Return None if the container has no such tables, or if they are incomplete.
        """
        reader = self.reader
        if reader.container != "mov":
            return None
        first = reader.first_packet()
        table = None
        if first is not None and not (reader.row_format > 1 and announces_packed(reader.stream, first)):
            at = reader.file.tell()
            table = read_samples(reader.file, reader.stream, first, max_samples=self._limits.max_packets)
            reader.file.seek(at)  # where FFmpeg expects it
        inside = table.within(size_of(reader.file)) if table is not None else np.zeros(0, dtype=np.bool_)
        if first is None or table is None or not table.is_shown[inside].any():
            reader.reopen()
            return None
        reader.note_palette(first)
        if len(reader.source.streams.video) == 1:
            reader.may_be_encrypted = False  # without fragments, only the tables can declare encryption
        reader.samples = table.only(inside)
        no_times = np.full(len(table.pts), NO_TIME)
        stamps = Stamps(table.pts, no_times, table.is_keyframe, table.is_shown)
        is_whole = bool(inside.all())
        times = self._make_timeline(stamps, frame_ticks=0.0, may_decode=is_whole)
        there = replace(times, pts=times.pts[inside], is_shown=times.is_shown[inside])
        index = self._index(there, believable_keyframes(table.is_keyframe, self._codec)[inside])
        if is_whole:
            return index
        if not times.is_repaired:
            return replace(index, duration_seconds=self._promised_from_first_frame(index))
        missing = times.pts[times.is_shown].max() - there.pts[there.is_shown].max()  # the tables cover the cut-off part
        return replace(index, duration_seconds=index.end_seconds + float(missing * self._time_base))

    def _scan(self) -> PacketIndex:
        """Build the index by reading every packet of every stream."""
        reader = self.reader
        scan = PacketScan(reader.stream, self._codec)
        promised = self._promised_seconds()
        self._read_all(scan, promised)
        reader.kept = scan.kept
        times = self._assign_times(scan) if self._stores_slots(scan) else None
        stamps = scan.stamps
        times = times or self._make_timeline(stamps, frame_ticks=scan.duration_ticks)
        index = self._index(times, stamps.is_keyframe)
        last = scan.last_end_seconds
        if index.timeline_repaired:
            duration = self._repaired_duration(index, stamps, promised, last_end_seconds=last)
        else:  # every stream of a truncated file ends well before the duration in its header
            promised = self._promised_from_first_frame(index)
            there = max(last - _start_seconds(index), index.end_seconds)
            duration = promised if _is_much(promised - there, promised) else index.end_seconds
        index = replace(index, duration_seconds=duration)
        if reader.row_format > 1:
            index = replace(index, corrupt=tuple(scan.corrupt))
            index = with_lost_spans(index, [*scan.errors, *gaps_of_constant_rate(index)])
        if self._damage.ends_inside_box and index.end_seconds == index.duration_seconds:
            index = replace(index, ends_inside_fragment=True)
        return with_damage(index, scan.places, self._damage.ranges, size_bytes=size_of(reader.file))

    def _read_all(self, scan: PacketScan, promised: float) -> None:
        """Add every packet to the scan, and check the limits meanwhile."""
        reader, longest = self.reader, self._limits.max_duration_seconds
        for packet in reader.demux(all_streams=True):
            errors = reader.log.take() if reader.log.lines else []
            scan.add(packet, is_after_error=any(reader.container in line.source for line in errors))
            if len(scan) == 1:
                reader.note_palette(packet)
            if len(scan) > self._limits.max_packets:
                raise VideoError(Status.TOO_LARGE, f"More than {self._limits.max_packets} frames.")
            if promised > longest and scan.covered_ticks * self._time_base > longest:
                self._check_duration(promised)
        if not scan.is_shown.any():
            raise VideoError(Status.DECODE_ERROR, "The video stream holds no frame.")

    def _index(self, times: DisplayTimes, is_keyframe: Flags) -> PacketIndex:
        reader = self.reader
        reader.use_times(times)
        return index_stream(
            reader.stream, reader.container, times, is_keyframe=is_keyframe, row_format=reader.row_format
        )

    def _make_timeline(self, stamps: Stamps, *, frame_ticks: float, may_decode: bool = True) -> DisplayTimes:
        """Return the display times of the packets, and repair the time stamps if needed.

        Row format 1 (older outputs) trusts all stamps. The stamps of AVI are frame numbers, which cannot be wrong.
        """
        reader, stream = self.reader, self.reader.stream
        if reader.row_format == 1 or reader.container == "avi":
            return DisplayTimes(stamps.as_stored, stamps.is_shown, is_repaired=False)
        is_raw = reader.container in RAW_STREAMS
        # FFmpeg says that raw streams have 25 fps; their codec knows the rate that they declare.
        average = float((is_raw and stream.codec_context.framerate) or stream.average_rate or 0)
        if _MIN_FPS <= average <= _MAX_FPS:
            frame_ticks = 1 / (average * self._time_base)
        kind = StreamKind(
            tick_seconds=self._time_base,
            frame_ticks=frame_ticks or 1 / (_USUAL_FPS * self._time_base),
            reorders=self._codec in REORDERING,
            restarts=reader.container in {"mpegts", "mpeg"},
            stores_dts=reader.container in {"mov", "mpegts", "mpeg", "flv"},
        )
        times = make_timeline(
            stamps,
            kind,
            decode_order=lambda: reader.decode_order(len(stamps.pts), may_sample=True) if may_decode else None,
        )
        return replace(times, is_repaired=False, is_assigned=True) if is_raw else times

    def _stores_slots(self, scan: PacketScan) -> bool:
        """Return whether the container stores the times of packets, but not which frame is shown at which time.

        This is AVI, packed MPEG-4, and MXF unless its index says in which order frames are shown.
        """
        reader, stamps = self.reader, scan.stamps
        is_mxf_without_order = reader.container == "mxf" and bool((stamps.pts == stamps.dts).all())
        return reader.container == "avi" or reader.is_packed or is_mxf_without_order

    def _assign_times(self, scan: PacketScan) -> DisplayTimes | None:
        """Return display times for a container that ``_stores_slots``. Return None to use the stored times."""
        reader = self.reader
        if reader.row_format == 1:
            return None
        is_avi = reader.container == "avi"
        has_losses = is_avi and scan.find_lost_frames(reader.file)
        order = scan.find_display_order(lambda: reader.decode_order(len(scan), may_sample=False))
        if order is None and has_losses:
            order = np.arange(len(scan), dtype=np.int64)
        return None if order is None else assign_times(scan.stamps, order, prefer_dts=is_avi)

    def _skip_damage(self) -> None:
        """Hide damaged boxes of a fragmented MP4 from FFmpeg, which would stop at the first one."""
        reader = self.reader
        if reader.container != "mov" or reader.row_format == 1:
            return
        at = reader.file.tell()
        self._damage = find_damage(reader.file)
        reader.file.seek(at)  # where FFmpeg expects it
        if self._damage.ranges:
            reader.file = cast("BinaryIO", SkippingFile(reader.file, self._damage.ranges))
            reader.reopen()

    @property
    def _codec(self) -> str:
        """Return the codec's name, or "" for row format 1, which has no codec-specific rules."""
        return self.reader.stream.codec_context.codec.canonical_name if self.reader.row_format > 1 else ""

    @property
    def _time_base(self) -> float:
        return float(self.reader.stream.time_base or Fraction(1, 90_000))

    def _promised_seconds(self) -> float:
        """Return the duration that the container's header declares, or 0 if it declares none.

        It counts from the container's time zero, at which the first frame may not be shown yet.
        """
        reader, stream = self.reader, self.reader.stream
        if reader.container == "avi" and stream.frames and stream.average_rate:
            if reader.row_format > 1 and stream.frames > size_of(reader.file) // _AVI_FRAME_BYTES:
                return 0.0  # a placeholder: the file is too small for this many frames
            return float(stream.frames / stream.average_rate)  # FFmpeg scales its duration to the file's size
        if stream.duration and stream.time_base:
            return max(0.0, float(stream.duration * stream.time_base))
        return max(0.0, (reader.source.duration or 0) / av.time_base)

    def _promised_from_first_frame(self, index: PacketIndex) -> float:
        promised = self._promised_seconds()
        return promised if self.reader.stream.duration else max(0.0, promised - _start_seconds(index))

    def _repaired_duration(
        self, index: PacketIndex, stamps: Stamps, promised: float, *, last_end_seconds: float
    ) -> float:
        """Return the duration of a video whose timeline was repaired.

        The duration that the container declares does not fit a repaired timeline. If the end of the file is cut off,
        the length of the missing part is estimated from the original stamps, or from the file's size.
        """
        reader, end = self.reader, index.end_seconds
        start = float(stamps.as_stored[stamps.is_shown].min() * self._time_base)
        missing = promised - (0 if reader.stream.duration else max(0.0, start))
        missing -= max(last_end_seconds - start, end)
        if not _is_much(missing, promised):
            size = size_of(reader.file)
            declared = declared_bytes(reader.file) if reader.container == "matroska" else size
            missing = end * (declared / size - 1)
        return end + missing

    def _check_duration(self, seconds: float) -> None:
        limit = self._limits.max_duration_seconds
        if seconds > limit:
            msg = f"{seconds:.0f} s long; decode.max_duration_seconds is {limit:g}."
            raise VideoError(Status.TOO_LARGE, msg)


def _recognise(file: BinaryIO, *, row_format: int) -> str:
    """Return the container of a file.

    Raises:
        VideoError: the file is empty, not in a supported container, or encrypted.
    """
    file.seek(0)
    head = file.read(SNIFF_BYTES)
    if not head:
        raise VideoError(Status.DECODE_ERROR, "The file is empty: 0 bytes.")
    container = sniff_container(head, row_format=row_format)
    if container is None:
        msg = f"Not a video container; begins with {head[:8]!r}. Choose one of {', '.join(CONTAINERS)}."
        raise VideoError(Status.FORBIDDEN_FORMAT, msg)
    if row_format > 1 and (reason := encryption_of(file, container)):
        raise encrypted(reason)
    return container


def _start_seconds(index: PacketIndex) -> float:
    """Return the time of the first frame that is shown, in seconds from the container's time zero."""
    return float(index.first_pts * index.time_base)


def _is_much(missing: float, promised: float) -> bool:
    return missing > max(0.5, 0.05 * promised)
