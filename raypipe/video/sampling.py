"""Which frames of a video to take: pure functions of times and counts."""

import heapq
import math
from typing import Literal

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def sample_timestamps(
    duration_seconds: float,
    *,
    mode: Literal["uniform", "fps"],
    num_frames: int,
    fps: float,
    max_frames: int,
) -> Seconds:
    """Times to take a frame at, ascending, within ``[0, duration_seconds)``.

    ``uniform``: the centres of ``num_frames`` equal spans. ``fps``: 0, 1/fps, 2/fps, …; where those are more than
    ``max_frames``, ``max_frames`` uniform ones instead, so that a cap never cuts off the end of a video.
    """
    if mode == "fps":
        count = max(1, math.ceil(duration_seconds * fps - 1e-9))
        if count <= max_frames:
            return np.arange(count, dtype=np.float64) / fps
        num_frames = max_frames
    count = min(num_frames, max_frames)
    return (np.arange(count, dtype=np.float64) + 0.5) * (duration_seconds / count)


def spread(count: int, max_count: int) -> Indices:
    """At most ``max_count`` of the indices ``0 … count - 1``, ascending and evenly spread."""
    if count <= max_count:
        return np.arange(count, dtype=np.int64)
    return ((np.arange(max_count, dtype=np.float64) + 0.5) * count / max_count).astype(np.int64)


def nearest(pts_seconds: Seconds, timestamps: Seconds) -> Indices:
    """For each timestamp the index of the nearest of the ascending ``pts_seconds``; a tie takes the earlier."""
    after = np.clip(np.searchsorted(pts_seconds, timestamps), 1, max(1, len(pts_seconds) - 1))
    before = after - 1
    if len(pts_seconds) == 1:
        return np.zeros(len(timestamps), dtype=np.int64)
    closer_after = pts_seconds[after] - timestamps < timestamps - pts_seconds[before]
    return np.where(closer_after, after, before).astype(np.int64)


def nearest_distinct(pts_seconds: Seconds, timestamps: Seconds) -> Indices:
    """Ascending indices of different frames, one for each timestamp or all, whose distances have the least sum.

    Both arguments ascend. Where the nearest frames differ already, these are taken. Otherwise only timestamps whose
    nearest frames are close to each other compete, so only they are assigned together.
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
    """Ranges ``[start, stop)`` of timestamps that may want the same frames; those of one timestamp are left out.

    Of an optimal choice the frames between a timestamp's nearest one and its own are all taken, so ``n`` timestamps
    that compete take none that is ``n`` or more beyond their nearest ones.
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
    """The frames to take, one for each timestamp, with the least sum of distances: O(n log n) for n of both.

    From left to right, f(b) is the least cost with b timestamps (below 0: frames) still to be matched; it is convex.
    Each of its slopes is the price of taking one frame more: ``surplus`` has those below b = 0, ``taken`` the others.
    """
    events = sorted([(time, 0, at) for at, time in enumerate(frames)] + [(time, 1, -1) for time in timestamps])
    surplus: list[tuple[float, int]] = []
    taken: list[tuple[float, int, int]] = []
    travelled = 0.0
    previous = events[0][0]
    for rank, (time, is_timestamp, frame) in enumerate(events):
        travelled += time - previous
        previous = time
        # A price falls with the distance while it is a surplus, and rises while it is taken; it is kept relative.
        if is_timestamp:
            price, other = surplus.pop() if surplus else (-math.inf, -1)
            heapq.heappush(taken, (price - 2 * travelled, -rank, other))
        else:
            price, _, other = heapq.heappushpop(taken, (-travelled, -rank, frame))
            surplus.append((price + 2 * travelled, other))
    return [frame for _, _, frame in taken]
