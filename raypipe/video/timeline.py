"""Repair the time stamps of a stream if they contradict each other. All functions are pure functions of arrays.

The time stamps of a consistent stream stay unchanged. The frames of a faulty stream are put on one rising timeline, as
players do. If the stamps jump, the next segment begins one frame duration after the last frame of the previous segment.
Single wrong or missing stamps are interpolated.

Only frames that are shown count. The faults are:

- A frame has no stamp, or two frames have the same stamp.
- A stamp goes back further than frame reordering allows. No step back is allowed at a key frame, or if the codec does
  not reorder frames. Otherwise a stamp may go back by at most 16 decoded frames, the maximum of H.264 and HEVC.
- A decoding time goes back by more than one frame, in a container that stores decoding times. In other containers, a
  short step back looks like reordered frames. There, the decoder determines the order if some frames are unusually
  close to each other, or if there is a large gap before one of the last frames.
- A gap between two frames is too long. Transport and program streams may restart their clock, so their gaps are errors
  if they are longer than 10 seconds and 10 typical frames, as in FFmpeg. In other containers, a long gap can be
  intended: a slide show, or a screen recording while nothing moves. There, a gap is an error only if it is longer than
  30 seconds and 100 typical frames, and also longer than 10 times the rest of the video.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ticks = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
Seconds = npt.NDArray[np.float64]
_Counts = npt.NDArray[np.uint8]

NO_TIME = int(np.iinfo(np.int64).min)
_MAX_TICKS = 2**61  # so that differences do not overflow
_MAX_REORDERED = 16
_MAX_GROUP = 64  # consecutive frames that are decoded after a frame but shown before it
_RARELY_SO_LONG = 4  # times the stream's usual value
_RARELY_SO_SHORT = 0.6
_RESTART_SECONDS, _RESTART_FRAMES = 10, 10
_GAP_SECONDS, _GAP_FRAMES, _GAP_OF_REST = 30, 100, 10
_FRAMES_PER_GAP = 20
_MIN_GAPS = 3  # fewer gaps do not show what is typical
_MAX_UNTRUSTED_KEYS = 1 / 8
_MAX_OUTLIERS = 16  # in a row
_MAX_SEARCHED_FAULTS = 1000
_NEAR_FRAMES = 16


@dataclass(frozen=True)
class StreamKind:
    tick_seconds: float
    frame_ticks: float  # the frame duration at the average rate
    reorders: bool  # the codec's decoding order may differ from the display order
    restarts: bool  # the container allows the clock to restart
    stores_dts: bool  # the container stores decoding times


@dataclass(frozen=True)
class Stamps:
    """The container's time stamps and flags for the P packets of a stream, in decoding order."""

    pts: Ticks  # [P], NO_TIME if missing
    dts: Ticks  # [P], NO_TIME if missing
    is_keyframe: Flags  # [P]
    is_shown: Flags  # [P]

    @property
    def trusted(self) -> Ticks:
        """Return the time stamp [P] that determines when each packet is shown.

        This is the presentation time or, in a container that stores only decoding times, such as AVI, the decoding
        time. Missing stamps are ``NO_TIME``.
        """
        has_pts = bool((self.pts[self.is_shown] != NO_TIME).any())
        times = self.pts if has_pts else self.dts
        return np.where(times == NO_TIME, NO_TIME, np.clip(times, -_MAX_TICKS, _MAX_TICKS))

    @property
    def as_stored(self) -> Ticks:
        """Return one time [P] for each packet: the presentation time, else the decoding time, else the position."""
        times = np.where(self.pts != NO_TIME, self.pts, self.dts)
        return np.where(times != NO_TIME, times, np.arange(len(times)))


@dataclass(frozen=True)
class DisplayTimes:
    """The display times of the P packets of a stream, in decoding order."""

    pts: Ticks  # [P]; hidden packets never share a time with shown ones
    is_shown: Flags  # [P]
    is_repaired: bool
    is_assigned: bool = False  # the container stores no display times, so packets must be given these


