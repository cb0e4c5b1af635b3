"""Requests to a decoder, and packet indexes that need no file."""

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from raypipe.video.decode_request import DecodeLimits, DecodeRequest
from raypipe.video.packet_index import PacketIndex


def resnet_request(num_frames: int) -> DecodeRequest:
    """Return what ``raypipe embed`` asks of a video for a ResNet."""
    return DecodeRequest(
        mode="uniform",
        num_frames=num_frames,
        fps=1.0,
        max_frames=num_frames,
        nearest_keyframe=False,
        loop_filter=True,
        resize_size=256,
        crop_size=224,
        limits=DecodeLimits(max_pixels=2**25, max_duration_seconds=3600),
    )


def packet_index(
    pts: npt.NDArray[np.int64],
    is_keyframe: npt.NDArray[np.bool_],
    *,
    time_base: Fraction,
    fps: float,
    duration_seconds: float,
    is_shown: npt.NDArray[np.bool_] | None = None,
    container: str = "mov",
    codec: str = "h264",
) -> PacketIndex:
    """Return the index of a whole video with such packets."""
    return PacketIndex(
        pts=pts,
        is_keyframe=is_keyframe,
        is_shown=np.ones(len(pts), dtype=np.bool_) if is_shown is None else is_shown,
        time_base=time_base,
        container=container,
        codec=codec,
        width=96,
        height=72,
        average_fps=fps,
        duration_seconds=duration_seconds,
        end_seconds=duration_seconds,
    )
