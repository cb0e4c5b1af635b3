"""Decode the wanted frames of a video with PyAV, decord or torchcodec. Runs in the child process only.

Whichever decoder is used, PyAV first opens and indexes the file, so that all decoders have the same limits and the same
wanted frames. If PyAV also decodes, it replaces corrupt frames and counts those that stay corrupt.

decord and torchcodec can return a wrong frame without an error. They fail on a video if such a frame is detected, or if
decord is known to seek inexactly in it. A missing frame shows in the row's status, but a wrong frame would give a wrong
embedding. Both support few display properties, and videos with other properties are refused.
"""

import importlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame

from raypipe.status import Status
from raypipe.video.container import RAW_STREAMS, VideoError, describe
from raypipe.video.deinterlace import Deinterlacer
from raypipe.video.display import FrameWriter, needs, pixel_aspect, scaled_size
from raypipe.video.frame_reader import (
    Damage,
    DamageReport,
    all_frames,
    candidates,
    choose_replacements,
    packets_to_decode,
    read_frames,
    skips_exactly,
)
from raypipe.video.packet_index import PacketIndex
from raypipe.video.packets import WRONG_KEYFRAMES
from raypipe.video.probe import VideoFile
from raypipe.video.sampling import Wanted, nearest
from raypipe.video.timeline import Indices, Seconds

_MIN_SURVEY_PACKETS = 500
_SURVEY_FACTOR = 2  # times the number of packets that were decoded for the wanted frames
_SURVEY_ATTEMPTS = 8


@dataclass
class Decoded:
    """The result of decoding the wanted frames, without the pixels."""

    num_corrupt_frames: int = 0
    num_flagged_frames: int = 0  # corrupt frames whose own data is corrupt
    num_hidden: int = 0  # wanted packets that are intact but hold no picture to show
    interlaced: bool = False  # frames were deinterlaced
    problem: str = ""  # the first error, as FFmpeg words it


def decode_pyav(video: VideoFile, wanted: Wanted, writer: FrameWriter) -> Decoded:
    """Decode only the groups of pictures that hold a wanted frame. If a frame is missing, read the whole video.

    Except in row format 1 (older outputs), a corrupt frame is replaced by the nearest intact frame, and the frames that
    stay corrupt are counted.

    Raises:
        VideoError: no frame can be decoded.
    """
    decoding = _Decoding(video, wanted, writer)
    return decoding.repair() if video.reader.row_format > 1 else decoding.trust()


