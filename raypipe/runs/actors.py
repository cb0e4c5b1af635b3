"""Run the stages of a job on Ray: connect, decide how many actors fit, and send the shards through them."""

import json
import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.autoscaler.sdk import request_resources
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayError

from raypipe.errors import JobError, SetupError
from raypipe.records import ShardSummary
from raypipe.runs.executor import Needs, Placement, driver_machine
from raypipe.runs.ray_private import (
    RAY_JOB_CONFIG_JSON_ENV_VAR,
    enable_token_authentication,
    local_ray_is_private,
    map_whole_blocks,
    silence_data_logs,
)
from raypipe.runs.stages import SUMMARY, RunSteps, Shared, Stage
from raypipe.storage.s3_access import worker_environment
from raypipe.text import one_line

_POLL_SECONDS = 1.0


class RayExecutor:
    """Runs stages as actor pools of Ray Data."""

    def connect(self) -> None:
        """Connect to Ray, or start it. Raises SetupError if that fails."""
        connect()

    def place(self, needs: Needs) -> Placement:
        """Decide how many actors fit into the cluster.

        Raises:
            SetupError: not even one actor fits.
        """
        has = await_resources(
            _bundles(needs), cpus_on=needs.cpus_on, gpus_on=needs.gpus_on, wait_seconds=needs.wait_seconds
        )
        cpus, gpus = has["CPU"], has["GPU"]
        num_gpus = (1.0 if gpus else 0.0) if needs.num_gpus == "auto" else needs.num_gpus
        if num_gpus > gpus or needs.num_cpus > cpus:
            labels = {**needs.cpus_on, **needs.gpus_on}
            where = f" on nodes with the labels {labels}" if labels else ""
            msg = f"{needs.asked}: the cluster has {gpus:g} GPUs and {cpus:g} CPUs{where}."
            remedy = "Lower it, add nodes, or raise resources.wait_seconds if an autoscaler adds them."
            raise SetupError(msg, value={"GPU": gpus, "CPU": cpus}, remedy=remedy)
        num_gpu_actors = int(gpus // num_gpus) if num_gpus else 0
        fitting = max(1, int(cpus // needs.num_cpus))
        if needs.joined and num_gpus:
            fitting = min(fitting, num_gpu_actors)
        num_actors = fitting if needs.concurrency == "auto" else needs.concurrency
        return Placement(needs, num_actors, num_gpu_actors, num_gpus, device="cuda" if num_gpus else "cpu")

    def machine(self) -> dict[str, object]:
        """Return the size of the cluster, and the driver's platform."""
        return machine()

    def share(self, value: object) -> Shared:
        """Put a value into Ray's object store."""
        return _Shared(ray.put(value))

    def call_on_gpu(self, function: Any, *arguments: Any, num_gpus: float) -> Any:  # noqa: ANN401
        """Call a function in a task that has a GPU."""
        return ray.get(ray.remote(num_gpus=num_gpus, num_cpus=0)(function).remote(*arguments))

    def run(self, stages: Sequence[Stage], blocks: Sequence[pa.Table]) -> Iterator[ShardSummary]:
        """Run the stages as actor pools of Ray Data, and yield the summaries.

        Raises:
            JobError: Ray ended the work.
        """
        with data_context():
            shards: Dataset = ray.data.from_blocks(list(blocks))
            for stage in stages:
                shards = _add_stage(shards, stage, num_shards=len(blocks))
        try:
            for row in shards.iter_rows():
                yield row[SUMMARY]
        except RayError as error:
            msg = f"Ray ended the work: {reason_of(error)}."
            raise JobError(msg, remedy="The same command resumes.") from error


@dataclass(frozen=True, slots=True)
class _Shared:
    reference: "ray.ObjectRef[Any]"

    def __call__(self) -> Any:  # noqa: ANN401
        return ray.get(self.reference)


def _bundles(needs: Needs) -> list[dict[str, float]]:
    """Return the resource bundles that must be available before the work can start."""
    cpu = {"CPU": float(needs.num_cpus)}
    if needs.num_gpus in {"auto", 0}:
        return [cpu]
    gpu = {"GPU": float(needs.num_gpus)}
    return [cpu | gpu] if needs.joined else [cpu, gpu]


def _add_stage(shards: Dataset, stage: Stage, *, num_shards: int) -> Dataset:
    where: dict[str, Any] = {"label_selector": dict(stage.labels)} if stage.labels else {}
    map_batches = map_whole_blocks if stage.num_gpus else Dataset.map_batches
    at_first = min(stage.num_actors, num_shards)
    # One task per actor: a shard waits for the next free actor instead of in the queue of a busy one.
    actors = ActorPoolStrategy(
        min_size=at_first, max_size=num_shards if stage.may_grow else at_first, max_tasks_in_flight_per_actor=1
    )
    return map_batches(
        shards,
        RunSteps,
        fn_constructor_kwargs={"steps": stage.steps},
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=actors,
        num_cpus=stage.num_cpus,
        num_gpus=stage.num_gpus or None,
        **where,
    )


def connect() -> None:
    """Connect to the cluster in ``RAY_ADDRESS`` or a cluster on this machine. If there is none, start Ray here.

    Raises:
        SetupError: Ray cannot be reached or started.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry unless the user enables it
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet = logging.getLogger("raypipe").getEffectiveLevel() > logging.DEBUG
    enable_token_authentication()
    if quiet:  # Ray's C++ side logs an error whenever Ray Data starts its actors
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        with local_ray_is_private(), native_output_hidden() if quiet else nullcontext():
            ray.init(
                include_dashboard=False,
                log_to_driver=not quiet,
                logging_level=logging.ERROR if quiet else logging.INFO,
                runtime_env=_worker_environment(),
            )
    except Exception as error:  # noqa: BLE001 - Ray raises a bare Exception if a node does not start in time
        reason = one_line(error)
        msg = (
            f"Cannot connect to Ray at {os.environ.get('RAY_ADDRESS', 'this machine')!r}: {reason}. Run raypipe doctor."
        )
        raise SetupError(msg) from None
    if quiet:
        silence_data_logs()


def _worker_environment() -> dict[str, Any] | None:
    """Return Ray's description of the variables to set in workers, or None if the job that Ray runs sets them all."""
    given = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")).get("runtime_env", {}).get("env_vars", {})
    missing = {name: value for name, value in worker_environment().items() if name not in given}
    return {"env_vars": missing} if missing else None


@contextmanager
def data_context() -> Iterator[None]:
    """Configure Ray Data for the datasets that are created inside the ``with`` block.

    Ray Data does not split or merge blocks, so that each stays a shard. It prints no progress, because raypipe does.
    Afterwards, the previous configuration of the process is restored, because the user may have set it.
    """
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = None
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0  # add actors only when all have a shard
    with DataContext.current(context):
        yield


def reason_of(error: Exception) -> str:
    """Return the last line of a Ray error, which is the exception in the worker.

    The name of the exception class is removed if it is one of raypipe's.
    """
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    if not lines:
        return type(error).__name__
    return re.sub(r"^raypipe\.errors\.\w+: ", "", lines[-1].strip()).rstrip(".")[:300]


@contextmanager
def native_output_hidden() -> Iterator[None]:
    """Discard everything that is written to stdout and stderr, including by native code. Exceptions still propagate."""
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


def machine() -> dict[str, object]:
    """Return the size of the cluster, and the driver's platform."""
    total = ray.cluster_resources()
    return {
        "nodes": len(ray.nodes()),
        "CPUs": total.get("CPU", 0),
        "GPUs": total.get("GPU", 0),
        "memory_bytes": int(total.get("memory", 0)),
        "driver": driver_machine(),
    }


def resources(*, cpus_on: Mapping[str, str] = {}, gpus_on: Mapping[str, str] = {}) -> dict[str, float]:
    """Return the CPUs and GPUs of the live nodes, as a dict with the keys ``CPU`` and ``GPU``.

    CPUs count only on nodes with the labels ``cpus_on``, and GPUs only on nodes with the labels ``gpus_on``.
    """
    total = {"CPU": 0.0, "GPU": 0.0}
    for node in ray.nodes():
        for kind, labels in (("CPU", cpus_on), ("GPU", gpus_on)):
            if node["Alive"] and labels.items() <= node["Labels"].items():
                total[kind] += node["Resources"].get(kind, 0.0)
    return total


def await_resources(
    bundles: Sequence[Mapping[str, float]],
    *,
    cpus_on: Mapping[str, str] = {},
    gpus_on: Mapping[str, str] = {},
    wait_seconds: float,
) -> dict[str, float]:
    """Wait until the cluster has the resources in ``bundles``, but at most ``wait_seconds``.

    If resources are missing, an autoscaler is asked for them. The return value is the number of CPUs and GPUs that the
    cluster has at the end, which may be too few.
    """
    needed: Counter[str] = Counter()
    for bundle in bundles:
        needed.update(bundle)
    deadline = time.monotonic() + wait_seconds
    is_asked = False
    while True:
        has = resources(cpus_on=cpus_on, gpus_on=gpus_on)
        if all(has[kind] >= count for kind, count in needed.items()) or time.monotonic() >= deadline:
            break
        if not is_asked:
            labels = [dict(gpus_on if "GPU" in bundle else cpus_on) for bundle in bundles]
            request_resources(bundles=[dict(bundle) for bundle in bundles], bundle_label_selectors=labels)
            is_asked = True
        time.sleep(_POLL_SECONDS)
    if is_asked:
        request_resources(bundles=[])  # the stages make their own requests
    return has
