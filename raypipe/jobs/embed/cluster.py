"""Divide a cluster among the stages of embed, and run shards through them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import pyarrow as pa
import ray
import ray.data

from raypipe.config import ResourcesConfig
from raypipe.errors import SetupError
from raypipe.jobs.embed.stages import (
    DecodeSettings,
    DecodeVideos,
    EmbedFrames,
    EmbedSettings,
    PutSettings,
    PutShard,
)
from raypipe.models.backbones import Dtype, resolve_dtype
from raypipe.records import ShardSummary
from raypipe.runs.actors import add_stage, await_resources, pool
from raypipe.runs.stages import SUMMARY, SkipCommitted

_PUTS_AT_ONCE = 4  # where a GPU embeds; they take no CPU from decoding, which is what a GPU waits for


@dataclass(frozen=True, slots=True)
class Placement:
    """How many actors there are of what, and on which nodes. Without a GPU every actor decodes, embeds and puts."""

    decode_actors: int
    decode_cpus: float
    gpu_actors: int = 0
    gpus_per_actor: float = 0.0
    device: str = "cpu"
    may_grow: bool = False
    decode_on: Mapping[str, str] = field(default_factory=dict)
    embed_on: Mapping[str, str] = field(default_factory=dict)


def place(resources: ResourcesConfig) -> Placement:
    """Divide what the cluster has among actors.

    Raises:
        SetupError: the cluster has less than one actor needs.
    """
    wanted = resources.embed_gpus
    gpu_bundles = [] if wanted in {"auto", 0} else [{"GPU": float(wanted)}]
    has = await_resources(
        [{"CPU": resources.decode_cpus}, *gpu_bundles],
        cpus_on=resources.decode_on,
        gpus_on=resources.embed_on,
        wait_seconds=resources.wait_seconds,
    )
    cpus, gpus = has["CPU"], has["GPU"]
    gpus_per_actor = (1.0 if gpus else 0.0) if wanted == "auto" else wanted
    if gpus_per_actor > gpus or resources.decode_cpus > cpus:
        msg = (
            f"resources.embed_gpus={wanted} and resources.decode_cpus={resources.decode_cpus:g}: the cluster has "
            f"{gpus:g} GPUs and {cpus:g} CPUs{_where(resources)}. Lower them, add nodes, or raise "
            "resources.wait_seconds where an autoscaler adds them."
        )
        raise SetupError(msg)
    gpu_actors = int(gpus // gpus_per_actor) if gpus_per_actor else 0
    fitting = max(1, int(cpus // resources.decode_cpus))
    return Placement(
        decode_actors=fitting if resources.concurrency == "auto" else resources.concurrency,
        decode_cpus=resources.decode_cpus,
        gpu_actors=gpu_actors,
        gpus_per_actor=gpus_per_actor,
        device="cuda" if gpu_actors else "cpu",
        may_grow=resources.concurrency == "auto",
        decode_on=resources.decode_on,
        embed_on=resources.embed_on,
    )


def _where(resources: ResourcesConfig) -> str:
    labels = {**resources.decode_on, **resources.embed_on}
    return f" on nodes with the labels {labels}" if labels else ""


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
    shards: ray.data.Dataset = ray.data.from_blocks(list(blocks))
    actors = partial(pool, num_shards=len(blocks), may_grow=placement.may_grow)
    cpus, decode_on = placement.decode_cpus, placement.decode_on
    decode_steps = ((SkipCommitted, put.output_uri), (DecodeVideos, decode))
    if placement.gpu_actors:
        gpus, embed_on = placement.gpus_per_actor, placement.embed_on
        embed_steps, embedders = ((EmbedFrames, embed),), actors(placement.gpu_actors)
        shards = add_stage(shards, decode_steps, actors(placement.decode_actors), num_cpus=cpus, labels=decode_on)
        shards = add_stage(shards, embed_steps, embedders, num_cpus=0, num_gpus=gpus, labels=embed_on)
        shards = add_stage(shards, ((PutShard, put),), pool(_PUTS_AT_ONCE, num_shards=len(blocks)), num_cpus=0)
    else:
        steps = (*decode_steps, (EmbedFrames, embed), (PutShard, put))
        shards = add_stage(shards, steps, actors(placement.decode_actors), num_cpus=cpus, labels=decode_on)
    for row in shards.iter_rows():
        yield row[SUMMARY]
