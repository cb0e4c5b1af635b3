"""Decode ranges of a video's packets, and find out which pictures are corrupt. Runs in the child process only.

Corruption spreads to the frames that refer to a corrupt frame. Decoders do not report those frames. So all frames that
follow a corrupt frame in decoding order, up to the next key frame, are assumed to refer to it.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum

import av
import numpy as np
import numpy.typing as npt
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from raypipe.video.container import Line, Packet, describe, encrypted
from raypipe.video.packet_index import PacketIndex
from raypipe.video.probe import VideoFile
from raypipe.video.timeline import Indices, Seconds

# This decoder flags corrupt frames and the frames that refer to them. It also logs errors about intact frames, such as
# the first ones after a seek. Only a flag and an error together mean that a frame's own data is corrupt.
_FLAGS_ALL = "h264"
_HAS_ENCRYPTION_INFO = "a packet has encryption information"
_HVCC_LAYERS_BYTE = 21  # ISO/IEC 14496-15: numTemporalLayers


class Damage(IntEnum):
    """How damaged a picture is, from best to worst."""

    NONE = 0
    REFERRED = 1  # it may refer to a corrupt picture
    CORRUPT = 2  # its own data is corrupt
    MISSING = 3  # the decoder returns no picture


Levels = npt.NDArray[np.int8]


@dataclass
class DamageReport:
    """The damage found by decoding some packets of a video. Positions are packet positions in decoding order."""

    corrupt: set[int] = field(default_factory=set)
    referring: set[int] = field(default_factory=set)
    problem: str = ""  # the first error, as FFmpeg words it
    is_noisy: bool = False  # whether the decoder logged any error
    _logged: dict[int, str] = field(default_factory=dict)

    def note_packet(self, position: int, *, log: list[Line], decoder: str, error: str = "") -> None:
        """Record what went wrong when a packet was decoded.

        ``error`` is the exception's message if the packet could not be decoded. ``log`` holds the lines that FFmpeg
        logged meanwhile. ``decoder`` is FFmpeg's name of the decoder: only its own lines show that the packet is
        corrupt.
        """
        if error:
            self.note(position, error)
        self.is_noisy |= bool(log)
        if own := [line.message for line in log if line.source == decoder]:
            if decoder == _FLAGS_ALL:
                self._logged[position] = own[0]
            else:
                self.note(position, own[0])

    def note_frame(self, position: int, *, decoder: str) -> None:
        """Record that the decoder flagged the picture of a packet as corrupt."""
        if decoder == _FLAGS_ALL and position not in self._logged:
            self.referring.add(position)
            self.problem = self.problem or "a frame refers to a corrupt frame"
        else:
            self.note(position, self._logged.get(position, "the decoder conceals errors"))

    def note(self, position: int, problem: str) -> None:
        """Record that the picture of a packet is corrupt."""
        self.corrupt.add(position)
        self.problem = self.problem or problem

    def merge(self, other: "DamageReport") -> None:
        self.corrupt |= other.corrupt
        self.referring |= other.referring
        self.is_noisy |= other.is_noisy
        self.problem = self.problem or other.problem

    def levels(self, index: PacketIndex) -> Levels:
        """Return the damage level [P] of each packet's picture, as far as it is known.

        It is known from the decoded packets, and from the losses and corrupt packets that the container reports.
        """
        levels = np.zeros(len(index.pts), dtype=np.int8)
        corrupt = self.corrupt | set(index.corrupt)
        # A parser ends a frame when it sees the next one, so the container's corrupt flag may belong to the next frame.
        late = {position + 1 for position in index.corrupt if position + 1 < len(levels)}
        found = corrupt | self.referring | late
        if not found and not index.losses:
            return levels
        keys = np.flatnonzero(index.is_keyframe)
        ends = np.append(keys, len(levels))
        for position in sorted(found | set(index.losses)):
            group = int(np.searchsorted(keys, position, side="right"))  # the group ends at ends[group]
            end = int(ends[group])
            if position not in found and index.is_keyframe[position]:  # a key frame does not refer to lost frames
                group, end = group - 1, position
            elif levels[position] < Damage.REFERRED or index.is_keyframe[position]:
                levels[position:end] = Damage.REFERRED
            else:
                continue
            if end < len(levels):
                following = slice(end + 1, int(ends[group + 1]))
                levels[following][index.pts[following] < index.pts[end]] = Damage.REFERRED
        levels[sorted(corrupt)] = Damage.CORRUPT
        return levels


def packets_to_decode(index: PacketIndex, wanted_packets: Indices) -> list[tuple[int, int]]:
    """Return the ranges ``[start, stop)`` of packets to decode in order to get all wanted frames.

    Each range begins at a key frame. In an open group of pictures, a frame follows a key frame in the file but is shown
    before it. Such a frame may refer to the previous group, which is then included.
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
    """Decode ranges ``[start, stop)`` of packets. Yield the frames of each range in display order, then None.

    If ``keep`` is given, frames that no other frame refers to are skipped unless their packet is in ``keep``. If
    ``report`` is given, decoder errors are recorded in it and decoding continues. Otherwise errors are raised.
    """
    reader = video.reader
    starts, stops = {start for start, _ in ranges}, {stop for _, stop in ranges}
    may_skip = keep is not None and skips_exactly(reader.decoder)
    first_pts: int | None = None
    skips = False
    for position, packet in reader.read(ranges):
        if position in starts:
            skips = False
            reader.decoder.skip_frame = "DEFAULT"
            reader.decoder.flush_buffers()
            if reader.palette is not None and reader.row_format > 1:
                with suppress(av.error.FFmpegError):
                    reader.decoder.decode(reader.palette)
            first_pts = int(video.index.pts[position])
        if may_skip and keep is not None and skips != (position not in keep):  # setting skip_frame is slow
            skips = not skips
            reader.decoder.skip_frame = "NONREF" if skips else "DEFAULT"
        yield from _decode(video, packet, position, report, first_pts=first_pts)
        if position + 1 in stops:
            yield from _decode(video, None, position, report, first_pts=first_pts)
            yield None


