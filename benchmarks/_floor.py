"""What embedding costs without a pipeline: decoding alone and the model alone, in plain processes, one a processor."""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from raypipe.config import EmbedConfig
from raypipe.models.backbones import Dtype
from raypipe.video.protocol import DecodeRequest

SLOTS = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Seconds:
    """Of one process: by the clock, and of the processor, which other work on the machine hardly changes."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def __mul__(self, times: float) -> "Seconds":
        return Seconds(self.wall * times, self.cpu * times)

    def halfway(self, other: "Seconds") -> "Seconds":
        """The mean of two measures of the same."""
        return (self + other) * 0.5


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> Seconds:
        """Until now."""
        return Seconds(time.perf_counter() - self._wall, time.process_time() - self._cpu)


@dataclass(frozen=True)
class Floor:
    """What each video costs one processor; keys are file names."""

    decode: Mapping[str, Seconds]
    num_frames: Mapping[str, int]
    per_frame: Seconds  # of the model

    def work(self, names: Iterable[str]) -> Seconds:
        """Decoding these videos and embedding their frames."""
        names = list(names)
        frames = sum(self.num_frames[name] for name in names)
        return sum((self.decode[name] for name in names), Seconds()) + self.per_frame * frames

    @property
    def decode_wall_seconds(self) -> float:
        """Decoding of all, shared evenly by all processors."""
        return sum(one.wall for one in self.decode.values()) / SLOTS

    @property
    def model_wall_seconds(self) -> float:
        """The model on all frames, shared evenly by all processors."""
        return sum(self.num_frames.values()) * self.per_frame.wall / SLOTS

    @property
    def wall_seconds(self) -> float:
        """Both: they share the processors."""
        return self.decode_wall_seconds + self.model_wall_seconds

    def halfway(self, other: "Floor") -> "Floor":
        """The mean of this and of the floor measured after the work that both are held against."""
        decode = {name: spent.halfway(other.decode[name]) for name, spent in self.decode.items()}
        return Floor(decode, self.num_frames, self.per_frame.halfway(other.per_frame))


def settle(config: EmbedConfig) -> tuple[DecodeRequest, Dtype]:
    """What raypipe asks of a video under this configuration, and the dtype that it computes in here."""
    from raypipe.jobs.embed.job import prepare  # noqa: PLC0415
    from raypipe.models.backbones import resolve_dtype  # noqa: PLC0415

    dtype = resolve_dtype(config.backbone.dtype, "cpu")
    return prepare(config, dtype=dtype).decode_request, dtype


def measure_floor(paths: Sequence[Path], config: EmbedConfig) -> Floor:
    """Decode every video, and embed a quarter as many frames as they have, in one process a processor."""
    decoded = decode_all(paths, config)
    num_frames = {name: frames for name, (frames, _) in decoded.items()}
    share = -(-sum(num_frames.values()) // (4 * SLOTS))
    work = partial(embed_some, name=config.backbone.name, dtype=settle(config)[1])
    with _processes() as pool:
        seconds = list(pool.map(work, [share] * SLOTS))
    return Floor(
        decode={name: spent for name, (_, spent) in decoded.items()},
        num_frames=num_frames,
        per_frame=sum(seconds, Seconds()) * (1 / (SLOTS * share)),
    )


def decode_all(paths: Sequence[Path], config: EmbedConfig) -> dict[str, tuple[int, Seconds]]:
    """Frames and cost of each video, all processors busy with them; keys are file names."""
    with _processes() as pool:
        decoded = list(pool.map(partial(decode_one, request=settle(config)[0]), paths))
    return dict(zip((path.name for path in paths), decoded, strict=True))


def _processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(SLOTS, mp_context=get_context("spawn"))


def decode_one(path: Path, request: DecodeRequest) -> tuple[int, Seconds]:
    """The number of frames of one video and what they cost: the decoder in this process, no sandbox, no Ray."""
    from _decoding import decode_here  # noqa: PLC0415

    frames, spent = decode_here(path, request)
    return len(frames), spent


def embed_some(count: int, name: str, dtype: Dtype) -> Seconds:
    """Seconds of the model for so many frames: one thread, nothing but batches."""
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from raypipe.models.backbone import Backbone  # noqa: PLC0415
    from raypipe.models.networks import preprocessing  # noqa: PLC0415
    from raypipe.models.weights import resolve_weights  # noqa: PLC0415

    torch.set_num_threads(1)
    weights = resolve_weights(name, "random", read_bytes=lambda _: b"")
    model = Backbone(weights.state_dict, name=name, dtype=dtype)
    crop = preprocessing(name).crop_size
    frames = np.random.default_rng(0).integers(0, 256, (64, crop, crop, 3), dtype=np.uint8)
    model.embed(frames[:16])
    watch = Stopwatch()
    for at in range(0, count, len(frames)):
        model.embed(frames[: count - at])
    return watch.read()
