"""Decode the wanted frames of a video with PyAV, and tell which of them are corrupt.

PyAV always opens and indexes the file first, so that all decoders pass the same limits and are asked for the same
frames; decord and torchcodec may then decode them. Runs in the child process only.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import av
import numpy as np
from av.video.frame import VideoFrame

from raypipe.status import Status
from raypipe.video import display
from raypipe.video.choosing import Wanted
from raypipe.video.damage import Damage, DamageReport, candidates, choose_replacements
from raypipe.video.deinterlace import Deinterlacer
from raypipe.video.display import FrameWriter
from raypipe.video.index import VideoIndex
from raypipe.video.probe import VideoError, VideoFile
from raypipe.video.reading import all_frames, describe, packets_to_decode, read_frames, skips_exactly
from raypipe.video.sampling import nearest

_MIN_SURVEY_PACKETS = 500
_SURVEY_FACTOR = 2  # of the packets that were decoded for the wanted frames
_SURVEY_ATTEMPTS = 8


@dataclass
class Decoded:
    """What became of the wanted frames besides their pixels."""

    num_corrupt_frames: int = 0
    num_flagged_frames: int = 0  # those of them that the decoder itself says are corrupt
    num_hidden: int = 0  # wanted packets that are sound and hold no picture to show
    interlaced: bool = False  # frames were deinterlaced
    problem: str = ""  # the first error, in FFmpeg's words


def decode_pyav(video: VideoFile, wanted: Wanted, writer: FrameWriter) -> Decoded:
    """Decode only the groups of pictures that hold a wanted frame; read everything when that misses one.

    Row format 2 takes the nearest sound frame in place of a corrupt one, and counts those that stay corrupt.

    Raises:
        VideoError: no frame can be decoded.
    """
    slots = {slot: int(position) for slot, position in enumerate(wanted.packets)}
    if video.row_format > 1:
        return _Salvage(video, wanted, writer).run(slots)
    problem = _note_problem(lambda: _take_groups(video, slots, writer))
    if len(writer.missing):
        problem = _note_problem(lambda: _take_nearest(video, wanted, writer)) or problem
    if problem and len(writer.missing) == len(slots):
        raise VideoError(Status.DECODE_ERROR, problem)
    return Decoded(problem=problem)


def refuse_damaged(video: VideoFile, wanted: Wanted, *, decoder: str) -> None:
    """Decode the wanted frames with PyAV, which tells what is corrupt and how to show it, for a decoder that does not.

    Raises:
        VideoError: one of them is corrupt, or would be shown otherwise by PyAV.
    """
    report = DamageReport()
    for frame in read_frames(video, packets_to_decode(video.index, wanted.packets), report=report):
        if frame is not None and (lacks := display.needs(frame)):
            raise VideoError(Status.DECODE_ERROR, f"{decoder} does not {lacks}; use pyav.")
    if report.levels(video.index)[wanted.packets].any():
        msg = f"Frames are corrupt, which {decoder} does not tell ({report.problem}); use pyav."
        raise VideoError(Status.DECODE_ERROR, msg)


class _Salvage:
    """Decodes the wanted frames of a video that may be damaged, and tells what is corrupt."""

    def __init__(self, video: VideoFile, wanted: Wanted, writer: FrameWriter) -> None:
        self._video = video
        self._index = video.index
        self._wanted = wanted
        self._writer = writer
        self._report = DamageReport()
        self._deinterlacer = Deinterlacer()
        self._taken: dict[int, int] = {}  # slot -> position of the packet whose frame it got

    def run(self, slots: Mapping[int, int]) -> Decoded:
        """Decode the packets at the positions that ``slots`` maps to."""
        problem = _note_problem(lambda: self._take(slots))
        if (self._report.is_noisy or self._report.problem) and skips_exactly(self._video.decoder):
            _note_problem(self._look_again)
        is_sound = not (problem or self._report.problem)
        index = self._index
        if is_sound and not len(self._writer.missing) and not index.losses and not index.corrupt:
            return Decoded(interlaced=self._deinterlacer.interlaced)
        hidden = self._num_hidden() if is_sound else 0
        if is_sound and len(self._writer.missing):  # the decoder needs more packets before them, or they are hidden
            problem = _note_problem(self._take_rest)
        damage = self._damage()
        if any(damage.values()):
            problem = problem or _note_problem(lambda: self._replace(damage))
        if not is_sound and len(self._writer.missing):
            problem = _note_problem(self._take_rest) or problem
        problem = self._report.problem or problem
        if problem and len(self._writer.missing) == len(slots):
            raise VideoError(Status.DECODE_ERROR, problem)
        found = [level for level in self._damage().values() if level < Damage.MISSING]
        if any(found) and not problem:
            problem = "the container says that data is lost"
        return Decoded(
            num_corrupt_frames=sum(level > Damage.NONE for level in found),
            num_flagged_frames=sum(level == Damage.CORRUPT for level in found),
            num_hidden=min(hidden, len(self._writer.missing)),
            interlaced=self._deinterlacer.interlaced,
            problem=problem,
        )

    def _look_again(self) -> None:
        """Decode the same packets without leaving any out: the decoder hides errors of what it leaves out."""
        for _ in read_frames(self._video, packets_to_decode(self._index, self._wanted.packets), report=self._report):
            pass

    def _take(self, slots: Mapping[int, int]) -> None:
        _take_groups(self._video, slots, self._writer, report=self._report, deinterlacer=self._deinterlacer)
        missing = set(self._writer.missing.tolist())
        self._taken |= {slot: position for slot, position in slots.items() if slot not in missing}

    def _damage(self) -> dict[int, int]:
        """Return how bad the picture in each slot is."""
        levels = self._report.levels(self._index)
        damage = {slot: int(levels[position]) for slot, position in self._taken.items()}
        return damage | dict.fromkeys(self._writer.missing.tolist(), int(Damage.MISSING))

    def _replace(self, damage: Mapping[int, int]) -> None:
        """Put a better picture in each damaged slot, where there is one within half the sampling interval."""
        index, wanted = self._index, self._wanted
        bad = [slot for slot, level in damage.items() if level]
        asked = {int(wanted.packets[slot]): float(wanted.pts_seconds[slot]) for slot in bad}  # one may be wanted twice
        half = 0.5 * index.duration_seconds / len(wanted.packets)
        ranges, half = self._survey_ranges(asked, half)
        survey = DamageReport()
        shown = {frame.pts for frame in read_frames(self._video, ranges, report=survey) if frame is not None}
        self._report.merge(survey)
        levels = self._report.levels(index)
        levels[~np.isin(index.pts, np.fromiter(shown - {None}, np.int64)) | ~index.is_shown] = Damage.MISSING
        used = {position for slot, position in self._taken.items() if not damage[slot]}
        chosen = choose_replacements(index.pts_seconds, levels, asked, used=used, half_seconds=half)
        found = {slot: chosen[int(wanted.packets[slot])] for slot in bad if int(wanted.packets[slot]) in chosen}
        better = {slot: at for slot, at in found.items() if levels[at] < damage[slot] and at != self._taken.get(slot)}
        if better:
            self._take(better)

    def _survey_ranges(self, asked: Mapping[int, float], half_seconds: float) -> tuple[list[tuple[int, int]], float]:
        """Return the packets to decode in search of better pictures: not many more than were decoded before."""
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
        """Fill the slots that are still empty from a plain reading.

        Where no frame is wanted twice, those that other slots have are not taken again.
        """
        index = self._index
        self._video.decode_corrupt()
        is_distinct = len(np.unique(self._wanted.packets)) == len(self._wanted.packets)
        used = {int(index.pts[position]) for position in self._taken.values()} if is_distinct else None
        taken = _take_nearest(
            self._video,
            self._wanted,
            self._writer,
            used=used,
            report=self._report,
            deinterlacer=self._deinterlacer,
        )
        order = np.argsort(index.pts, kind="stable")
        at = np.searchsorted(index.pts[order], np.fromiter(taken.values(), np.int64))
        self._taken |= zip(taken, order[np.minimum(at, len(order) - 1)].tolist(), strict=True)

    def _num_hidden(self) -> int:
        """Return how many empty slots are of packets next to a shown frame: sound, but with no picture to show."""
        taken = np.sort(self._index.pts_seconds[list(self._taken.values())])
        if not len(taken):
            return 0
        missing = self._wanted.pts_seconds[self._writer.missing]
        return int((np.abs(taken[nearest(taken, missing)] - missing) <= _tolerance_seconds(self._index)).sum())


def _note_problem(decode: Callable[[], object]) -> str:
    """Damage ends the decoding, not what was decoded before it."""
    try:
        decode()
    except MemoryError:
        raise
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        return describe(error)
    return ""


def _take_groups(
    video: VideoFile,
    slots: Mapping[int, int],
    writer: FrameWriter,
    *,
    report: DamageReport | None = None,
    deinterlacer: Deinterlacer | None = None,
) -> None:
    """Decode the frames of the packets that ``slots`` maps to, and put each into its slot."""
    index = video.index
    positions = np.unique(np.fromiter(slots.values(), np.int64))
    slots_of: dict[int, list[int]] = {}
    for slot, position in slots.items():
        slots_of.setdefault(int(index.pts[position]), []).append(slot)
    ranges = packets_to_decode(index, positions)
    for frame in read_frames(video, ranges, keep=set(positions.tolist()), report=report):
        if frame is None:
            continue
        if deinterlacer is not None and frame.interlaced_frame:
            break
        if frame.pts in slots_of:
            writer.put(slots_of[frame.pts], frame, _seconds(index, frame.pts))
    else:
        return
    # Fields are woven with those of the frames before and after, so these are decoded too.
    ranges = _with_followers(ranges, len(index.pts), count=video.decoder.has_b_frames + 2)
    frames = read_frames(video, ranges, report=report)
    for frame in deinterlacer.deinterlace(frames):
        if frame is not None and frame.pts in slots_of:
            writer.put(slots_of[frame.pts], frame, _seconds(index, frame.pts))


def _with_followers(ranges: Sequence[tuple[int, int]], num_packets: int, *, count: int) -> list[tuple[int, int]]:
    """Extend each range by the packets after it; those that meet become one."""
    longer: list[tuple[int, int]] = []
    for start, stop in ranges:
        if longer and start <= longer[-1][1]:
            start = longer.pop()[0]  # noqa: PLW2901
        longer.append((start, min(stop + count, num_packets)))
    return longer


def _tolerance_seconds(index: VideoIndex) -> float:
    """Return how far a frame may be from the one wanted to stand in for it."""
    return 2 / index.average_fps + 0.05


def _take_nearest(
    video: VideoFile,
    wanted: Wanted,
    writer: FrameWriter,
    *,
    used: Collection[int] | None = None,
    report: DamageReport | None = None,
    deinterlacer: Deinterlacer | None = None,
) -> dict[int, int]:
    """Fill the missing slots with the nearest frame of a plain reading from the start, damage tolerated.

    With ``used``, the pts of frames to pass over, each frame is taken once. Returns slot -> pts of the frame it got.
    """
    index = video.index
    tolerance = _tolerance_seconds(index)
    missing = iter(writer.missing.tolist())
    slot = next(missing, None)
    before: tuple[VideoFrame, float] | None = None
    taken: dict[int, int] = {}
    passed_over = set(used or ())

    def put(slot: int, frame: VideoFrame, seconds: float) -> None:
        if abs(seconds - wanted.pts_seconds[slot]) <= tolerance and frame.pts not in passed_over:
            writer.put([slot], frame, seconds)
            taken[slot] = frame.pts if frame.pts is not None else -1
            if used is not None:
                passed_over.add(taken[slot])

    frames = all_frames(video, report)
    for frame in deinterlacer.deinterlace(frames) if deinterlacer is not None else frames:
        if frame is None or frame.pts in passed_over:
            continue
        shown = frame.pts if frame.pts is not None else frame.dts
        seconds = _seconds(index, shown) if shown is not None else 0.0
        while slot is not None and seconds >= wanted.pts_seconds[slot]:
            asked = float(wanted.pts_seconds[slot])
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


def _seconds(index: VideoIndex, pts: int) -> float:
    return float((pts - index.first_pts) * index.time_base)
