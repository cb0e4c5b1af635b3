"""Choose which frames of a video to take. All functions are pure functions of times and counts."""

import heapq
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raypipe.video.decode_request import DecodeRequest
from raypipe.video.packet_index import PacketIndex
from raypipe.video.timeline import Indices, Seconds


@dataclass(frozen=True, slots=True)
class Wanted:
    """The T requested frames, ascending in time. A frame may occur more than once."""

    packets: Indices  # [T] packet positions in decoding order
    pts_seconds: Seconds  # [T] time since the first frame


def choose_frames(index: PacketIndex, request: DecodeRequest) -> Wanted:
    """Choose the frames to decode for a request.

    Sampling times at which the file has no frames, because it is truncated or damaged, are left out.
    """
    order = np.argsort(index.pts, kind="stable")
    order = order[index.is_shown[order]]
    keyframes = order[index.is_keyframe[order]]
    if len(keyframes) and (request.mode == "keyframes" or request.nearest_keyframe):
        order = keyframes
    pts_seconds = index.pts_seconds[order]
    if request.mode in {"all", "keyframes"}:
        chosen = spread(len(order), request.max_frames)
    else:
        timestamps = _readable(index, asked_timestamps(index, request))
        chosen = (nearest_distinct if _are_distinct(request) else nearest)(pts_seconds, timestamps)
    return Wanted(packets=order[chosen].astype(np.int64), pts_seconds=pts_seconds[chosen])


def asked_timestamps(index: PacketIndex, request: DecodeRequest) -> Seconds:
    """Return the sampling times in seconds for the modes ``uniform`` and ``fps``.

    The times cover the duration that the container declares, even if the file is truncated.
    """
    return sample_timestamps(
        index.duration_seconds,
        mode="fps" if request.mode == "fps" else "uniform",
        num_frames=request.num_frames,
        fps=request.fps,
        max_frames=request.max_frames,
    )


def _readable(index: PacketIndex, timestamps: Seconds) -> Seconds:
    """Return the timestamps, without those at which frames were cut off or are lost to damage."""
    timestamps = timestamps[timestamps < index.end_seconds]
    for start, stop in index.lost_spans:
        timestamps = timestamps[(timestamps < start) | (timestamps >= stop)]
    return timestamps


def _are_distinct(request: DecodeRequest) -> bool:
    """Return whether the request forbids taking a frame more than once.

    Only the mode ``uniform`` without ``nearest_keyframe`` does. In row format 1 (older outputs), no request does, so a
    short video gives some frames more than once.
    """
    return request.mode == "uniform" and not request.nearest_keyframe and request.row_format > 1


def num_frames_asked(index: PacketIndex, request: DecodeRequest, wanted: Wanted) -> int:
    """Return how many frames the request would get if the file were complete and undamaged."""
    if request.mode in {"all", "keyframes"}:
        return len(wanted.packets)
    count = len(asked_timestamps(index, request))
    if not _are_distinct(request):
        return count
    lost = sum(stop - start for start, stop in index.lost_spans)
    there = int(index.is_shown.sum())
    return min(count, max(there, round(there * index.duration_seconds / (index.end_seconds - lost))))


def sample_timestamps(
    duration_seconds: float, *, mode: Literal["uniform", "fps"], num_frames: int, fps: float, max_frames: int
) -> Seconds:
    """Return the ascending times in seconds at which to take frames, within ``[0, duration_seconds)``.

    ``uniform`` gives the centers of ``num_frames`` equal spans. ``fps`` gives 0, 1/fps, 2/fps, … If ``fps`` would give
    more than ``max_frames`` times, it gives ``max_frames`` uniform times instead, so that the limit never cuts off the
    end of a video.
    """
    if mode == "fps":
        count = max(1, math.ceil(duration_seconds * fps - 1e-9))
        if count <= max_frames:
            return np.arange(count, dtype=np.float64) / fps
        num_frames = max_frames
    count = min(num_frames, max_frames)
    return (np.arange(count, dtype=np.float64) + 0.5) * (duration_seconds / count)


def spread(count: int, max_count: int) -> Indices:
    """Return at most ``max_count`` of the indices ``0 … count - 1``, ascending and evenly spread."""
    if count <= max_count:
        return np.arange(count, dtype=np.int64)
    return ((np.arange(max_count, dtype=np.float64) + 0.5) * count / max_count).astype(np.int64)


