"""The function that Ray Train runs on every worker: read the samples, train or resume, and store the model."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray import train as ray_train
from ray.train.torch import get_device
from ray.util.queue import Queue

from raypipe.jobs.train.batches import Collective, Window, WorkerSamples
from raypipe.jobs.train.checkpoints import Checkpoints, put_metrics, put_model
from raypipe.jobs.train.inputs import Ints
from raypipe.jobs.train.loop import Loop, LoopSettings, Notify
from raypipe.jobs.train.run_spec import NetworkSpec, build
from raypipe.storage import Folder

TRAIN, VALIDATION = "train", "validation"
_STEP_SECONDS = 0.5  # the minimum time between two steps that are reported to the driver


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """The settings of a worker. ``network`` refers to a ``NetworkSpec`` in Ray's object store."""

    output_uri: str
    network: "ray.ObjectRef[NetworkSpec]"
    loop: LoopSettings
    cache_bytes: int
    num_threads: int
    events: Queue


def train_worker(config: Mapping[str, Any]) -> None:
    """Run one worker. Ray Train calls this with ``{"settings": WorkerSettings}``, and again after a failure."""
    settings: WorkerSettings = config["settings"]
    torch.set_num_threads(settings.num_threads)
    workers = Collective(device=get_device())
    output = Folder(settings.output_uri)
    checkpoints = Checkpoints(output)
    notify = _notifier(settings.events, output)
    network: NetworkSpec = ray.get(settings.network)
    read_validation = partial(_read, VALIDATION) if settings.loop.num_validation else list
    loop = Loop(
        build(network, seed=settings.loop.seed),
        settings.loop,
        train=WorkerSamples(partial(_read, TRAIN), cache_bytes=settings.cache_bytes),
        validation=WorkerSamples(read_validation, cache_bytes=settings.cache_bytes),
        workers=workers,
        checkpoints=checkpoints,
        notify=notify,
    )
    _start(loop, network, checkpoints, workers, notify)
    state = loop.run()
    if state.ended != "not_finite":
        _finish(loop, output, workers, notify)
    elif workers.leads:  # a retry would end the same way
        notify("ended", {"state": state, "model_uri": "", "predictions": None})


def _read(name: str) -> Iterable[pa.Table]:
    blocks: Iterable[pa.Table] = ray_train.get_dataset_shard(name).iter_batches(batch_size=None, batch_format="pyarrow")
    return blocks


def _start(loop: Loop, network: NetworkSpec, checkpoints: Checkpoints, workers: Collective, notify: Notify) -> None:
    """Resume all workers from the newest complete checkpoint. If there is none, start from the beginning."""
    found = checkpoints.latest() if workers.leads else None
    number = workers.gather(found.number if found else None)[0]
    if number is not None and found is None:
        found = checkpoints.read(number)
    if found is not None:
        loop.resume(found)
    elif network.init_from is None:
        loop.standardise()
    if workers.leads:
        parameters = list(loop.model.parameters())
        about = {
            "checkpoint": number,
            "epoch": loop.state.epoch,
            "num_parameters": sum(one.numel() for one in parameters),
            "num_trainable_parameters": sum(one.numel() for one in parameters if one.requires_grad),
            "steps_per_epoch": loop.steps_per_epoch,
            "history": loop.state.history,
        }
        notify("started", about)


def _finish(loop: Loop, output: Folder, workers: Collective, notify: Notify) -> None:
    """Load the weights of the best epoch, predict every validation video with them, and store the model.

    The predictions are reported to the driver with the event ``ended``.
    """
    state = loop.state
    loop.load_best()
    collected: list[dict[str, Any]] = []

    def collect(window: Window, positions: Ints, logits: torch.Tensor) -> None:
        multi_label = loop.model.config.problem_type == "multi_label_classification"
        probabilities = (logits.sigmoid() if multi_label else logits.softmax(dim=1)).cpu().numpy()
        index, targets = ([values[at] for at in positions] for values in (window.index, window.targets))
        collected.append({"probabilities": probabilities.astype(np.float32), "index": index, "targets": targets})

    if loop.has_validation:
        loop.evaluate(collect)
    parts = [part for worker in workers.gather(collected) for part in worker]
    if workers.leads:
        put_metrics(output, state.history)  # not written yet if a worker died right after its last checkpoint
        best = next((epoch for epoch in state.history if epoch["epoch"] == state.best_epoch), {})
        model_uri = put_model(output, loop.model, metrics=best)
        notify("ended", {"state": state, "model_uri": model_uri, "predictions": parts})


def _notifier(events: Queue, output: Folder) -> Notify:
    """Return a function that reports events to the driver and writes the metrics file after each epoch.

    Steps are reported at most every ``_STEP_SECONDS``. The function returns only when the event is in the queue,
    because the worker may exit right after the last event.
    """
    told_at = 0.0

    def notify(kind: str, about: Mapping[str, Any]) -> None:
        nonlocal told_at
        if kind == "step":
            if time.monotonic() - told_at < _STEP_SECONDS:
                return
            told_at = time.monotonic()
        elif kind == "epoch":
            put_metrics(output, about["history"])
            about = {"metrics": asdict(about["metrics"]), "is_best": about["is_best"]}
        elif kind == "ended":
            about = {**about, "state": asdict(about["state"])}
        events.put((kind, dict(about)))

    return notify