def all_frames(video: VideoFile, report: DamageReport | None = None) -> Iterator[VideoFrame]:
    """Yield every frame in one pass from the start. Packets that fail are skipped and recorded in the report."""
    report = DamageReport() if report is None else report
    position = 0
    for position, packet in enumerate(video.reader.packets()):
        yield from _decode(video, packet, position, report, first_pts=None)
    yield from _decode(video, None, position, report, first_pts=None)


def _decode(
    video: VideoFile, packet: "Packet | None", position: int, report: DamageReport | None, *, first_pts: int | None
) -> list[VideoFrame]:
    """Decode one packet, or flush the decoder if ``packet`` is None. Return the frames, and record corrupt ones.

    ``first_pts`` is the time of the first decoded packet. Frames shown before it may refer to frames that were not
    decoded. Such frames are not wanted, so their damage is not recorded.
    """
    reader = video.reader
    if report is None:
        return reader.decoder.decode(packet)
    if packet is not None and reader.may_be_encrypted and packet.has_sidedata("encryption_info"):
        raise encrypted(_HAS_ENCRYPTION_INFO)
    error, frames = "", []
    try:
        frames = reader.decoder.decode(packet)
    except MemoryError:
        raise
    except av.error.EOFError:
        pass
    except av.error.FFmpegError as failure:
        error = describe(failure)
    pts = video.index.pts
    log = reader.log.take() if error or reader.log.lines else []
    if (error or log) and (first_pts is None or int(pts[position]) >= first_pts):
        report.note_packet(position, error=error, log=log if packet is not None else [], decoder=reader.decoder.name)
    for frame in frames:
        if frame.is_corrupt and frame.pts is not None and (first_pts is None or frame.pts >= first_pts):
            found = np.flatnonzero(pts == frame.pts)
            report.note_frame(int(found[0]) if len(found) else position, decoder=reader.decoder.name)
    return frames


def skips_exactly(decoder: VideoCodecContext) -> bool:
    """Return whether the decoder's skip mode ``NONREF`` skips only frames to which no other frame refers.

    This depends on the decoder. The packet flags of a container are unreliable, because an AV1 packet can also hold a
    hidden frame.

    In HEVC, ``NONREF`` also skips frames to which only higher temporal layers refer, so the result is True only if
    'hvcC' declares a single layer. In MPEG-4, a packet may hold two frames, and ``NONREF`` can skip the wrong one.
    """
    if decoder.name == "hevc":
        about = bytes(decoder.extradata or b"")
        return len(about) > _HVCC_LAYERS_BYTE and about[0] == 1 and (about[_HVCC_LAYERS_BYTE] >> 3) & 7 == 1
    return bool(decoder.name == "h264")


def choose_replacements(
    times: Seconds, levels: Levels, asked: dict[int, float], *, used: set[int], half_seconds: float
) -> dict[int, int]:
    """Choose a replacement picture for each slot, within ``half_seconds`` of the slot's time.

    The least damaged picture is chosen and, among equally damaged ones, the nearest. ``times`` and ``levels`` [P] hold
    the time and the damage level of each packet's picture. ``asked`` maps each slot to its time. Pictures at the
    positions ``used`` are not chosen. Return a dict from slot to packet position. Slots without a candidate are
    omitted.
    """
    order = np.argsort(times, kind="stable")
    ascending = times[order]
    chosen: dict[int, int] = {}
    taken = set(used)
    for slot, seconds in asked.items():
        start, stop = np.searchsorted(ascending, (seconds - half_seconds, seconds + half_seconds))
        near = [at for at in order[start:stop].tolist() if levels[at] < Damage.MISSING and at not in taken]
        if near:
            chosen[slot] = min(near, key=lambda at: (levels[at], abs(times[at] - seconds)))
            taken.add(chosen[slot])
    return chosen


def candidates(times: Seconds, asked: Seconds, *, half_seconds: float) -> Indices:
    """Return the positions of the packets whose time is within ``half_seconds`` of any time in ``asked``."""
    edges = np.sort(asked)
    after = np.clip(np.searchsorted(edges, times), 0, len(edges) - 1)
    before = np.maximum(after - 1, 0)
    distance = np.minimum(np.abs(edges[after] - times), np.abs(edges[before] - times))
    return np.flatnonzero(distance <= half_seconds).astype(np.int64)