def nearest(pts_seconds: Seconds, timestamps: Seconds) -> Indices:
    """Return for each timestamp the index of the nearest time in ``pts_seconds``, which must be ascending.

    If two times are equally near, the earlier one is taken.
    """
    after = np.clip(np.searchsorted(pts_seconds, timestamps), 1, max(1, len(pts_seconds) - 1))
    before = after - 1
    if len(pts_seconds) == 1:
        return np.zeros(len(timestamps), dtype=np.int64)
    closer_after = pts_seconds[after] - timestamps < timestamps - pts_seconds[before]
    return np.where(closer_after, after, before).astype(np.int64)


def nearest_distinct(pts_seconds: Seconds, timestamps: Seconds) -> Indices:
    """Choose a different frame for each timestamp, so that the sum of all time differences is as small as possible.

    Return the ascending indices of the frames. Both arguments must be ascending. If there are no more frames than
    timestamps, all frames are returned. If the nearest frames of all timestamps differ, these frames are returned.
    Otherwise timestamps compete for frames only if their nearest frames are close to each other, so each group of such
    timestamps is solved separately.
    """
    if len(timestamps) >= len(pts_seconds):
        return np.arange(len(pts_seconds), dtype=np.int64)
    chosen = nearest(pts_seconds, timestamps)
    if (np.diff(chosen) > 0).all():
        return chosen
    for start, stop in _competing(chosen):
        count = stop - start
        first = max(0, int(chosen[start]) - count + 1)
        last = min(len(pts_seconds), int(chosen[stop - 1]) + count)
        frames = _assign(pts_seconds[first:last].tolist(), timestamps[start:stop].tolist())
        chosen[start:stop] = first + np.array(sorted(frames), dtype=np.int64)
    return chosen


def _competing(chosen: Indices) -> list[tuple[int, int]]:
    """Return the groups of timestamps that may compete for the same frames, as index ranges ``[start, stop)``.

    ``chosen`` holds the nearest frame of each timestamp. Each group has at least two timestamps. In an optimal choice,
    all frames between a timestamp's nearest frame and its chosen frame are taken too. So a group of ``n`` timestamps
    never takes a frame that is ``n`` or more positions away from the nearest frames of the group.
    """
    nearest_of = chosen.tolist()
    groups: list[tuple[int, int]] = []
    for at in range(len(nearest_of)):
        start, stop = at, at + 1
        while groups:
            before = groups[-1]
            reach = nearest_of[before[1] - 1] + (before[1] - before[0] - 1)
            if reach < nearest_of[start] - (stop - start - 1):
                break
            start = groups.pop()[0]
        groups.append((start, stop))
    return [(start, stop) for start, stop in groups if stop - start > 1]


def _assign(frames: list[float], timestamps: list[float]) -> list[int]:
    """Choose a different frame for each timestamp, so that the sum of distances is as small as possible.

    Return the indices of the chosen frames. The algorithm goes through all n frames and timestamps in order of time, in
    O(n log n). At each step, f(b) is the smallest cost so far if b timestamps are still unmatched. For negative b, -b
    frames are still unmatched. The function f is convex, and each slope of f is the price of taking one more frame.
    ``surplus`` holds the slopes below b = 0, and ``taken`` holds the others.
    """
    events = sorted([(time, 0, at) for at, time in enumerate(frames)] + [(time, 1, -1) for time in timestamps])
    surplus: list[tuple[float, int]] = []
    taken: list[tuple[float, int, int]] = []
    travelled = 0.0
    previous = events[0][0]
    for rank, (time, is_timestamp, frame) in enumerate(events):
        travelled += time - previous
        previous = time
        # With the distance travelled, the price of a surplus frame falls, and the price of a taken frame rises. Prices
        # are stored relative to the distance, so that they need no update.
        if is_timestamp:
            price, other = surplus.pop() if surplus else (-math.inf, -1)
            heapq.heappush(taken, (price - 2 * travelled, -rank, other))
        else:
            price, _, other = heapq.heappushpop(taken, (-travelled, -rank, frame))
            surplus.append((price + 2 * travelled, other))
    return [frame for _, _, frame in taken]
