"""Events: what workers tell the driver, through a queue, and what the driver shows and keeps of it."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raypipe.records import EpochMetrics
from raypipe.runs.progress import TrainingProgress

_POLL_SECONDS = 0.2


def open_queue() -> Queue:
    """Start a queue of events on this node; it ends with the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def listen(queue: Queue, work: Callable[[], object]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Do the work in a thread, and yield the events until it ends; then raise what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            raised.append(error)

    # A daemon thread: Ctrl-C ends the driver, and with it the workers, instead of waiting for them.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        yield from queue.get_nowait_batch(queue.size())
        time.sleep(_POLL_SECONDS)
    yield from queue.get_nowait_batch(queue.size())
    if raised:
        raise raised[0]


@dataclass(slots=True)
class EventLog:
    """The events of the workers so far."""

    epochs: list[EpochMetrics] = field(default_factory=list)
    starts: list[Mapping[str, Any]] = field(default_factory=list)
    ended: Mapping[str, Any] | None = None

    def add(self, kind: str, about: Mapping[str, Any], progress: TrainingProgress) -> None:
        """Keep one event, and show it."""
        if kind == "started":
            self.starts.append(about)
            self.epochs = [EpochMetrics(**epoch) for epoch in about["history"]]
            if about["checkpoint"] is not None:
                again = "workers were restarted" if len(self.starts) > 1 else "resuming"
                progress.note(f"{again} from checkpoint {about['checkpoint']}, epoch {about['epoch'] + 1}")
            elif len(self.starts) > 1:
                progress.note("workers were restarted from the beginning")
        elif kind == "step":
            step = about["step"] - (self.epochs[-1].step if self.epochs else 0)
            per_epoch = self.starts[-1]["steps_per_epoch"]
            progress.step(about["epoch"], step, per_epoch, about["loss"], about["samples_per_second"])
        elif kind == "epoch":
            metrics = EpochMetrics(**about["metrics"])
            self.epochs = [*(epoch for epoch in self.epochs if epoch.epoch < metrics.epoch), metrics]
            progress.epoch(metrics, about["is_best"])
        elif kind == "ended":
            self.ended = about