class _Decoding:
    """Decodes the wanted frames of a video that may be damaged, and finds out which are corrupt.

    A slot is the position of a frame in ``wanted`` and in the output.
    """

    def __init__(self, video: VideoFile, wanted: Wanted, writer: FrameWriter) -> None:
        self._video = video
        self._index = video.index
        self._wanted = wanted
        self._writer = writer
        self._slots = dict(enumerate(wanted.packets.tolist()))  # slot -> position of the wanted packet
        self._taken: dict[int, int] = {}  # slot -> position of the packet whose frame it got
        self._repairs = video.reader.row_format > 1
        self._report = DamageReport()
        self._deinterlacer = Deinterlacer()

    def trust(self) -> Decoded:
        """Decode by the rules of row format 1 (older outputs): every frame that is returned counts as intact."""
        problem = _note_problem(lambda: self._take(self._slots))
        if len(self._writer.missing):
            problem = _note_problem(lambda: self._take_nearest(used=None)) or problem
        self._refuse_empty(problem)
        return Decoded(problem=problem)

    def repair(self) -> Decoded:
        index, report, writer = self._index, self._report, self._writer
        problem = _note_problem(lambda: self._take(self._slots))
        if (report.is_noisy or report.problem) and skips_exactly(self._video.reader.decoder):
            _note_problem(self._look_again)
        is_sound = not (problem or report.problem)
        if is_sound and not len(writer.missing) and not index.losses and not index.corrupt:
            return Decoded(interlaced=self._deinterlacer.interlaced)
        hidden = self._num_hidden() if is_sound else 0
        if is_sound and len(writer.missing):  # the decoder needs earlier packets, or the wanted ones are hidden
            problem = _note_problem(self._take_rest)
        damage = self._damage()
        if any(damage.values()):
            problem = problem or _note_problem(lambda: self._replace(damage))
        if not is_sound and len(writer.missing):
            problem = _note_problem(self._take_rest) or problem
        problem = report.problem or problem
        self._refuse_empty(problem)
        found = [level for level in self._damage().values() if level < Damage.MISSING]
        if any(found) and not problem:
            problem = "the container reports that data is lost"
        return Decoded(
            num_corrupt_frames=sum(level > Damage.NONE for level in found),
            num_flagged_frames=sum(level == Damage.CORRUPT for level in found),
            num_hidden=min(hidden, len(writer.missing)),
            interlaced=self._deinterlacer.interlaced,
            problem=problem,
        )

    def _read(
        self, ranges: Sequence[tuple[int, int]], *, keep: Collection[int] | None = None
    ) -> Iterator[VideoFrame | None]:
        return read_frames(self._video, ranges, keep=keep, report=self._report if self._repairs else None)

    def _refuse_empty(self, problem: str) -> None:
        if problem and len(self._writer.missing) == len(self._slots):
            raise VideoError(Status.DECODE_ERROR, problem)

    def _look_again(self) -> None:
        """Decode the same packets again without skipping frames, because the decoder hides errors of skipped frames."""
        for _ in self._read(packets_to_decode(self._index, self._wanted.packets)):
            pass

    def _take(self, slots: Mapping[int, int]) -> None:
        """Decode the packets that ``slots`` maps to, and write each frame into its slot."""
        slots_of: dict[int, list[int]] = {}
        for slot, position in slots.items():
            slots_of.setdefault(int(self._index.pts[position]), []).append(slot)
        self._take_groups(np.unique(np.fromiter(slots.values(), np.int64)), slots_of)
        missing = set(self._writer.missing.tolist())
        self._taken |= {slot: position for slot, position in slots.items() if slot not in missing}

    def _take_groups(self, positions: Indices, slots_of: dict[int, list[int]]) -> None:
        ranges = packets_to_decode(self._index, positions)
        for frame in self._read(ranges, keep=set(positions.tolist())):
            if frame is None:
                continue
            if self._repairs and frame.interlaced_frame:
                break
            if frame.pts in slots_of:
                self._writer.put(slots_of[frame.pts], frame, self._seconds(frame.pts))
        else:
            return
        # Deinterlacing uses fields of the previous and next frames, so these are decoded too.
        count = self._video.reader.decoder.has_b_frames + 2
        ranges = _with_followers(ranges, len(self._index.pts), count=count)
        for frame in self._deinterlacer.deinterlace(self._read(ranges)):
            if frame is not None and frame.pts in slots_of:
                self._writer.put(slots_of[frame.pts], frame, self._seconds(frame.pts))

    def _damage(self) -> dict[int, int]:
        """Return the damage level of the picture in each slot."""
        levels = self._report.levels(self._index)
        damage = {slot: int(levels[position]) for slot, position in self._taken.items()}
        return damage | dict.fromkeys(self._writer.missing.tolist(), int(Damage.MISSING))

    def _replace(self, damage: Mapping[int, int]) -> None:
        """Replace the picture in each damaged slot by a less damaged one, if one is near enough.

        The replacement must be within half the sampling interval.
        """
        index, wanted = self._index, self._wanted
        bad = [slot for slot, level in damage.items() if level]
        asked = {self._slots[slot]: float(wanted.pts_seconds[slot]) for slot in bad}  # a frame may be wanted twice
        ranges, half = self._survey_ranges(asked, 0.5 * index.duration_seconds / len(wanted.packets))
        survey = DamageReport()
        shown = {frame.pts for frame in read_frames(self._video, ranges, report=survey) if frame is not None}
        self._report.merge(survey)
        levels = self._report.levels(index)
        levels[~np.isin(index.pts, np.fromiter(shown - {None}, np.int64)) | ~index.is_shown] = Damage.MISSING
        used = {position for slot, position in self._taken.items() if not damage[slot]}
        chosen = choose_replacements(index.pts_seconds, levels, asked, used=used, half_seconds=half)
        found = {slot: chosen[self._slots[slot]] for slot in bad if self._slots[slot] in chosen}
        better = {slot: at for slot, at in found.items() if levels[at] < damage[slot] and at != self._taken.get(slot)}
        if better:
            self._take(better)

    def _survey_ranges(self, asked: Mapping[int, float], half_seconds: float) -> tuple[list[tuple[int, int]], float]:
        """Return the packet ranges to decode in search of better pictures, and the half interval that they cover.

        The half interval in seconds is halved until the ranges hold not many more packets than were decoded before.
        """
        index, times = self._index, np.array(list(asked.values()))
        usual = packets_to_decode(index, self._wanted.packets)
        limit = max(_MIN_SURVEY_PACKETS, _SURVEY_FACTOR * sum(stop - start for start, stop in usual))
        ranges: list[tuple[int, int]] = []
        for _ in range(_SURVEY_ATTEMPTS):
            near = candidates(index.pts_seconds, times, half_seconds=half_seconds)
            ranges = packets_to_decode(index, near)
            if sum(stop - start for start, stop in ranges) <= limit:
                break
            half_seconds /= 2
        return ranges, half_seconds

    def _take_rest(self) -> None:
        """Fill the slots that are still empty, in one pass over the whole video.

        If all wanted frames are distinct, a frame that is already in a slot is not used again.
        """
        index = self._index
        self._video.reader.decodes_corrupt = True
        is_distinct = len(np.unique(self._wanted.packets)) == len(self._wanted.packets)
        taken = self._take_nearest(
            used={int(index.pts[position]) for position in self._taken.values()} if is_distinct else None
        )
        order = np.argsort(index.pts, kind="stable")
        at = np.searchsorted(index.pts[order], np.fromiter(taken.values(), np.int64))
        self._taken |= zip(taken, order[np.minimum(at, len(order) - 1)].tolist(), strict=True)

    def _take_nearest(self, *, used: Collection[int] | None) -> dict[int, int]:
        """Fill each empty slot with the nearest frame, in one pass from the start that tolerates damage.

        A slot stays empty if no frame is near enough. If ``used`` is None, a frame may be used several times. Otherwise
        each frame is used at most once, and frames whose pts are in ``used`` are skipped. Return a dict from each
        filled slot to the pts of its frame.
        """
        wanted_seconds = self._wanted.pts_seconds
        missing = iter(self._writer.missing.tolist())
        slot = next(missing, None)
        before: tuple[VideoFrame, float] | None = None
        taken: dict[int, int] = {}
        skipped = set(used or ())

        def put(slot: int, frame: VideoFrame, seconds: float) -> None:
            if abs(seconds - wanted_seconds[slot]) <= self._tolerance_seconds and frame.pts not in skipped:
                self._writer.put([slot], frame, seconds)
                taken[slot] = frame.pts if frame.pts is not None else -1
                if used is not None:
                    skipped.add(taken[slot])

        frames: Iterable[VideoFrame | None] = all_frames(self._video, self._report)
        for frame in self._deinterlacer.deinterlace(frames) if self._repairs else frames:
            if frame is None or frame.pts in skipped:
                continue
            shown = frame.pts if frame.pts is not None else frame.dts
            seconds = self._seconds(shown) if shown is not None else 0.0
            while slot is not None and seconds >= wanted_seconds[slot]:
                asked = float(wanted_seconds[slot])
                is_earlier = before is not None and asked - before[1] <= seconds - asked
                put(slot, *(before if is_earlier and before else (frame, seconds)))
                slot = next(missing, None)
            before = (frame, seconds)
            if slot is None:
                return taken
        if slot is not None and before is not None:
            for last in (slot, *missing):
                put(last, *before)
        return taken

    def _num_hidden(self) -> int:
        """Return the number of empty slots whose packets are intact but hold no picture to show.

        These are the slots whose time is near a frame that was decoded.
        """
        taken = np.sort(self._index.pts_seconds[list(self._taken.values())])
        if not len(taken):
            return 0
        missing = self._wanted.pts_seconds[self._writer.missing]
        return int((np.abs(taken[nearest(taken, missing)] - missing) <= self._tolerance_seconds).sum())

    @property
    def _tolerance_seconds(self) -> float:
        """Return the maximum time difference at which a frame may be used in place of the wanted one."""
        return 2 / self._index.average_fps + 0.05

    def _seconds(self, pts: int) -> float:
        return float((pts - self._index.first_pts) * self._index.time_base)


