"""Which frames of a video to take: pure functions of times and counts."""

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