@dataclass(frozen=True)
class DecodedOrder:
    """The display order of the first ``num_packets`` packets of a stream, as a decoder determined it.

    ``positions`` holds the positions of the packets in that order. Packets that gave no frame are omitted.
    """

    positions: Indices
    num_packets: int


def make_timeline(
    stamps: Stamps, kind: StreamKind, *, decode_order: Callable[[], DecodedOrder | None] = lambda: None
) -> DisplayTimes:
    """Return the display times of a stream: the stored times, or repaired ones if the time stamps are faulty.

    ``decode_order`` is called only if the stamps look faulty and the codec reorders frames. It returns the order in
    which the decoder shows the packets. That order also reveals packets that show no frame, such as the second field of
    a picture, which has no time stamp.
    """
    is_faulty = has_faults(stamps, kind)
    if not is_faulty and not (kind.reorders and not kind.stores_dts and _is_suspicious(stamps)):
        return _as_stored(stamps)
    order: Indices | None = None
    if kind.reorders and (decoded := decode_order()):
        stamps = _without_silent(stamps, decoded)
        if decoded.num_packets == len(stamps.pts):
            order = _with_unseen(decoded.positions[stamps.is_shown[decoded.positions]], stamps)
            stamps = Stamps(stamps.pts, stamps.dts, stamps.is_keyframe, _flags(len(stamps.pts), order))
        is_sound = not has_faults(stamps, kind) if order is None else _is_sound(stamps.trusted[order], kind)
        if is_sound:
            return _as_stored(stamps)
    if order is None:
        if not is_faulty:
            return _as_stored(stamps)
        order = _guess_order(stamps, kind)
    pts = stamps.as_stored.copy()
    pts[order] = repair(stamps.trusted[order], kind)
    return DisplayTimes(_apart(pts, stamps.is_shown), stamps.is_shown, is_repaired=True)


def assign_times(stamps: Stamps, order: Indices, *, prefer_dts: bool) -> DisplayTimes | None:
    """Assign the stored times in ascending order to the packets in display order.

    Return None if times are missing or equal. Use this for containers that store one time slot after another,
    regardless of which picture is shown in a slot. ``prefer_dts`` uses decoding times before presentation times.
    """
    for times in (stamps.dts, stamps.pts) if prefer_dts else (stamps.pts, stamps.dts):
        slots = np.sort(times)
        if len(order) == len(slots) and slots[0] != NO_TIME and (_steps(slots) > 0).all():
            pts = np.empty_like(slots)
            pts[order] = slots
            return DisplayTimes(pts, stamps.is_shown, is_repaired=False, is_assigned=True)
    return None


def _as_stored(stamps: Stamps) -> DisplayTimes:
    return DisplayTimes(_apart(stamps.as_stored, stamps.is_shown), stamps.is_shown, is_repaired=False)


def _apart(pts: Ticks, is_shown: Flags) -> Ticks:
    """Return the times. A hidden packet with the time of a shown packet gets a time before all others instead."""
    if is_shown.all():
        return pts
    clashes = np.flatnonzero(~is_shown & np.isin(pts, pts[is_shown]))
    if not len(clashes):
        return pts
    moved = pts.copy()
    moved[clashes] = pts.min() - 1 - np.arange(len(clashes))
    return moved


def _with_unseen(order: Indices, stamps: Stamps) -> Indices:
    """Insert the packets that gave no frame although they have their own time stamp into a display order.

    These packets are damaged, not hidden.
    """
    times = stamps.trusted
    unseen = stamps.is_shown & ~_flags(len(times), order) & (times != NO_TIME)
    unseen[1:] &= times[1:] != times[:-1]
    return insert_in_order(order, np.flatnonzero(unseen).tolist())


