"""The edge to Ray: connect, see what the cluster has, and run shards through the stages."""

import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, Dataset

from raypipe.config import ResourcesConfig
from raypipe.embed.stages import (
    SUMMARY,
    DecodeSettings,
    DecodeVideos,
    EmbedFrames,
    EmbedSettings,
    PutSettings,
    PutShard,
    RunSteps,
    SkipCommitted,
    Steps,
)
from raypipe.errors import SetupError
from raypipe.models.backbone import Dtype, resolve_dtype
from raypipe.report import ShardSummary

_PUT_CPUS = 0.1
_PUTS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Placement:
    """How many actors there are of what. Without a GPU every actor decodes, embeds and puts."""

    decode_actors: int
    decode_cpus: float
    gpu_actors: int = 0
    gpus_per_actor: float = 0.0
    device: str = "cpu"


def connect() -> None:
    """Connect to the cluster that ``RAY_ADDRESS`` names or that runs here, or start one in this process."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine unasked
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet = logging.getLogger("raypipe").getEffectiveLevel() > logging.DEBUG
    if quiet:  # Ray's native half reports how Ray Data always starts its actors as an error
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        with _native_output_hidden() if quiet else nullcontext():
            ray.init(
                include_dashboard=False,
                log_to_driver=not quiet,
                logging_level=logging.ERROR if quiet else logging.INFO,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        msg = (
            f"Cannot connect to Ray at {os.environ.get('RAY_ADDRESS', 'this machine')!r}: {reason}. Run raypipe doctor."
        )
        raise SetupError(msg) from None
    configure_data()
    if quiet:
        logging.getLogger("ray.data").setLevel(logging.ERROR)


def configure_data() -> None:
    """What Ray Data must do and leave in this process: a block stays a shard, and progress is ours to show."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = None


def reason_of(error: Exception) -> str:
    """The last line of what Ray says, which is the exception that a worker raised."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return lines[-1].strip().rstrip(".")[:300] if lines else type(error).__name__


@contextmanager
def _native_output_hidden() -> Iterator[None]:
    """Keep what native code prints, such as its log level, off the terminal; failures are exceptions all the same."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(stream, os.dup(stream)) for stream in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream, _ in kept:
            os.dup2(nowhere, stream)
        yield
    finally:
        os.close(nowhere)
        for stream, copy in kept:
            os.dup2(copy, stream)
            os.close(copy)


def place(resources: ResourcesConfig) -> Placement:
    """Divide what the cluster has among actors.

    Raises:
        SetupError: the cluster has less than one actor needs.
    """
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    wanted = resources.embed_gpus
    gpus_per_actor = (1.0 if gpus else 0.0) if wanted == "auto" else wanted
    if gpus_per_actor > gpus or resources.decode_cpus > cpus:
        msg = (
            f"resources.embed_gpus={wanted} and resources.decode_cpus={resources.decode_cpus:g}: the cluster has "
            f"{gpus:g} GPUs and {cpus:g} CPUs. Lower them, or add nodes."
        )
        raise SetupError(msg)
    gpu_actors = int(gpus // gpus_per_actor) if gpus_per_actor else 0
    reserved = _PUT_CPUS * _PUTS_AT_ONCE if gpu_actors else 0.0
    fitting = max(1, int((cpus - reserved) // resources.decode_cpus))
    decode_actors = fitting if resources.concurrency == "auto" else resources.concurrency
    device = "cuda" if gpu_actors else "cpu"
    return Placement(decode_actors, resources.decode_cpus, gpu_actors, gpus_per_actor, device)


def dtype_where_it_runs(dtype: Literal["auto", "float32", "bfloat16"], placement: Placement) -> Dtype:
    """What ``auto`` means for the processors that embed, which are not the driver's where the cluster has GPUs."""
    if dtype != "auto" or placement.device == "cpu":
        return resolve_dtype(dtype, "cpu")
    ask = ray.remote(num_gpus=placement.gpus_per_actor, num_cpus=0)(resolve_dtype)
    return ray.get(ask.remote(dtype, placement.device))


def run_shards(
    blocks: Sequence[pa.Table],
    placement: Placement,
    *,
    decode: DecodeSettings,
    embed: EmbedSettings,
    put: PutSettings,
) -> Iterator[ShardSummary]:
    """Take every block through decode, embed and put; yield the summaries as shards finish, in any order."""
    shards: Dataset = ray.data.from_arrow(list(blocks))
    busy = len(blocks)  # more actors than shards would only start and end
    decode_steps = ((SkipCommitted, put), (DecodeVideos, decode))
    if placement.gpu_actors:
        shards = _stage(shards, decode_steps, min(busy, placement.decode_actors), num_cpus=placement.decode_cpus)
        gpus = placement.gpus_per_actor
        shards = _stage(shards, ((EmbedFrames, embed),), min(busy, placement.gpu_actors), num_cpus=0, num_gpus=gpus)
        shards = _stage(shards, ((PutShard, put),), min(busy, _PUTS_AT_ONCE), num_cpus=_PUT_CPUS)
    else:
        steps = (*decode_steps, (EmbedFrames, embed), (PutShard, put))
        shards = _stage(shards, steps, min(busy, placement.decode_actors), num_cpus=placement.decode_cpus)
    for row in shards.iter_rows():
        yield row[SUMMARY]


def _stage(
    shards: Dataset, steps: Steps, num_actors: int, *, num_cpus: float, num_gpus: float | None = None
) -> Dataset:
    """One stage of actors; a shard waits for a free actor, not behind another shard in an actor's queue."""
    return shards.map_batches(
        RunSteps,
        fn_constructor_kwargs={"steps": steps},
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(size=num_actors, max_tasks_in_flight_per_actor=1),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
