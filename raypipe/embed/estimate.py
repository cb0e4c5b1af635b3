"""What an embed run would do and cost, from a listing and a probe of a few videos. Writes nothing."""

import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from rich import box
from rich.table import Table

from raypipe.config import EmbedConfig
from raypipe.embed.catalogue import find_videos
from raypipe.embed.fetch import decode_fetched, fetch_video
from raypipe.embed.packing import pack
from raypipe.embed.pipeline import Setup, prepare
from raypipe.errors import ConfigError
from raypipe.models.backbone import Backbone, resolve_dtype
from raypipe.sealed.plan import Video
from raypipe.sealed.planner import Planner
from raypipe.video.sandbox import DecodeSandbox

_PROBE_VIDEOS = 12
_PROBE_FRAMES = 16


@dataclass
class Estimate:
    """The answer of a dry run; seconds are of one processor, wall seconds of all of them together."""

    num_found: int = 0
    num_new: int = 0
    size_bytes: int = 0
    num_shards: int = 0
    slots: int = 1
    num_probed: int = 0
    kinds: Counter[str] = field(default_factory=Counter)  # "mov/h264 1280x720", or a status, of the probe
    fetch_seconds: float = 0.0  # of all new videos
    decode_seconds: float = 0.0
    embed_seconds: float = 0.0

    @property
    def wall_seconds(self) -> float:
        """How long the work takes when every slot is busy; starting Ray comes on top."""
        return (self.fetch_seconds + self.decode_seconds + self.embed_seconds) / self.slots

    @property
    def bottleneck(self) -> str:
        """The stage that takes most of the time."""
        stages = {"fetch": self.fetch_seconds, "decode": self.decode_seconds, "embed": self.embed_seconds}
        return max(stages, key=lambda stage: stages[stage])


def estimate(config: EmbedConfig) -> Estimate:
    """List, subtract what is planned, and measure a few videos and the model on this machine's processors.

    Raises:
        SetupError: the input, the output or the weights cannot be had.
        FingerprintError: the output holds rows of other settings.
    """
    setup = prepare(config, dtype=resolve_dtype(config.backbone.dtype, "cpu"))
    planner = Planner(setup.output, setup.settings, config.input)
    planner.load()
    result = Estimate(slots=_slots(config))
    new: list[Video] = []
    for video in planner.new_videos(
        _count(find_videos(config.input, output_uri=config.output), result), retry=config.retry
    ):
        new.append(video)
        result.size_bytes += video.size_bytes
    if not result.num_found and not planner.known:
        msg = f"No video under {config.input!r}. Give a folder, a prefix, a glob or a manifest that names some."
        raise ConfigError(msg)
    result.num_new = len(new)
    if new:
        shard = config.shard
        frames = config.sampling.frames_per_video
        table = pack(
            new, max_videos=shard.max_videos, max_frames=shard.max_frames, frames_per_video=frames, slots=result.slots
        )
        result.num_shards = table["shard"][-1].as_py() + 1
        _probe(setup, new, result)
    return result


def _count(videos: Iterable[Video], result: Estimate) -> Iterable[Video]:
    for video in videos:
        result.num_found += 1
        yield video


def _slots(config: EmbedConfig) -> int:
    if config.resources.concurrency != "auto":
        return config.resources.concurrency
    return max(1, int(len(os.sched_getaffinity(0)) // config.resources.decode_cpus))


def _probe(setup: Setup, new: list[Video], result: Estimate) -> None:
    """Decode videos of every size, and embed their frames; extend both to the catalogue."""
    decode, backbone = setup.config.decode, setup.config.backbone
    by_size = sorted(new, key=lambda video: video.size_bytes)
    count = min(_PROBE_VIDEOS, len(by_size))
    chosen = [by_size[int((at + 0.5) * len(by_size) / count)] for at in range(count)]
    num_frames = 0
    with DecodeSandbox(
        setup.decode_request,
        decoder=decode.decoder,
        timeout_seconds=decode.timeout_seconds,
        memory_bytes=decode.memory_bytes,
    ) as sandbox:
        sandbox.isolation()  # starts the child, which is not part of a video's time
        for video in chosen:
            fetched = fetch_video(video, max_size_bytes=decode.max_size_bytes)
            decoded, fetching, decoding = decode_fetched(fetched, sandbox)
            result.fetch_seconds += fetching
            result.decode_seconds += decoding
            num_frames += len(decoded.frames)
            size = f"{decoded.container}/{decoded.codec} {decoded.width}x{decoded.height}"
            result.kinds[size if len(decoded.frames) else str(decoded.status)] += 1
    torch.set_num_threads(1)
    model = Backbone(
        setup.weights.state_dict,
        name=backbone.name,
        dtype=setup.dtype,
        batch_size=backbone.batch_size,
        compile=backbone.compile,
    )
    crop = setup.preprocessing.crop_size
    frames = np.random.default_rng(0).integers(0, 256, (_PROBE_FRAMES, crop, crop, 3), dtype=np.uint8)
    model.embed(frames)
    start = time.perf_counter()
    model.embed(frames)
    result.embed_seconds = (time.perf_counter() - start) / _PROBE_FRAMES * num_frames
    result.num_probed = count
    scale = len(new) / count
    result.fetch_seconds *= scale
    result.decode_seconds *= scale
    result.embed_seconds *= scale


def estimate_table(result: Estimate, *, hourly_price: float | None = None) -> Table:
    """The estimate for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False, show_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("videos found", f"{result.num_found:,}")
    table.add_row("new", f"{result.num_new:,}  ({result.size_bytes / 1e9:,.2f} GB in {result.num_shards:,} shards)")
    if not result.num_new:
        return table
    table.add_row(
        "probe", f"{result.num_probed} videos: " + ", ".join(f"{n}x {kind}" for kind, n in result.kinds.most_common(6))
    )
    total = result.fetch_seconds + result.decode_seconds + result.embed_seconds
    for stage, seconds in (
        ("fetch", result.fetch_seconds),
        ("decode", result.decode_seconds),
        ("embed", result.embed_seconds),
    ):
        table.add_row(stage, f"{_duration(seconds)} of one processor  ({seconds / max(total, 1e-9):.0%})")
    table.add_row("bottleneck", result.bottleneck)
    table.add_row("time", f"{_duration(result.wall_seconds)} on {result.slots} processors, all busy, with no GPU")
    price = f" = {hourly_price * result.wall_seconds / 3600:,.2f} at {hourly_price:g} an hour" if hourly_price else ""
    table.add_row("cost", f"{result.wall_seconds / 3600:,.3f} machine hours{price}")
    return table


def _duration(seconds: float) -> str:
    if seconds < 60:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"  # noqa: PLR2004
