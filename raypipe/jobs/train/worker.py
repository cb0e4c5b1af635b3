"""The function that Ray Train runs on every worker: read the samples, train or resume, and store the model."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray import train as ray_train
from ray.train.torch import get_device
from ray.util.queue import Queue

from raypipe.evaluation.calibration import fit_temperature
from raypipe.evaluation.deletion import MAX_FRAMES, MAX_VIDEOS, measure_deletion
from raypipe.jobs.train.batches import Collective, WorkerSamples
from raypipe.jobs.train.checkpoints import Checkpoints, put_metrics, put_model
from raypipe.jobs.train.classifier.scores import label_mask
from raypipe.jobs.train.classifier.video_task import FramesWindow, Half, UnseenLogits, VideoTask
from raypipe.jobs.train.inputs import Ints, even_stride
from raypipe.jobs.train.loop import Loop, LoopSettings, Notify
from raypipe.jobs.train.ranker.next_video_task import HistoriesWindow, NextVideoTask
from raypipe.jobs.train.ranker.ranker_spec import RankerNetwork, build_ranker
from raypipe.jobs.train.run_spec import NetworkSpec, build
from raypipe.jobs.train.tasks import Task
from raypipe.models.classifier import VideoClassifier, thin
from raypipe.models.classifier_files import read_config
from raypipe.models.model_files import COMPLETE, MODEL_FOLDER, read_model
from raypipe.records import DeletionCurve
from raypipe.storage import Folder

TRAIN, VALIDATION = "train", "validation"
PEER = "peer"  # the folder in the output where a model to compare with is trained
_TEMPERATURE_DIGITS = 4
_MAX_CALIBRATION_VIDEOS = 50_000
_STEP_SECONDS = 0.5  # the minimum time between two steps that are reported to the driver


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """The settings of a worker. ``network`` refers to a ``NetworkSpec`` or a ``RankerNetwork`` in Ray's object store.

    ``model_files`` are the digests of files that the driver has added to the model. ``metrics`` are stored with the
    model instead of its own, if another training has chosen its epoch. ``peer`` is a network that is trained only to
    compare with, and its learning rate. It has its own checkpoints. ``refitted``
    are the weights of the probe after a fit to training and validation videos.
    """

    output_uri: str
    network: "ray.ObjectRef[NetworkSpec | RankerNetwork]"
    loop: LoopSettings
    cache_bytes: int
    num_threads: int
    events: Queue
    model_files: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Any] | None = None
    peer: "ray.ObjectRef[tuple[NetworkSpec, float]] | None" = None
    refitted: Mapping[str, torch.Tensor] | None = None


def train_worker(config: Mapping[str, Any]) -> None:
    """Run one worker. Ray Train calls this with ``{"settings": WorkerSettings}``, and again after a failure."""
    settings: WorkerSettings = config["settings"]
    torch.set_num_threads(settings.num_threads)
    workers = Collective(device=get_device())
    output = Folder(settings.output_uri)
    checkpoints = Checkpoints(output)
    notify = _notifier(settings.events, output)
    network = ray.get(settings.network)
    task = make_task(network, settings.loop, device=workers.device)
    read_validation = partial(_read, VALIDATION) if settings.loop.num_validation else list
    empty = FramesWindow if isinstance(network, NetworkSpec) else HistoriesWindow
    train = WorkerSamples(partial(_read, TRAIN), empty=empty, cache_bytes=settings.cache_bytes)
    validation = WorkerSamples(read_validation, empty=empty, cache_bytes=settings.cache_bytes)
    make_loop = partial(Loop, train=train, validation=validation, workers=workers)
    loop = make_loop(task, settings.loop, checkpoints=checkpoints, notify=notify)
    is_trained = isinstance(network, NetworkSpec) and network.init_from is not None
    _start(loop, checkpoints, workers, notify, is_trained=is_trained)
    state = loop.run()
    if state.ended != "not_finite":
        _finish(loop, workers, notify, settings, make_loop)
    elif workers.leads:  # a retry would end the same way
        nothing: dict[str, Any] = {"predictions": None, "peer_predictions": [], "deletion": None}
        notify("ended", {"state": state, "model_uri": "", **nothing})


def _train_peer(
    network: NetworkSpec, learning_rate: float, settings: WorkerSettings, make_loop: Callable[..., Loop], notify: Notify
) -> list[dict[str, Any]]:
    """Train a network to compare with, and return its predictions for the validation videos of all workers."""
    workers = Collective(device=get_device())
    checkpoints = Checkpoints(Folder(Folder(settings.output_uri).child(PEER)))
    task = make_task(network, settings.loop, device=workers.device)
    loop = make_loop(
        task,
        replace(settings.loop, stop_epoch=None, learning_rate=learning_rate),
        checkpoints=checkpoints,
        notify=lambda _kind, _about: None,
    )
    if workers.leads:
        notify("note", {"line": "training GPT-2 alone, for the comparison in the report"})
    _resume(loop, checkpoints, workers, is_trained=network.init_from is not None)
    if loop.run().ended == "not_finite":
        return []
    parts = load_best_model(loop, workers)
    _add_probabilities(loop.model, parts)
    return parts


def make_task(network: NetworkSpec | RankerNetwork, settings: LoopSettings, *, device: torch.device) -> Task:
    """Build the model, and return its objective."""
    config = settings.optimizer
    if isinstance(network, RankerNetwork):
        ranker, catalogue = build_ranker(network, seed=settings.seed), network.catalogue()
        return NextVideoTask(ranker, config, catalogue=catalogue, sampling=network.sampling, device=device)
    weights = settings.class_weights
    class_weights = None if weights is None else torch.tensor(weights, device=device)
    unseen, probe = None, network.probe
    if probe is not None:
        unseen = UnseenLogits(probe.out_of_fold.to(device), stride=probe.stride, loss=probe.loss)
    model = build(network, seed=settings.seed)
    return VideoTask(model, config, device=device, class_weights=class_weights, unseen=unseen)


def _read(name: str) -> Iterable[pa.Table]:
    blocks: Iterable[pa.Table] = ray_train.get_dataset_shard(name).iter_batches(batch_size=None, batch_format="pyarrow")
    return blocks


def _start(loop: Loop, checkpoints: Checkpoints, workers: Collective, notify: Notify, *, is_trained: bool) -> None:
    """Start or resume all workers, and report it."""
    number = _resume(loop, checkpoints, workers, is_trained=is_trained)
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


def _resume(loop: Loop, checkpoints: Checkpoints, workers: Collective, *, is_trained: bool) -> int | None:
    """Resume all workers from the newest complete checkpoint, and return its number.

    If there is none, start from the beginning.
    """
    found = checkpoints.latest() if workers.leads else None
    number: int | None = workers.gather(found.number if found else None)[0]
    if number is not None and found is None:
        found = checkpoints.read(number)
    if found is not None:
        loop.resume(found)
    elif not is_trained and loop.num_epochs:
        loop.standardise()
    return number


def _finish(
    loop: Loop, workers: Collective, notify: Notify, settings: WorkerSettings, make_loop: Callable[..., Loop]
) -> None:
    """Store the model of the best epoch, then train the network to compare with, and report the predictions of both."""
    state, output = loop.state, Folder(settings.output_uri)
    parts = load_best_model(loop, workers, refitted=settings.refitted)
    some = _some_videos(loop, workers)
    ended: dict[str, Any] = {"state": state, "predictions": parts, "deletion": None}
    if workers.leads:
        if some and isinstance(loop.model, VideoClassifier):
            ended["deletion"] = measure_deletion(loop.model, some)
            _settle(loop.model, output, ended["deletion"])
        _add_probabilities(loop.model, parts)
        put_metrics(output, state.history)  # not written yet if a worker died right after its last checkpoint
        best = next((epoch for epoch in state.history if epoch["epoch"] == state.best_epoch), {})
        metrics = best if settings.metrics is None else settings.metrics
        ended["model_uri"] = put_model(output, loop.model, metrics=metrics, others=settings.model_files)
        ended["num_parameters"] = sum(one.numel() for one in loop.model.parameters())
    peer = [] if settings.peer is None else _train_peer(*ray.get(settings.peer), settings, make_loop, notify)
    if workers.leads:
        notify("ended", {**ended, "peer_predictions": peer})


def _settle(model: VideoClassifier, output: Folder, deletion: DeletionCurve | None) -> None:
    """Store in the configuration what was measured on validation videos.

    If an earlier run has stored the model, keep its numbers: another device may round differently.
    """
    folder = Folder(output.child(MODEL_FOLDER))
    if folder.exists(COMPLETE):
        stored = read_config(read_model(folder))
        model.config.temperature, model.config.frame_scores_help = stored.temperature, stored.frame_scores_help
    else:
        model.config.frame_scores_help = None if deletion is None else deletion.is_better


def load_best_model(
    loop: Loop, workers: Collective, *, refitted: Mapping[str, torch.Tensor] | None = None
) -> list[dict[str, Any]]:
    """Load the weights of the best epoch, and return their predictions for the validation videos of all workers.

    The predictions set the temperature of a classifier. GPT-2 is removed if the best epoch is the probe. Afterwards,
    the weights of the probe are replaced by ``refitted``.
    """
    loop.load_best()
    parts = _predictions(loop, workers)
    if isinstance(loop.task, VideoTask) and isinstance(loop.model, VideoClassifier):
        calibrate(loop.model, parts)
        if loop.state.best_epoch == 0:
            loop.model.drop_gpt2()
        if refitted is not None:
            loop.model.probe.load_state_dict(dict(refitted))
    return parts


def _predictions(loop: Loop, workers: Collective) -> list[dict[str, Any]]:
    """Return the predictions for the validation videos of all workers, if the model classifies videos."""
    task = loop.task
    if not isinstance(task, VideoTask):
        return []
    collected: list[dict[str, Any]] = []

    def collect(window: FramesWindow, positions: Ints, logits: torch.Tensor) -> None:
        collected.append(task.prediction(window, positions, logits))

    if loop.has_validation:
        loop.evaluate(collect)
    return [part for worker in workers.gather(collected) for part in worker]


def _some_videos(loop: Loop, workers: Collective) -> list[Half]:
    """Return the frames of evenly chosen validation videos of all workers, if the model classifies videos."""
    if not isinstance(loop.model, VideoClassifier) or not loop.has_validation:
        return []
    stride = even_stride(loop.num_validation, MAX_VIDEOS)
    chosen = [
        (number, frames[thin(len(frames), max_frames=MAX_FRAMES)])
        for window in loop.validation_windows()
        for number, frames in zip(window.index, window.frames, strict=True)
        if number % stride == 0
    ]
    gathered = sorted((one for worker in workers.gather(chosen) for one in worker), key=itemgetter(0))
    return [frames for _, frames in gathered]


def calibrate(model: VideoClassifier, predictions: Sequence[Mapping[str, Any]]) -> None:
    """Set the temperature of a classifier by its predictions."""
    if predictions:
        logits = np.concatenate([part["logits"] for part in predictions])
        truth = label_mask([target for part in predictions for target in part["targets"]], logits.shape[1])
        some = np.arange(0, len(logits), even_stride(len(logits), _MAX_CALIBRATION_VIDEOS))
        temperature = fit_temperature(logits[some], truth[some], multi_label=model.config.multi_label)
        model.config.temperature = round(temperature, _TEMPERATURE_DIGITS)  # sums of other batches differ in the last


def _add_probabilities(model: Any, predictions: Sequence[dict[str, Any]]) -> None:  # noqa: ANN401 - any model
    """Replace the logits of a classifier's predictions by probabilities ``[V, C]``."""
    for part in predictions:
        part["probabilities"] = model.probabilities(torch.from_numpy(part.pop("logits"))).numpy()


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