def insert_in_order(order: Indices, others: Iterable[int]) -> Indices:
    """Insert the ascending positions ``others`` into a display order.

    Each of them goes after the nearest lower position that is already in the order.
    """
    known = order.tolist()
    placed = set(known)
    following: dict[int, list[int]] = {}
    for position in others:
        before = position - 1
        while before >= 0 and before not in placed:
            before -= 1
        following.setdefault(before, []).append(position)
    joined = following.get(-1, [])
    for position in known:
        joined += [position, *following.get(position, [])]
    return np.array(joined, dtype=np.int64)


def _flags(count: int, positions: Indices) -> Flags:
    flags = np.zeros(count, dtype=np.bool_)
    flags[positions] = True
    return flags


def _without_silent(stamps: Stamps, decoded: DecodedOrder) -> Stamps:
    """Mark the packets without a time stamp as hidden, if the decoder returned no frame for any of them."""
    missing = stamps.is_shown & (stamps.trusted == NO_TIME)
    is_shown = stamps.is_shown & ~missing
    if missing[decoded.positions].any() or not missing[: decoded.num_packets].any() or not is_shown.any():
        return stamps
    return Stamps(stamps.pts, stamps.dts, stamps.is_keyframe, is_shown)


def has_faults(stamps: Stamps, kind: StreamKind) -> bool:
    """Return whether the stamps of the shown packets contradict each other."""
    times = stamps.trusted[stamps.is_shown]
    if (times == NO_TIME).any():
        return True
    if (_steps(times) > 0).all() or not kind.reorders:
        return not _is_sound(times, kind)
    gaps = _steps(np.sort(times))
    limit = gap_limit(gaps, kind)
    return bool(
        (gaps == 0).any()
        or (gaps > limit).any()
        or _is_out_of_order(times, stamps.is_keyframe[stamps.is_shown])
        or (kind.stores_dts and _goes_back(stamps.dts, float(np.median(gaps))))
    )


def _is_suspicious(stamps: Stamps) -> bool:
    """Return whether stamps that look like reordered frames may be faulty.

    The fault may be a short step back in time, or a wrong time of one of the last frames.
    """
    times = stamps.trusted[stamps.is_shown]
    if (_steps(times) > 0).all():
        return False
    gaps = _steps(np.sort(times))
    typical = float(np.median(gaps))
    is_crowded = (gaps < _RARELY_SO_SHORT * typical).any()
    return bool(is_crowded or (gaps[-_MAX_REORDERED:] > _RARELY_SO_LONG * typical).any())


def _steps(values: Ticks) -> Ticks:
    return values[1:] - values[:-1]


def _is_sound(times: Ticks, kind: StreamKind) -> bool:
    """Return whether time stamps that are given in display order need no repair."""
    if (times == NO_TIME).any():
        return False
    gaps = _steps(times)
    return bool((gaps > 0).all() and not (gaps > gap_limit(gaps, kind)).any())


