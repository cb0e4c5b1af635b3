"""Which frames of an indexed video to take for a sampling policy."""

from dataclasses import dataclass

import numpy as np

from raypipe.video.index import VideoIndex
from raypipe.video.protocol import DecodeRequest
from raypipe.video.sampling import Indices, Seconds, nearest, nearest_distinct, sample_timestamps, spread


@dataclass(frozen=True, slots=True)
class Wanted:
    """The frames asked for, ascending in time; T of them, a frame may be wanted twice."""

    packets: Indices  # [T] positions in decoding order
    pts_seconds: Seconds  # [T] from the first frame


def choose_frames(index: VideoIndex, request: DecodeRequest) -> Wanted:
    """Which packets to decode for a sampling policy. Times the file was cut off before are not among them."""
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


def asked_timestamps(index: VideoIndex, request: DecodeRequest) -> Seconds:
    """The timestamps of ``uniform`` and ``fps``, over the duration that the container promises."""
    return sample_timestamps(
        index.duration_seconds,
        mode="fps" if request.mode == "fps" else "uniform",
        num_frames=request.num_frames,
        fps=request.fps,
        max_frames=request.max_frames,
    )


def _readable(index: VideoIndex, timestamps: Seconds) -> Seconds:
    """Leave out the times of frames that were cut off or that damage hides."""
    timestamps = timestamps[timestamps < index.end_seconds]
    for start, stop in index.lost_spans:
        timestamps = timestamps[(timestamps < start) | (timestamps >= stop)]
    return timestamps


def _are_distinct(request: DecodeRequest) -> bool:
    """Whether no frame is taken twice. Before row format 2 a short video gave some frames more than once."""
    return request.mode == "uniform" and not request.nearest_keyframe and request.row_format > 1


def num_frames_asked(index: VideoIndex, request: DecodeRequest, wanted: Wanted) -> int:
    """How many frames an undamaged file would have given."""
    if request.mode in {"all", "keyframes"}:
        return len(wanted.packets)
    count = len(asked_timestamps(index, request))
    if not _are_distinct(request):
        return count
    lost = sum(stop - start for start, stop in index.lost_spans)
    there = int(index.is_shown.sum())
    return min(count, max(there, round(there * index.duration_seconds / (index.end_seconds - lost))))
