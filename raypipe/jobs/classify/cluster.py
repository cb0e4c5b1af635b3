"""Divide a cluster among the actors of classify, and run shards through them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import ray
import ray.data

from raypipe.config import ClassifyResourcesConfig
from raypipe.errors import SetupError
from raypipe.jobs.classify.stages import (
    ClassifyVideos,
    ModelSettings,
    PutPredictions,
    PutSettings,
    ReadEmbeddings,
    ReadSettings,
)
from raypipe.records import ShardSummary
from raypipe.runs.actors import add_stage, await_resources, pool
from raypipe.runs.stages import SUMMARY, SkipCommitted


@dataclass(frozen=True, slots=True)
class Placement:
    """How many actors there are, each with one processor and a model of its own."""

    actors: int
    gpus_per_actor: float = 0.0
    may_grow: bool = False

    @property
    def device(self) -> str:
        """Where the model of an actor is."""
        return "cuda" if self.gpus_per_actor else "cpu"


def place(resources: ClassifyResourcesConfig) -> Placement:
    """One actor a GPU, or one a processor where there is no GPU.

    Raises:
        SetupError: the cluster has less than one actor needs.
    """
    wanted = resources.gpus
    bundle = {"CPU": 1.0} if wanted in {"auto", 0} else {"CPU": 1.0, "GPU": float(wanted)}
    has = await_resources([bundle], wait_seconds=resources.wait_seconds)
    cpus, gpus = has["CPU"], has["GPU"]
    gpus_per_actor = (1.0 if gpus else 0.0) if wanted == "auto" else wanted
    if gpus_per_actor > gpus or cpus < 1:
        msg = f"resources.gpus={wanted}: the cluster has {gpus:g} GPUs and {cpus:g} CPUs. Lower it, or add nodes."
        raise SetupError(msg)
    fitting = int(min(cpus, gpus // gpus_per_actor)) if gpus_per_actor else int(cpus)
    if resources.concurrency == "auto":
        return Placement(fitting, gpus_per_actor, may_grow=True)
    return Placement(resources.concurrency, gpus_per_actor)


def run_shards(
    blocks: Sequence[pa.Table],
    placement: Placement,
    *,
    read: ReadSettings,
    model: ModelSettings,
    put: PutSettings,
) -> Iterator[ShardSummary]:
    """Take every block through read, classify and put; yield the summaries as shards finish, in any order."""
    steps = ((SkipCommitted, put.output_uri), (ReadEmbeddings, read), (ClassifyVideos, model), (PutPredictions, put))
    actors = pool(placement.actors, num_shards=len(blocks), may_grow=placement.may_grow)
    gpus = placement.gpus_per_actor or None
    shards = ray.data.from_blocks(list(blocks))
    for row in add_stage(shards, steps, actors, num_cpus=1, num_gpus=gpus).iter_rows():
        yield row[SUMMARY]