def _note_problem(decode: Callable[[], object]) -> str:
    """Call ``decode`` and return the message of the error that ended it, or "" if there was no error.

    Frames that were decoded before the error are kept.
    """
    try:
        decode()
    except MemoryError:
        raise
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        return describe(error)
    return ""


def _with_followers(ranges: Sequence[tuple[int, int]], num_packets: int, *, count: int) -> list[tuple[int, int]]:
    """Extend each range by the ``count`` packets after it. Ranges that meet are merged."""
    longer: list[tuple[int, int]] = []
    for start, stop in ranges:
        if longer and start <= longer[-1][1]:
            start = longer.pop()[0]  # noqa: PLW2901
        longer.append((start, min(stop + count, num_packets)))
    return longer


def refuse_unsupported(video: VideoFile, wanted: Wanted, *, decoder: str) -> None:
    """Refuse a video that decord or torchcodec would show differently, or whose corrupt frames they do not report.

    PyAV decodes the wanted frames to check this. ``decoder`` is the name of the other decoder.

    Raises:
        VideoError: the decoder does not support this video.
    """
    lacks = "make pixels square" if pixel_aspect(video.reader.stream) != 1 else ""
    if video.index.timeline_repaired:
        lacks = "repair time stamps"
    if video.reader.is_packed:
        lacks = "unpack B-frames"
    if video.index.codec in WRONG_KEYFRAMES:
        lacks = f"know the key frames of {video.index.codec}"
    report = DamageReport()
    if not lacks:
        for frame in read_frames(video, packets_to_decode(video.index, wanted.packets), report=report):
            if frame is not None and (lacks := needs(frame)):
                break
    if lacks:
        raise VideoError(Status.DECODE_ERROR, f"{decoder} does not {lacks}; use pyav.")
    if report.levels(video.index)[wanted.packets].any():
        msg = f"Frames are corrupt, which {decoder} does not report ({report.problem}); use pyav."
        raise VideoError(Status.DECODE_ERROR, msg)