def gap_limit(gaps: Ticks, kind: StreamKind) -> float:
    """Return the limit in ticks above which a gap between two frames is an error, or infinity if no gap is."""
    gaps = gaps[gaps > 0]
    shortest = (_RESTART_SECONDS if kind.restarts else _GAP_SECONDS) / kind.tick_seconds
    if len(gaps) < _MIN_GAPS or gaps.max() <= shortest:  # the usual case
        return np.inf
    typical = float(np.median(gaps))
    if kind.restarts:
        return max(shortest, _RESTART_FRAMES * typical)
    long = np.sort(gaps[gaps > max(shortest, _GAP_FRAMES * typical)])[::-1].astype(np.float64)
    long = long[: max(1, len(gaps) // _FRAMES_PER_GAP)]
    rest = gaps.sum(dtype=np.float64) - np.cumsum(long)
    errors = np.flatnonzero(long > _GAP_OF_REST * rest)
    return float(long[errors[-1]]) - 0.5 if len(errors) else np.inf


def _reordering(times: Ticks) -> tuple[_Counts, _Counts]:
    """Count two kinds of nearby packets for each packet, and return both counts.

    The first kind is decoded before the packet but shown after it. The second kind is decoded after it but shown before
    it.
    """
    before, after = np.zeros(len(times), dtype=np.uint8), np.zeros(len(times), dtype=np.uint8)
    highest = np.maximum.accumulate(times)
    for shift in range(1, min(_MAX_GROUP, len(times) - 1) + 1):
        is_later = times[:-shift] > times[shift:]
        before[shift:] += is_later
        after[:-shift] += is_later
        if not (times[shift + 1 :] < highest[: -shift - 1]).any():  # no packet of either kind is further away
            break
    return before, after


def _is_out_of_order(times: Ticks, is_keyframe: Flags) -> bool:
    before, after = _reordering(times)
    highest = np.maximum.accumulate(times)
    is_far = times[_MAX_GROUP + 1 :] < highest[: -_MAX_GROUP - 1]
    if is_far.any() or (before > _MAX_REORDERED).any():
        return True
    leads = np.append(True, times[1:] > highest[:-1])
    usual = float(np.median(after[leads]))
    if (after[leads] > max(_MAX_REORDERED, _RARELY_SO_LONG * usual)).any():
        return True
    back = int((is_keyframe & ~leads).sum())
    return 0 < back <= _MAX_UNTRUSTED_KEYS * len(times)  # if there are more, the key frame flags are wrong


def _goes_back(dts: Ticks, typical: float) -> bool:
    dts = dts[dts != NO_TIME]
    return bool((_steps(np.clip(dts, -_MAX_TICKS, _MAX_TICKS)) < -typical).any())


def _guess_order(stamps: Stamps, kind: StreamKind) -> Indices:
    """Return the positions of the shown packets in the order in which a player's queue would show them."""
    shown = np.flatnonzero(stamps.is_shown)
    times = stamps.trusted[shown]
    known = times[times != NO_TIME]
    if not kind.reorders or len(known) < _MIN_GAPS:
        return shown
    gaps = _steps(np.unique(known))
    before = _reordering(known)[0]
    depth = int(np.percentile(before[before <= _MAX_REORDERED], 99))
    reach = min(gap_limit(gaps, kind), 2 * _MAX_GROUP * float(np.median(gaps)) if len(gaps) else 0.0)
    order: list[int] = []
    queue: list[tuple[int, int]] = []
    last = highest = NO_TIME
    for position, time, is_keyframe in zip(
        shown.tolist(), times.tolist(), stamps.is_keyframe[shown].tolist(), strict=True
    ):
        is_new = highest != NO_TIME and (abs(time - highest) > reach or (is_keyframe and time <= highest))
        if time == NO_TIME or is_new or (last != NO_TIME and time <= last):
            order.extend(at for _, at in sorted(queue))
            queue, last, highest = [], NO_TIME, NO_TIME
        if time == NO_TIME:
            order.append(position)
            continue
        heapq.heappush(queue, (time, position))
        highest = max(highest, time)
        if len(queue) > depth:
            last, first = heapq.heappop(queue)
            order.append(first)
    order.extend(at for _, at in sorted(queue))
    return np.array(order, dtype=np.int64)


def repair(times: Ticks, kind: StreamKind) -> Ticks:
    """Return strictly rising time stamps for frames in display order.

    The given stamps may be wrong, or ``NO_TIME`` if they are missing.
    """
    at = np.flatnonzero(times != NO_TIME)
    if not len(at):
        at, times = np.zeros(1, dtype=np.int64), np.zeros(len(times), dtype=np.int64)
    known = times[at]
    gaps = _steps(known)
    limit = min(gap_limit(gaps, kind), _MAX_TICKS / len(times))
    usual = (gaps / _steps(at))[(gaps > 0) & (gaps <= limit)]
    typical = float(np.median(usual)) if len(usual) else kind.frame_ticks
    at = at[_believable(known, at, typical=typical, limit=limit)]
    known = times[at]
    frames, ticks = _steps(at), _steps(known).astype(np.float64)
    is_good = (ticks > 0) & (ticks <= limit) & ((frames == 1) | (ticks >= 0.5 * frames * typical))
    is_good[_undone(known, typical)] = False
    frame_ticks = ticks / frames
    typical = float(np.median(frame_ticks[is_good])) if is_good.any() else typical
    for fault in np.flatnonzero(~is_good).tolist():
        ticks[fault] = frames[fault] * _nearby(frame_ticks, is_good, fault, typical)
    found = np.append(0.0, np.cumsum(ticks))
    numbers = np.arange(len(times))
    repaired = np.interp(numbers, at, found)
    repaired = np.where(numbers < at[0], (numbers - at[0]) * typical, repaired)
    repaired = np.where(numbers > at[-1], found[-1] + (numbers - at[-1]) * typical, repaired)
    rising = np.rint(repaired).astype(np.int64) - numbers
    return int(known[0]) + np.maximum.accumulate(rising) + numbers


def _undone(known: Ticks, typical: float) -> Indices:
    """Return the positions of long gaps to which later stamps go back. There, the clock jumped and came back."""
    steps = _steps(known)
    gaps = np.flatnonzero(steps > _RARELY_SO_LONG * typical)
    backs = np.flatnonzero(steps < 0)[:_MAX_SEARCHED_FAULTS] + 1
    last_before = [gaps[(gaps < at) & (known[gaps] < known[at]) & (known[at] < known[gaps + 1])][-1:] for at in backs]
    return np.concatenate([np.zeros(0, dtype=np.int64), *last_before])


def _nearby(frame_ticks: npt.NDArray[np.float64], is_good: Flags, fault: int, typical: float) -> float:
    """Return the frame duration in ticks near a fault.

    It is measured before the fault. If no frame there is good, it is measured after the fault, and otherwise it is
    ``typical``.
    """
    for near in (slice(max(0, fault - _NEAR_FRAMES), fault), slice(fault + 1, fault + 1 + _NEAR_FRAMES)):
        good = frame_ticks[near][is_good[near]]
        if len(good):
            return float(np.median(good))
    return typical


def _believable(known: Ticks, at: Indices, *, typical: float, limit: float) -> Flags:
    """Return a mask of the time stamps to keep.

    Repeated stamps are dropped, and also short runs of stamps that deviate from their neighbors. ``at`` holds the frame
    number of each time stamp. Frames without a stamp are omitted.
    """
    keep = np.ones(len(known), dtype=np.bool_)
    keep[1:] = _steps(known) != 0
    steps = _steps(known)
    faults = np.flatnonzero((steps < 0) | (steps > limit)) + 1
    longest = _MAX_OUTLIERS if len(faults) <= _MAX_SEARCHED_FAULTS else 1
    for fault in faults.tolist():
        if not keep[fault] or not keep[fault - 1]:
            continue
        for count in range(1, longest + 1):
            dropped = next(
                (
                    slice(start, start + count)
                    for start in range(fault, fault - count - 1, -1)
                    if _goes_on(known, at, start - 1, start + count, typical=typical, limit=limit)
                ),
                None,
            )
            if dropped is not None:
                keep[dropped] = False
                break
    return keep


def _goes_on(known: Ticks, at: Indices, start: int, stop: int, *, typical: float, limit: float) -> bool:
    """Return whether the time between the stamps ``start`` and ``stop`` matches the number of frames between them."""
    if start < 0 or stop >= len(known):
        return False
    ticks, expected = int(known[stop] - known[start]), float(at[stop] - at[start]) * typical
    return 0 < ticks <= limit and 0.85 * expected <= ticks <= _RARELY_SO_LONG * expected
