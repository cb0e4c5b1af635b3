"""Run the stages of a job in processes of this machine, without Ray, which takes longer to start than a small run."""

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from loky.process_executor import ProcessPoolExecutor  # type: ignore[import-untyped]

from raypipe.background import end_with_parent
from raypipe.errors import JobError, SetupError
from raypipe.records import ShardSummary
from raypipe.runs.executor import Needs, Placement, driver_machine
from raypipe.runs.stages import SUMMARY, RunSteps, Shared, Stage, Steps
from raypipe.text import one_line

_MAX_RESTARTS = 5  # of a run: a video that kills its worker is a row, so something else is wrong
_actor: "RunSteps | Exception"  # in a worker; the exception if its steps cannot be constructed


class LocalExecutor:
    """Runs the stages of a job in one process per actor. It has no GPUs and no other machines."""

    def connect(self) -> None:
        """Do nothing."""

    def place(self, needs: Needs) -> Placement:
        """Decide how many actors fit on this machine.

        Raises:
            SetupError: not even one actor fits, or the job asks for GPUs.
        """
        cpus = len(os.sched_getaffinity(0))
        if needs.num_gpus not in {"auto", 0} or needs.num_cpus > cpus:
            msg = f"{needs.asked}: executor=local has {cpus} CPUs and no GPU."
            raise SetupError(msg, value={"GPU": 0, "CPU": cpus}, remedy="Lower it, or set executor=ray.")
        fitting = max(1, int(cpus // needs.num_cpus))
        return Placement(needs, fitting if needs.concurrency == "auto" else needs.concurrency)

    def machine(self) -> dict[str, object]:
        """Return the size of this machine."""
        cpus = len(os.sched_getaffinity(0))
        return {"executor": "local", "nodes": 1, "CPUs": cpus, "GPUs": 0, "driver": driver_machine()}

    def share(self, value: object) -> Shared:
        """Return a function that returns the value. Each worker gets a copy when it starts."""
        return _Value(value)

    def call_on_gpu(self, function: Any, *arguments: Any, num_gpus: float) -> Any:  # noqa: ANN401
        """Raise, because there is no GPU, and ``place`` never returns one."""
        raise NotImplementedError

    def run(self, stages: Sequence[Stage], blocks: Sequence[pa.Table]) -> Iterator[ShardSummary]:
        """Run the stages in a pool of processes. If a worker dies, the unfinished shards are redone.

        Raises:
            JobError: workers cannot start, or died too often.
        """
        steps = [step for stage in stages for step in stage.steps]
        num_workers = min(max(stage.num_actors for stage in stages), len(blocks))
        todo = list(blocks)
        for _ in range(1 + _MAX_RESTARTS):
            pool = _pool(num_workers, steps)
            try:
                futures: dict[Future[ShardSummary], pa.Table] = {pool.submit(_run, block): block for block in todo}
                try:
                    for future in as_completed(futures):
                        summary = future.result()
                        del futures[future]
                        yield summary
                except BrokenProcessPool:
                    todo = list(futures.values())
                    continue
                return
            finally:
                pool.shutdown(kill_workers=True)
        msg = f"Worker processes ended {1 + _MAX_RESTARTS} times."
        raise JobError(msg, remedy="Check the memory of this machine. The same command resumes.")


@dataclass(frozen=True, slots=True)
class _Value:
    value: Any

    def __call__(self) -> Any:  # noqa: ANN401
        return self.value


def _pool(num_workers: int, steps: Steps) -> ProcessPoolExecutor:
    is_debug = logging.getLogger("raypipe").getEffectiveLevel() <= logging.DEBUG
    one_thread = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": "1"}
    # Unlike the pools of Python, those of loky do not run the user's script again in each worker.
    return ProcessPoolExecutor(num_workers, initializer=_start, initargs=(steps, os.getpid(), is_debug), env=one_thread)


def _start(steps: Steps, driver: int, is_debug: bool) -> None:  # noqa: FBT001 - an initializer takes no keywords
    global _actor  # noqa: PLW0603 - a worker is one actor
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the driver, which ends its workers
    if ask_for_sigkill := end_with_parent():
        ask_for_sigkill()
        if os.getppid() != driver:  # it has ended already
            os._exit(1)
    if not is_debug:  # the driver prints the reason of each failed shard
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
    try:
        _actor = RunSteps(steps)
    except Exception as error:  # noqa: BLE001 - the driver raises it
        _actor = error


def _run(block: pa.Table) -> ShardSummary:
    if isinstance(_actor, Exception):
        msg = f"The workers cannot start: {one_line(_actor)}"
        raise JobError(msg)
    done: Any = _actor(block)
    summary: ShardSummary = done[SUMMARY][0]
    return summary
