"""What Ray Train runs on every worker: read the samples, train or go on, and leave the model behind."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray import train as ray_train
from ray.train.torch import get_device

from raypipe.jobs.train.checkpoint import Checkpoints
from raypipe.jobs.train.loop import Loop
from raypipe.jobs.train.network import Start, build
from raypipe.jobs.train.outputs import put_metrics, put_model
from raypipe.jobs.train.shard import Ints, Shard, Window
from raypipe.jobs.train.state import LoopSettings
from raypipe.jobs.train.team import Team
from raypipe.storage import Folder

TRAIN, VALIDATION = "train", "validation"
_STEP_SECONDS = 0.5  # between two steps that the driver is told of


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker is given; ``start`` is a reference to a ``Start`` in the object store."""

    output_uri: str
    start: "ray.ObjectRef[Start]"
    loop: LoopSettings
    cache_bytes: int
    num_threads: int
    feed: Any  # the actor that the driver listens to


def train_worker(config: Mapping[str, Any]) -> None:
    """Run one worker; Ray Train calls it with ``{"settings": WorkerSettings}``, again after a failure."""
    settings: WorkerSettings = config["settings"]
    torch.set_num_threads(settings.num_threads)
    device = get_device()
    team = Team(device=device)
    output = Folder(settings.output_uri)
    notify = _throttled(settings.feed, output)
    start: Start = ray.get(settings.start)
    read_validation = _reader(VALIDATION) if settings.loop.num_validation else list
    loop = Loop(
        build(start, seed=settings.loop.seed),
        settings.loop,
        train=Shard(_reader(TRAIN), cache_bytes=settings.cache_bytes),
        validation=Shard(read_validation, cache_bytes=settings.cache_bytes),
        team=team,
        checkpoints=Checkpoints(output),
        notify=notify,
    )
    _start(loop, start, Checkpoints(output), team, notify)
    state = loop.run()
    if state.ended == "not_finite":  # trying again would end the same way
        if team.leads:
            notify("ended", {"state": state, "model_uri": "", "predictions": None})
        return
    _finish(loop, output, team, notify)


def _start(
    loop: Loop, start: Start, checkpoints: Checkpoints, team: Team, notify: Callable[[str, Mapping[str, Any]], None]
) -> None:
    """Go on from the newest whole checkpoint, or begin; all workers do the same."""
    found = checkpoints.latest() if team.leads else None
    number = team.gather(found.number if found else None)[0]
    if number is not None and found is None:
        found = checkpoints.read(number)
    if found is not None:
        loop.resume(found)
    elif start.init_from is None:
        loop.standardise()
    if team.leads:
        sizes = [parameter.numel() for parameter in loop.model.parameters()]
        trained = [parameter.numel() for parameter in loop.model.parameters() if parameter.requires_grad]
        about = {"checkpoint": number, "epoch": loop.state.epoch, "num_parameters": sum(sizes)}
        about |= {"num_trainable_parameters": sum(trained), "steps_per_epoch": loop.steps_per_epoch}
        about |= {"history": loop.state.history}
        notify("started", about)


def _finish(loop: Loop, output: Folder, team: Team, notify: Callable[[str, Mapping[str, Any]], None]) -> None:
    """Measure the best epoch's weights once more, video by video, and put the model."""
    state = loop.state
    loop.load_best()
    collected: list[dict[str, Any]] = []

    def collect(window: Window, positions: Ints, logits: torch.Tensor) -> None:
        multi_label = loop.model.config.problem_type == "multi_label_classification"
        probabilities = (logits.sigmoid() if multi_label else logits.softmax(dim=1)).cpu().numpy()
        index = [window.index[at] for at in positions]
        targets = [window.targets[at] for at in positions]
        collected.append({"index": index, "targets": targets, "probabilities": probabilities.astype(np.float32)})

    if loop.has_validation:
        loop.evaluate(collect)
    parts = [part for worker in team.gather(collected) for part in worker]
    if team.leads:
        put_metrics(output, state.history)  # a worker that died behind its last checkpoint may not have
        best = next((epoch for epoch in state.history if epoch["epoch"] == state.best_epoch), {})
        model_uri = put_model(output, loop.model, metrics=best)
        notify("ended", {"state": state, "model_uri": model_uri, "predictions": parts})


def _reader(name: str) -> Callable[[], Iterable[pa.Table]]:
    def read() -> Iterable[pa.Table]:
        shard = ray_train.get_dataset_shard(name)
        blocks: Iterable[pa.Table] = shard.iter_batches(batch_size=None, batch_format="pyarrow")
        return blocks

    return read


def _throttled(feed: Any, output: Folder) -> Callable[[str, Mapping[str, Any]], None]:  # noqa: ANN401 - an actor
    """Tell the driver what happens, of steps only some, and keep the metrics in storage up to date."""
    told_at = 0.0

    def notify(kind: str, about: Mapping[str, Any]) -> None:
        nonlocal told_at
        if kind == "step":
            if time.monotonic() - told_at < _STEP_SECONDS:
                return
            told_at = time.monotonic()
        elif kind == "epoch":
            put_metrics(output, about["history"])
            about = {key: value for key, value in about.items() if key != "history"}
            about["metrics"] = asdict(about["metrics"])
        elif kind == "ended":
            about = {**about, "state": asdict(about["state"])}
        told = feed.tell.remote(kind, dict(about))
        if kind == "ended":
            ray.get(told)  # this worker may be gone the next moment

    return notify
