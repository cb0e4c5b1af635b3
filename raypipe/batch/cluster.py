"""The edge to Ray: connect, and one stage of actors."""

import logging
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import ray
import ray.data
from ray.data import ActorPoolStrategy, Dataset

from raypipe.batch.stages import RunSteps, Steps
from raypipe.errors import SetupError


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
        with native_output_hidden() if quiet else nullcontext():
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
def native_output_hidden() -> Iterator[None]:
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


def machine() -> dict[str, object]:
    """Where a job runs."""
    total = ray.cluster_resources()
    return {
        "nodes": len(ray.nodes()),
        "CPUs": total.get("CPU", 0),
        "GPUs": total.get("GPU", 0),
        "memory_bytes": int(total.get("memory", 0)),
        "driver": f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} processors",
    }


def add_stage(
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