def decode_decord(video: VideoFile, wanted: Wanted, writer: FrameWriter) -> Decoded:
    """Decode the wanted frames with decord, which scales them with its own FFmpeg."""
    import decord  # noqa: PLC0415  # only a child that decodes with decord loads it

    index = video.index
    if mistake := _decord_mistake(index):
        raise VideoError(Status.DECODE_ERROR, f"decord returns wrong frames where {mistake}; use pyav.")
    if (first := next(all_frames(video), None)) is None:
        raise VideoError(Status.DECODE_ERROR, "No frame could be decoded.")
    width, height = scaled_size(index.width, index.height, writer.request.resize_size)
    is_turned = first.rotation % 180 != 0
    if is_turned:  # decord turns a frame upright before it scales it
        width, height = height, width
    if video.reader.row_format > 1:
        writer.displayed_size = (index.height, index.width) if is_turned else (index.width, index.height)
    video.reader.file.seek(0)
    reader = decord.VideoReader(video.reader.file, ctx=decord.cpu(0), width=width, height=height, num_threads=1)
    shown = _shown(index, len(reader), "decord")
    for slot, at in enumerate(nearest(shown, wanted.pts_seconds).tolist()):
        writer.put_pixels([slot], reader[at].asnumpy(), float(shown[at]))
    return Decoded()


def _decord_mistake(index: PacketIndex) -> str:
    """Return the reason why decord seeks inexactly in this video, or "" if it seeks exactly."""
    if index.container in {"mpegts", "mpeg"}:
        return f"a container, such as {index.container}, has no index"
    if not index.is_shown.all():
        return "an edit list cuts frames off"
    if mistake := _guessed_times(index):
        return mistake
    at = np.arange(len(index.pts))
    group = np.maximum.accumulate(np.where(index.is_keyframe, at, 0))
    if (index.pts < index.pts[group]).any():
        return "frames refer to the group of pictures before their own"
    return ""


def _guessed_times(index: PacketIndex) -> str:
    """Return why the display times had to be guessed, which each library does differently, or "" if they are stored."""
    if index.container in RAW_STREAMS:
        return f"a raw stream, such as {index.container}, has no times"
    if index.container in {"avi", "mxf"} and (np.diff(index.pts) < 0).any():
        return f"a file, such as {index.container}, holds frames out of order"
    return ""


def decode_torchcodec(video: VideoFile, wanted: Wanted, writer: FrameWriter) -> Decoded:
    """Decode the wanted frames with torchcodec, which turns them upright itself."""
    torchcodec: Any = importlib.import_module("torchcodec.decoders")  # only a child that decodes with it loads it

    if mistake := _guessed_times(video.index):
        msg = f"torchcodec returns wrong frames where {mistake}; use pyav."
        raise VideoError(Status.DECODE_ERROR, msg)
    video.reader.file.seek(0)
    decoder = torchcodec.VideoDecoder(
        video.reader.file, stream_index=video.reader.stream.index, dimension_order="NHWC", seek_mode="exact"
    )
    begin = float(decoder.metadata.begin_stream_seconds or 0.0)
    shown = _shown(video.index, len(decoder), "torchcodec")
    for slot, at in enumerate(nearest(shown, wanted.pts_seconds).tolist()):
        frame = decoder.get_frame_at(at)
        pts_seconds, asked = float(frame.pts_seconds) - begin, float(shown[at])
        if abs(pts_seconds - asked) > 0.5 / video.index.average_fps:
            msg = f"torchcodec returned the frame at {pts_seconds:.3f} s instead of {asked:.3f} s; use pyav."
            raise VideoError(Status.DECODE_ERROR, msg)
        pixels = VideoFrame.from_ndarray(np.ascontiguousarray(frame.data.numpy()), format="rgb24")
        writer.put([slot], pixels, pts_seconds)
    return Decoded()


def _shown(index: PacketIndex, num_frames: int, decoder: str) -> Seconds:
    """Return the ascending display times of a decoder's frames in seconds.

    Raises:
        VideoError: the decoder and the index have different numbers of frames.
    """
    shown = np.sort(index.pts_seconds[index.is_shown])
    if len(shown) != num_frames:
        msg = f"{decoder} counts {num_frames} frames, but the file holds {len(shown)}; use pyav."
        raise VideoError(Status.DECODE_ERROR, msg)
    return shown


DECODE = {"pyav": decode_pyav, "decord": decode_decord, "torchcodec": decode_torchcodec}
