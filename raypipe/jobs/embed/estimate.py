"""What an embed run would do and cost, from a listing and a probe of a few videos. Writes nothing."""

import os
from collections import Counter
from dataclasses import dataclass, field

from rich.padding import Padding

from raypipe.config import EmbedConfig
from raypipe.dataset.plan import PlannedVideo, StoredPlans
from raypipe.jobs.embed.inputs import Planning, is_too_much, pack
from raypipe.jobs.embed.job import EmbedSetup, prepare
from raypipe.jobs.embed.rates import ProbeSettings, measure_rates
from raypipe.models.backbones import resolve_dtype
from raypipe.runs.summary_tables import summary_table
from raypipe.text import format_seconds

_PROBE_VIDEOS = 30
# Ray's start, the actors' and the end of all, in times of what a process of the probe takes until it is ready: both are
# imports and processes that start, so a slow machine is slow at both. By benchmarks/startup.py on two processors.
_START_PER_READY = 4.0


@dataclass
class Estimate:
    """The answer of a dry run; seconds are of one processor, wall seconds of all of them together."""

    num_found: int = 0
    num_new: int = 0
    num_gone: int = 0  # to be marked
    gone_is_refused: bool = False  # embed would end with an error instead: see max_gone_fraction
    size_bytes: int = 0
    num_shards: int = 0
    slots: int = 1
    num_probed: int = 0
    kinds: Counter[str] = field(default_factory=Counter)  # "mov/h264 1280x720", or a status, of the probe
    fetch_seconds: float = 0.0  # of all new videos: what decoding waits for
    decode_seconds: float = 0.0
    embed_seconds: float = 0.0
    start_seconds: float = 0.0  # of Ray and of the actors, and the end of both

    @property
    def wall_seconds(self) -> float:
        """From the command to the last commit, every slot busy all the time that there is work."""
        return self.start_seconds + sum(self.stage_seconds.values()) / self.slots

    @property
    def stage_seconds(self) -> dict[str, float]:
        """The seconds of each stage, without the start."""
        return {"fetch": self.fetch_seconds, "decode": self.decode_seconds, "embed": self.embed_seconds}

    @property
    def bottleneck(self) -> str:
        """The stage that takes most of the time."""
        return max(self.stage_seconds, key=lambda stage: self.stage_seconds[stage])


def estimate(config: EmbedConfig) -> Estimate:
    """List, subtract what is planned, and measure a few videos and the model on this machine's processors.

    Raises:
        SetupError: the input, the output or the weights cannot be had.
        FingerprintError: the output holds rows of other settings.
    """
    setup = prepare(config, dtype=resolve_dtype(config.backbone.dtype, "cpu"))
    planning = Planning.load(
        StoredPlans(setup.output), setup.settings, config.input, retry=config.retry, gone=config.gone
    )
    result = Estimate(slots=_slots(config))
    new: list[PlannedVideo] = []
    for video in planning.new_videos():
        new.append(video)
        result.size_bytes += video.size_bytes
    result.num_found = planning.num_found
    gone = planning.gone()
    result.num_gone = gone.num_videos
    result.gone_is_refused = is_too_much(gone, max_gone_fraction=config.max_gone_fraction)
    planning.check_found()
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


def _slots(config: EmbedConfig) -> int:
    if config.resources.concurrency != "auto":
        return config.resources.concurrency
    return max(1, int(len(os.sched_getaffinity(0)) // config.resources.decode_cpus))


def _probe(setup: EmbedSetup, new: list[PlannedVideo], result: Estimate) -> None:
    """Measure videos of every size, and extend what they cost to the catalogue."""
    by_size = sorted(new, key=lambda video: video.size_bytes)
    result.num_probed = min(_PROBE_VIDEOS, len(by_size))
    chosen = [by_size[int((at + 0.5) * len(by_size) / result.num_probed)] for at in range(result.num_probed)]
    work = ProbeSettings(setup.decode_request, setup.config.decode, setup.config.backbone, setup.weights, setup.dtype)
    rates = measure_rates(work, chosen, num_processes=result.slots)
    scale = len(new) / result.num_probed
    result.kinds = rates.kinds
    result.start_seconds = _START_PER_READY * rates.ready_seconds
    result.fetch_seconds = scale * rates.fetch_seconds
    result.decode_seconds = scale * rates.decode_seconds
    result.embed_seconds = scale * rates.embed_seconds


def estimate_table(result: Estimate, *, hourly_price: float | None = None) -> Padding:
    """Return the estimate for a terminal. ``hourly_price`` is what a machine like this one costs per hour."""
    size = f"{result.size_bytes / 1e9:,.2f} GB in {result.num_shards:,} shards"
    refused = "  (embed refuses so many without --set max_gone_fraction=1)" if result.gone_is_refused else ""
    rows = [
        ("videos found", f"{result.num_found:,}"),
        ("new", f"{result.num_new:,}  ({size})"),
        ("gone", f"{result.num_gone:,}  to be marked{refused}" if result.num_gone else ""),
    ]
    if not result.num_new:
        return summary_table(rows)
    kinds = ", ".join(f"{count}x {kind}" for kind, count in result.kinds.most_common(6))
    total = max(sum(result.stage_seconds.values()), 1e-9)
    start = f"{format_seconds(result.start_seconds)} of it to start"
    hours = result.wall_seconds / 3600
    price = f" = {hourly_price * hours:,.2f} at {hourly_price:g} an hour" if hourly_price else ""
    rows += [
        ("probe", f"{result.num_probed} videos: {kinds}"),
        *(
            (stage, f"{format_seconds(seconds)} of one processor  ({seconds / total:.0%})")
            for stage, seconds in result.stage_seconds.items()
        ),
        ("bottleneck", result.bottleneck),
        ("time", f"{format_seconds(result.wall_seconds)} on {result.slots} processors without a GPU, {start}"),
        ("cost", f"{hours:,.3f} machine hours{price}"),
    ]
    return summary_table(rows)
