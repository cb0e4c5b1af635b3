"""The edge to Ray: connect, and one stage of actors."""

import logging
import os
import platform
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
import ray.data
from ray._private.authentication import authentication_token_setup
from ray.autoscaler.sdk import request_resources
from ray.data import ActorPoolStrategy, Dataset

from raypipe.errors import SetupError
from raypipe.runs.stages import RunSteps, Steps

_POLL_SECONDS = 1.0


def connect() -> None:
    """Connect to the cluster that ``RAY_ADDRESS`` names or that runs here, or start one in this process."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine unasked
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet = logging.getLogger("raypipe").getEffectiveLevel() > logging.DEBUG
    use_token()
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


def use_token() -> None:
    """Show a cluster the token that this user has, as those that ``ray start`` begins ask for; Ray itself would not.

    ``RAY_AUTH_MODE`` decides where it is set.
    """
    logging.getLogger(authentication_token_setup.__name__).setLevel(logging.ERROR)  # it says so each time
    authentication_token_setup.maybe_enable_token_auth_if_token_available()


def configure_data() -> None:
    """What Ray Data must do and leave in this process: a block stays a shard, and progress is ours to show."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = None
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0  # all of a pool's actors have a shard


def reason_of(error: Exception) -> str:
    """The last line of what Ray says, which is the exception that a worker raised; without the name of one of ours."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    if not lines:
        return type(error).__name__
    return re.sub(r"^raypipe\.errors\.\w+: ", "", lines[-1].strip()).rstrip(".")[:300]


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


def resources(*, cpus_on: Mapping[str, str] = {}, gpus_on: Mapping[str, str] = {}) -> dict[str, float]:
    """The CPUs and the GPUs of the nodes that are there; of those with these labels, where there are some."""
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
    """What the cluster has, once that holds the bundles or the time is over; an autoscaler is asked for them."""
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
        request_resources(bundles=[])  # what begins now asks by itself
    return has


def pool(num_actors: int, *, num_shards: int, may_grow: bool = False) -> ActorPoolStrategy:
    """So many actors from the start, and more where nodes that join have room; never more than there are shards.

    A shard waits for a free actor, not behind another shard in an actor's queue.
    """
    at_first = min(num_actors, num_shards)
    most = num_shards if may_grow else at_first
    return ActorPoolStrategy(min_size=at_first, max_size=most, max_tasks_in_flight_per_actor=1)


def add_stage(
    shards: Dataset,
    steps: Steps,
    actors: ActorPoolStrategy,
    *,
    num_cpus: float,
    num_gpus: float | None = None,
    labels: Mapping[str, str] = {},
) -> Dataset:
    """One stage of actors, each on a node that has these labels."""
    where: dict[str, Any] = {"label_selector": dict(labels)} if labels else {}
    # The public method refuses whole blocks on a GPU, and any batch size would cut or join the shards.
    map_batches = shards.map_batches_internal if num_gpus else shards.map_batches
    return map_batches(
        RunSteps,
        fn_constructor_kwargs={"steps": steps},
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=actors,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        **where,
    )
