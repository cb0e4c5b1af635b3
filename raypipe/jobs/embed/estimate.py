"""Estimate the time and cost of an embed run: list the input and measure a few videos. Nothing is written."""

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow.compute as pc
from rich.padding import Padding

from raypipe import schema
from raypipe.config import EmbedConfig
from raypipe.dataset.plan import PlannedVideo, StoredPlans
from raypipe.jobs.embed.inputs import Planning, is_too_much, pack
from raypipe.jobs.embed.job import EmbedJob
from raypipe.jobs.embed.quantizing import with_int8_network
from raypipe.jobs.embed.setup import EmbedSetup, prepare, unstored_shard
from raypipe.jobs.embed.shard import decode_shard, embed_shard
from raypipe.models.backbones import Engine, resolve_dtype, resolve_engine
from raypipe.models.engines import load_embedder
from raypipe.models.int8_files import Agreement
from raypipe.runs.job import runs_locally
from raypipe.runs.stages import output_rows
from raypipe.runs.summary_tables import summary_table
from raypipe.status import HAS_FRAMES
from raypipe.text import format_seconds, format_skipped
from raypipe.video.sandbox.parent import DecodeSandbox

_PROBE_VIDEOS = 30
# Starting and stopping everything takes this many times as long as a probe process takes to get ready. Both consist of
# imports and process starts, so a slow machine is slow at both. Measured by benchmarks/startup.py on two processors.
_START_PER_READY = {"ray": 4.0, "local": 2.0}


@dataclass
class Estimate:
    """The result of a dry run.

    ``fetch_seconds``, ``decode_seconds`` and ``embed_seconds`` are the work of one processor. ``wall_seconds`` assumes
    that the work is divided among all slots.
    """

    engine: Engine = "torch"  # of the backbone, on this machine
    dtype: str = ""
    int8: Agreement | None = None  # of the vectors of an int8 network with those in float32
    num_found: int = 0
    num_new: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)  # files that are not taken for videos, by reason
    num_gone: int = 0  # videos that embed would mark as gone
    gone_is_refused: bool = False  # embed would fail, because max_gone_fraction does not allow this many
    size_bytes: int = 0
    num_shards: int = 0
    slots: int = 1
    num_probed: int = 0
    kinds: Counter[str] = field(default_factory=Counter)  # probed videos by format ("mov/h264 1280x720") or status
    fetch_seconds: float = 0.0  # the time that decoding waits for the download of all new videos
    decode_seconds: float = 0.0
    embed_seconds: float = 0.0
    start_seconds: float = 0.0  # the time to start and stop the workers, and Ray if it is used

    @property
    def wall_seconds(self) -> float:
        """The seconds from the start of the command to the last commit, if every slot is busy until the end."""
        return self.start_seconds + sum(self.stage_seconds.values()) / self.slots

    @property
    def stage_seconds(self) -> dict[str, float]:
        """The seconds of work in each stage on one processor, without the startup."""
        return {"fetch": self.fetch_seconds, "decode": self.decode_seconds, "embed": self.embed_seconds}

    @property
    def bottleneck(self) -> str:
        """The stage that takes most of the time."""
        return max(self.stage_seconds, key=lambda stage: self.stage_seconds[stage])


def estimate(config: EmbedConfig) -> Estimate:
    """List the input, skip the videos that are already planned, and measure a few of the rest on this machine's CPUs.

    Raises:
        SetupError: the input, the output or the weights are not available.
        FingerprintError: the output holds rows that were made with other settings.
    """
    setup = prepare(config, dtype=resolve_dtype(config.backbone.dtype, "cpu"))
    engine = resolve_engine(config.backbone.wanted_engine, "cpu", setup.dtype)
    if setup.dtype == "int8":
        setup = with_int8_network(setup, store=False)
    stored = StoredPlans(setup.output)
    planning = Planning.load(stored, setup.settings, config.input, retry=config.retry, gone=config.gone)
    agreement = None if setup.int8 is None else setup.int8.facts.agreement
    result = Estimate(engine, setup.dtype, agreement, slots=_slots(config))
    new = list(planning.new_videos())
    result.size_bytes = sum(video.size_bytes for video in new)
    result.num_found, result.skipped = planning.num_found, planning.listed.skipped
    gone = planning.gone()
    result.num_gone = gone.num_videos
    result.gone_is_refused = is_too_much(gone, max_gone_fraction=config.max_gone_fraction)
    planning.check_found()
    result.num_new = len(new)
    if new:
        shard, frames = config.shard, config.sampling.frames_per_video
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
    """Measure a sample of the new videos, of all sizes, and extrapolate its cost to all new videos in ``result``.

    Several processes each measure an equal share of the sample. A process runs the same steps as an actor without a
    GPU, except for the commit.

    Raises:
        StorageError: the storage as a whole cannot be read.
    """
    by_size = sorted(new, key=lambda video: video.size_bytes)
    result.num_probed = min(_PROBE_VIDEOS, len(by_size))
    chosen = [by_size[int((at + 0.5) * len(by_size) / result.num_probed)] for at in range(result.num_probed)]
    count = max(1, min(result.slots, len(chosen), len(os.sched_getaffinity(0))))
    shares = [chosen[first::count] for first in range(count)]
    spawn = multiprocessing.get_context("spawn")  # forking a process that has loaded torch and Ray is unsafe
    with ProcessPoolExecutor(count, mp_context=spawn) as pool:
        parts = list(pool.map(partial(_measure, setup, result.engine, time.time()), shares))
    scale = len(new) / result.num_probed
    result.kinds = sum((part.kinds for part in parts), Counter())
    is_local = runs_locally(EmbedJob(setup.config), num_rows=len(new))
    result.start_seconds = _START_PER_READY["local" if is_local else "ray"] * max(part.start_seconds for part in parts)
    result.fetch_seconds = scale * sum(part.fetch_seconds for part in parts)
    result.decode_seconds = scale * sum(part.decode_seconds for part in parts)
    result.embed_seconds = scale * sum(part.embed_seconds for part in parts)


