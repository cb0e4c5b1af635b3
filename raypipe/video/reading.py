"""Decode ranges of a video's packets, and note which pictures are corrupt. Runs in the child process only."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from raypipe.status import Status
from raypipe.video.damage import DamageReport
from raypipe.video.index import VideoIndex
from raypipe.video.probe import VideoError, VideoFile, encrypted
from raypipe.video.sampling import Indices

_HVCC_LAYERS_BYTE = 21  # ISO/IEC 14496-15: numTemporalLayers


def packets_to_decode(index: VideoIndex, wanted_packets: Indices) -> list[tuple[int, int]]:
    """Ranges ``[start, stop)`` of packets, each starting at a key frame, whose decoding gives all wanted frames.

    A frame shown before the key frame it follows in the file (an open group of pictures) may refer to the group before.
    """
    keys = np.flatnonzero(index.is_keyframe)
    ranges: list[tuple[int, int]] = []
    for packet in np.unique(wanted_packets).tolist():
        at = int(np.searchsorted(keys, packet, side="right")) - 1
        if at >= 0 and index.pts[packet] < index.pts[keys[at]]:
            at -= 1
        start = int(keys[at]) if at >= 0 else 0
        while ranges and start <= ranges[-1][1]:
            start = min(start, ranges.pop()[0])
        ranges.append((start, packet + 1))
    return ranges


def read_frames(
    video: VideoFile,
    ranges: Sequence[tuple[int, int]],
    *,
    keep: Collection[int] | None = None,
    report: DamageReport | None = None,
) -> Iterator[VideoFrame | None]:
    """Decode ranges ``[start, stop)`` of packets: yield the frames of each in display order, then None.

    With ``keep`` frames that no other one refers to are left out unless their packet is in it. With a ``report`` errors
    of the decoder are noted there, and the next packet goes on; without one they are raised.
    """
    starts, stops = {start for start, _ in ranges}, {stop for _, stop in ranges}
    may_skip = keep is not None and skips_exactly(video.decoder)
    first_pts: int | None = None
    skips = False
    for position, packet in video.read(ranges):
        if position in starts:
            skips = False
            video.decoder.skip_frame = "DEFAULT"
            video.decoder.flush_buffers()
            if video.palette is not None and video.row_format > 1:
                with suppress(av.error.FFmpegError):
                    video.decoder.decode(video.palette)
            first_pts = int(video.index.pts[position])
        if may_skip and keep is not None and skips != (position not in keep):  # setting it is slow
            skips = not skips
            video.decoder.skip_frame = "NONREF" if skips else "DEFAULT"
        yield from _decode(video, packet, position, report, first_pts=first_pts)
        if position + 1 in stops:
            yield from _decode(video, None, position, report, first_pts=first_pts)
            yield None


def _decode(
    video: VideoFile,
    packet: "av.Packet[Any] | None",
    position: int,
    report: DamageReport | None,
    *,
    first_pts: int | None,
) -> list[VideoFrame]:
    """Decode one packet, and note what is corrupt.

    Frames shown before ``first_pts``, that of the first one decoded, refer to what was not decoded: nobody wants them.
    """
    context = video.decoder
    if report is None:
        return context.decode(packet)
    if packet is not None and video.may_be_encrypted and packet.has_sidedata("encryption_info"):
        raise VideoError(Status.ENCRYPTED, encrypted("a packet has encryption information"))
    error, frames = "", []
    try:
        frames = context.decode(packet)
    except MemoryError:
        raise
    except av.error.EOFError:
        pass
    except av.error.FFmpegError as failure:
        error = describe(failure)
    if error or video.log.lines:
        _note_packet(video, packet, position, report, error=error, first_pts=first_pts)
    for frame in frames:
        if frame.is_corrupt and frame.pts is not None and (first_pts is None or frame.pts >= first_pts):
            report.note_frame(_position_of(video.index, frame.pts, otherwise=position), decoder=context.name)
    return frames


def _note_packet(
    video: VideoFile,
    packet: "av.Packet[Any] | None",
    position: int,
    report: DamageReport,
    *,
    error: str,
    first_pts: int | None,
) -> None:
    """Note what the decoder says about a packet, unless it is shown before ``first_pts``."""
    log = video.log.take()
    if first_pts is not None and int(video.index.pts[position]) < first_pts:
        return
    if error:
        report.note(position, error)
    if packet is not None:
        report.note_packet(position, log=log, decoder=video.decoder.name)


def _position_of(index: VideoIndex, pts: int, *, otherwise: int) -> int:
    found = np.flatnonzero(index.pts == pts)
    return int(found[0]) if len(found) else otherwise


def all_frames(video: VideoFile, report: DamageReport | None = None) -> Iterator[VideoFrame]:
    """Every frame of a plain reading from the start; what is damaged is left out, and noted in the report."""
    report = DamageReport() if report is None else report
    position = 0
    for position, packet in enumerate(video.packets()):
        yield from _decode(video, packet, position, report, first_pts=None)
    yield from _decode(video, None, position, report, first_pts=None)


def skips_exactly(context: VideoCodecContext) -> bool:
    """Whether ``NONREF`` leaves out only frames that no other frame refers to.

    The decoder knows; what a container says of its packets is not so: one of AV1 can hold a hidden frame besides.

    In HEVC it also leaves out those that only higher temporal layers refer to; 'hvcC' says how many layers there are.
    In MPEG-4, whose packets may hold two frames, it can leave out the wrong one.
    """
    if context.name == "hevc":
        about = bytes(context.extradata or b"")
        return len(about) > _HVCC_LAYERS_BYTE and about[0] == 1 and (about[_HVCC_LAYERS_BYTE] >> 3) & 7 == 1
    return bool(context.name == "h264")


def describe(error: BaseException) -> str:
    """One line for a row's ``error``: FFmpeg's own words where there are any."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:300]
