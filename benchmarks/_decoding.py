"""Decoding in this process: the very function that the sandbox's child runs, without the sandbox."""

import functools
import mmap
from dataclasses import asdict
from pathlib import Path

from _floor import Seconds, Stopwatch

from raypipe.status import Status
from raypipe.video.protocol import DecodeRequest, Limits, Pixels, SharedFrames
from raypipe.video.worker import decode_video

EXACT = DecodeRequest(
    mode="uniform",
    num_frames=16,
    fps=1.0,
    max_frames=16,
    nearest_keyframe=False,
    loop_filter=True,
    resize_size=256,
    crop_size=224,
    limits=Limits(max_pixels=33_177_600, max_duration_seconds=43_200),
)


def decode_here(path: Path, request: DecodeRequest, decoder: str = "pyav") -> tuple[Pixels, Seconds]:
    """The frames of a video, and what they cost; none where the decoder fails on it."""
    shared = _shared(request.crop_size, request.max_frames)
    watch = Stopwatch()
    with path.open("rb") as file:
        reply = decode_video(file, asdict(request), decoder=decoder, shared=shared)
    spent = watch.read()
    return shared.frames[: reply.num_frames if reply.status == Status.OK else 0].copy(), spent


@functools.cache
def _shared(crop_size: int, max_frames: int) -> SharedFrames:
    memory = mmap.mmap(-1, SharedFrames.size_bytes(crop_size=crop_size, max_frames=max_frames))
    return SharedFrames(memory, crop_size=crop_size, max_frames=max_frames)