def estimate_table(result: Estimate, *, hourly_price: float | None = None) -> Padding:
    """Return the estimate as a table for the terminal. ``hourly_price`` is the price per hour of this machine."""
    size = f"{result.size_bytes / 1e9:,.2f} GB in {result.num_shards:,} shards"
    refused = "  (embed refuses to mark this many without --set max_gone_fraction=1)" if result.gone_is_refused else ""
    rows = [
        ("videos found", f"{result.num_found:,}"),
        ("new", f"{result.num_new:,}  ({size})"),
        ("skipped files", format_skipped(result.skipped)),
        ("gone", f"{result.num_gone:,}  to be marked{refused}" if result.num_gone else ""),
    ]
    if not result.num_new:
        return summary_table(rows)
    kinds = ", ".join(f"{count}x {kind}" for kind, count in result.kinds.most_common(6))
    total = max(sum(result.stage_seconds.values()), 1e-9)
    start = f"including {format_seconds(result.start_seconds)} of startup"
    hours = result.wall_seconds / 3600
    price = f" = {hourly_price * hours:,.2f} at {hourly_price:g} per hour" if hourly_price else ""
    rows += [
        ("probe", f"{result.num_probed} videos: {kinds}"),
        *(
            (stage, f"{format_seconds(seconds)} of one processor  ({seconds / total:.0%})")
            for stage, seconds in result.stage_seconds.items()
        ),
        ("bottleneck", result.bottleneck),
        ("engine", f"{result.engine} {result.dtype}{_agreement(result.int8)}"),
        ("time", f"{format_seconds(result.wall_seconds)} on {result.slots} processors without a GPU, {start}"),
        ("cost", f"{hours:,.3f} machine hours{price}"),
    ]
    return summary_table(rows)


def _agreement(int8: Agreement | None) -> str:
    if int8 is None:
        return ""
    cosines = f"median cosine to float32 {int8.cosine_median:.4f}, first percentile {int8.cosine_p01:.4f}"
    return f"  ({cosines}; {int8.same_neighbor:.0%} of {int8.num_videos} videos keep their nearest neighbor)"


def _measure(setup: EmbedSetup, engine: Engine, started_at: float, videos: Sequence[PlannedVideo]) -> Estimate:
    """Measure ``videos`` in this process, on one processor. Only the seconds and the kinds of the result are set.

    The other probe processes run at the same time, so that all processors are as busy as in a real run. ``started_at``
    is the Unix time at which the process was started, and ``start_seconds`` of the result the time until it was ready.
    """
    backbone, decode = setup.config.backbone, setup.config.decode
    int8 = setup.int8
    model = load_embedder(
        backbone.name,
        lambda: setup.weights.state_dict,
        None if int8 is None else lambda: int8.network,
        engine=engine,
        dtype=setup.dtype,
        num_threads=1,
        batch_size=backbone.batch_size,
        compile=backbone.compile,
    )
    dim, side = setup.embedding_dim, setup.decode_request.crop_size
    with DecodeSandbox.start(setup.decode_request, decode) as sandbox:
        ready = time.time()
        decoded = decode_shard(unstored_shard(videos), sandbox, max_size_bytes=decode.max_size_bytes)
        decoded_at = time.time()
        embedded = embed_shard(decoded, model.embed, embedding_dim=dim, crop_size=side)
        rows = output_rows(embedded, schema.embeddings_schema(dim, vectors=setup.vectors))
        embed_seconds = time.time() - decoded_at
    decode_seconds = float(pc.sum(rows[schema.DECODE_SECONDS]).as_py())
    return Estimate(
        # Decoding waits less than the downloads take, because the next videos are fetched while one is decoded.
        fetch_seconds=max(0.0, decoded_at - ready - decode_seconds),
        decode_seconds=decode_seconds,
        embed_seconds=embed_seconds,
        start_seconds=ready - started_at,
        kinds=Counter(map(_kind, rows.to_pylist())),
    )


def _kind(row: Mapping[str, Any]) -> str:
    if row[schema.STATUS] not in HAS_FRAMES:
        return str(row[schema.STATUS])
    return f"{row[schema.CONTAINER]}/{row[schema.CODEC]} {row[schema.WIDTH]}x{row[schema.HEIGHT]}"
