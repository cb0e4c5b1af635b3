"""What a job asks of an executor, and what an executor is. Ray is not used here."""

import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa

from raypipe.records import ShardSummary
from raypipe.runs.stages import Shared, Stage


@dataclass(frozen=True, slots=True)
class Needs:
    """The resources that the actors of a job need.

    If ``joined`` is True, every actor reserves CPUs and, if the cluster has GPUs, also a GPU. If it is False, actors
    with GPUs form a second stage.
    """

    num_cpus: float = 1.0
    num_gpus: Literal["auto"] | float = 0  # per actor on a GPU; auto means 1 if the cluster has GPUs, otherwise 0
    concurrency: Literal["auto"] | int = "auto"
    joined: bool = True
    cpus_on: Mapping[str, str] = field(default_factory=dict)  # labels of the nodes whose CPUs may be used
    gpus_on: Mapping[str, str] = field(default_factory=dict)  # labels of the nodes whose GPUs may be used
    wait_seconds: float = 0.0  # how long to wait for an autoscaler to add nodes
    asked: str = "the job"  # the configuration keys and values behind this request, for error messages


@dataclass(frozen=True, slots=True)
class Placement:
    """The number of actors that fit into the cluster, and the device on which they run the model.

    Without GPUs there is only one kind of actor, which runs all steps of a shard.
    """

    needs: Needs
    num_actors: int
    num_gpu_actors: int = 0
    num_gpus: float = 0.0  # GPUs per actor that has one
    device: Literal["cpu", "cuda"] = "cpu"  # where an actor runs its model

    @property
    def num_slots(self) -> int:
        """Return the number of actors that work in parallel, in all stages together."""
        return self.num_actors + (0 if self.needs.joined else self.num_gpu_actors)

    def stage(self, *steps: tuple[Any, Any]) -> Stage:
        """Return a stage whose actors run these steps and reserve CPUs."""
        needs = self.needs
        num_gpus = self.num_gpus if needs.joined else 0.0
        may_grow = needs.concurrency == "auto"
        return Stage(steps, self.num_actors, needs.num_cpus, num_gpus, labels=needs.cpus_on, may_grow=may_grow)

    def gpu_stage(self, *steps: tuple[Any, Any]) -> Stage:
        """Return a stage whose actors run these steps and reserve only a GPU."""
        may_grow = self.needs.concurrency == "auto"
        return Stage(steps, self.num_gpu_actors, 0.0, self.num_gpus, labels=self.needs.gpus_on, may_grow=may_grow)


class Executor(Protocol):
    """Runs the stages of a job. The commands use ``LocalExecutor`` for small jobs, and ``RayExecutor``."""

    def connect(self) -> None:
        """Prepare to start actors. Raises SetupError if that fails."""

    def place(self, needs: Needs) -> Placement:
        """Decide how many actors to start. Raises SetupError if not even one fits."""

    def machine(self) -> dict[str, object]:
        """Return a description of the machine or cluster, for the record."""

    def share(self, value: object) -> Shared:
        """Make a value, such as weights, available to all actors."""

    def call_on_gpu(self, function: Any, *arguments: Any, num_gpus: float) -> Any:  # noqa: ANN401
        """Call a function on a machine where actors with a GPU can run, and return its result."""

    def run(self, stages: Sequence[Stage], blocks: Sequence[pa.Table]) -> Iterator[ShardSummary]:
        """Send every block through the stages, and yield the summary of each shard as it finishes, in any order.

        Raises:
            JobError: the executor cannot continue.
        """


def driver_machine() -> str:
    """Return a description of this machine."""
    return f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} processors"


def joins_ray() -> bool:
    """Return whether Ray already runs: in this process, at RAY_ADDRESS, or on this machine after ``ray start``."""
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return True
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - where Ray looks
    return bool(os.environ.get("RAY_ADDRESS")) or Path(folder, "ray", "ray_current_cluster").exists()
