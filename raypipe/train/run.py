"""The train job: from a configuration to a model, its card and its report."""

import json
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from rich.console import Console

from raypipe.batch.cluster import connect, machine, reason_of
from raypipe.batch.run import versions
from raypipe.config import TrainConfig
from raypipe.errors import JobError, RaypipeError, SetupError
from raypipe.models.backbone import resolve_dtype
from raypipe.models.classifier_files import COMPLETE, CONFIG, MODEL_FOLDER
from raypipe.progress import TrainingProgress
from raypipe.report import EpochMetrics, TrainingRecord, write_training_report
from raypipe.report.model_card import model_card
from raypipe.storage import Folder
from raypipe.train.data import UnevenSplits, frames_dataset
from raypipe.train.feed import listen, start_feed
from raypipe.train.outcome import describe_outcome
from raypipe.train.samples import find_samples
from raypipe.train.setup import Setup, check_same_run, prepare, run_facts
from raypipe.train.state import LoopSettings
from raypipe.train.worker import TRAIN, VALIDATION, WorkerSettings, train_worker

if TYPE_CHECKING:
    from ray.data import Dataset

_REPORT = "report.html"
_WIDTH_PER_THREAD = 128


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What a run did, and where its report lies; ``is_new`` is False where an earlier run had finished it."""

    record: TrainingRecord
    report_uri: str
    is_new: bool = True


@dataclass(slots=True)
class _Told:
    """What the workers have told so far."""

    epochs: list[EpochMetrics] = field(default_factory=list)
    starts: list[Mapping[str, Any]] = field(default_factory=list)
    ended: Mapping[str, Any] | None = None


def run_train(config: TrainConfig, *, console: Console | None = None) -> TrainingRun:
    """Train, or go on where an earlier run of the same command was cut off; put the model, its card and the report.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: the workers failed too often, or a loss is no longer a number.
    """
    output = Folder(config.output)
    output.check_writable()
    samples = find_samples(config)
    setup = prepare(config, samples)
    check_same_run(output, run_facts(setup))
    connect()
    started_at = time.time()
    use_gpu = _use_gpu(config)
    told = _Told()
    record = _record(setup, started_at, use_gpu=use_gpu)
    if output.exists(f"{MODEL_FOLDER}/{COMPLETE}") and output.exists(_REPORT):
        return TrainingRun(_earlier(output, record), output.child(_REPORT), is_new=False)
    try:
        _train(setup, told, use_gpu=use_gpu, console=console)
    except KeyboardInterrupt:
        raise
    except RaypipeError as error:
        record = replace(_so_far(record, told), outcome="failed", message=str(error), finished_at=time.time())
        write_training_report(record, output.put)
        raise
    record = replace(_so_far(record, told), outcome="finished", finished_at=time.time())
    record = describe_outcome(record, setup, told.ended or {})
    output.put(f"{MODEL_FOLDER}/README.md", model_card(record).encode())
    write_training_report(record, output.put)
    return TrainingRun(record, output.child(_REPORT))


def _use_gpu(config: TrainConfig) -> bool:
    gpus = ray.cluster_resources().get("GPU", 0.0)
    wanted = config.resources.use_gpu
    if wanted is True and gpus < config.resources.num_workers:
        msg = (
            f"resources.use_gpu=true with num_workers={config.resources.num_workers}: the cluster has {gpus:g} GPUs. "
            "Choose fewer workers, auto or false."
        )
        raise SetupError(msg)
    return gpus >= config.resources.num_workers if wanted == "auto" else wanted


def _train(setup: Setup, told: _Told, *, use_gpu: bool, console: Console | None) -> None:
    """Run the workers, show what they tell, and end as they end."""
    config = setup.config
    feed = start_feed()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(setup, feed, scratch=Path(scratch), use_gpu=use_gpu)
        progress = TrainingProgress(num_epochs=config.optimizer.epochs, console=console)
        try:
            with progress:
                for kind, about in listen(feed, trainer.fit):
                    _show(progress, told, kind, about)
        except TrainingFailedError as error:
            msg = (
                f"The workers failed more than {config.resources.max_failures} times: {reason_of(error)}. The same "
                "command goes on from the last checkpoint."
            )
            raise JobError(msg) from error
        except ray.exceptions.RayError as error:
            msg = f"Ray ended the work: {reason_of(error)}. The same command goes on from the last checkpoint."
            raise JobError(msg) from error
    if told.ended is None:
        msg = "The workers ended without saying how. The same command goes on from the last checkpoint."
        raise JobError(msg)
    if told.ended["state"]["ended"] == "not_finite":
        kept = told.ended["state"]["best_checkpoint"]
        checkpoint = (
            "" if kept is None else f" The best checkpoint until then is {setup.output}/checkpoints/{kept:06d}."
        )
        msg = f"{told.ended['state']['message']}{checkpoint}"
        raise JobError(msg)


def _show(progress: TrainingProgress, told: _Told, kind: str, about: Mapping[str, Any]) -> None:
    if kind == "started":
        told.starts.append(about)
        if about["checkpoint"] is not None:
            again = "workers were started again" if len(told.starts) > 1 else "going on"
            progress.note(f"{again} from checkpoint {about['checkpoint']}, epoch {about['epoch'] + 1}")
        elif len(told.starts) > 1:
            progress.note("workers were started again from the beginning")
    elif kind == "step":
        per_epoch = told.starts[-1]["steps_per_epoch"]
        step = about["step"] - (told.epochs[-1].step if told.epochs else 0)
        progress.step(about["epoch"], step, per_epoch, about["loss"], about["samples_per_second"])
    elif kind == "epoch":
        metrics = EpochMetrics(**about["metrics"])
        told.epochs = [*(epoch for epoch in told.epochs if epoch.epoch < metrics.epoch), metrics]
        progress.epoch(metrics, about["is_best"])
    elif kind == "ended":
        told.ended = about


def _trainer(setup: Setup, feed: Any, *, scratch: Path, use_gpu: bool) -> TorchTrainer:  # noqa: ANN401 - an actor
    config, samples = setup.config, setup.samples
    num_workers = config.resources.num_workers
    optimizer = config.optimizer
    device = "cuda" if use_gpu else "cpu"
    precision = optimizer.precision
    if precision == "auto":  # on processors autocast gains little where it does not lose
        precision = "bfloat16" if use_gpu and resolve_dtype("auto", device) == "bfloat16" else "float32"
    loop = LoopSettings(
        optimizer=optimizer,
        checkpoint=config.checkpoint,
        learning_rate=setup.learning_rate,
        seed=config.seed,
        num_train=samples.train.num_rows,
        num_validation=samples.validation.num_rows,
        class_weights=setup.class_weights,
        bfloat16=precision == "bfloat16",
    )
    settings = WorkerSettings(
        output_uri=setup.output.uri,
        start=ray.put(setup.start),
        loop=loop,
        cache_bytes=config.data.cache_bytes,
        num_threads=_threads(num_workers, n_embd=setup.start.config.gpt2.n_embd),
        feed=feed,
    )
    parts = {TRAIN: samples.train, VALIDATION: samples.validation}
    datasets: dict[str, Dataset | Callable[[], Dataset]] = {
        name: frames_dataset(part, embeddings_uri=config.embeddings, num_workers=num_workers, seed=config.seed)
        for name, part in parts.items()
        if part.num_rows
    }
    return TorchTrainer(
        train_worker,
        train_loop_config={"settings": settings},
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(
            name=f"raypipe-{uuid.uuid4().hex[:12]}",
            storage_path=str(scratch),  # checkpoints are ours: any URI, and none that is not whole
            failure_config=FailureConfig(max_failures=config.resources.max_failures),
        ),
        datasets=datasets,
        dataset_config=UnevenSplits(),
    )


def _threads(num_workers: int, *, n_embd: int) -> int:
    """The processors of a node among the workers that share it; a narrow model is slower on several than on one."""
    nodes = [node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]]
    per_node = -(-num_workers // max(1, len(nodes)))
    return max(1, min(int(min(nodes) // per_node), n_embd // _WIDTH_PER_THREAD))


def _record(setup: Setup, started_at: float, *, use_gpu: bool) -> TrainingRecord:
    config, samples = setup.config, setup.samples
    settings = config.model_dump(mode="json")
    settings["embedding_fingerprint"] = samples.fingerprint
    settings["optimizer"]["learning_rate"] = setup.learning_rate
    return TrainingRecord(
        objective=config.objective,
        problem_type="multi_label_classification" if samples.multi_label else "single_label_classification",
        command=" ".join(["raypipe", *sys.argv[1:]]),
        embeddings_uri=config.embeddings,
        labels_uri=config.labels or "",
        output_uri=setup.output.uri,
        outcome="running",
        started_at=started_at,
        settings=settings,
        versions=versions(("torch", "transformers", "safetensors", "peft")),
        machine={**machine(), "device": "cuda" if use_gpu else "cpu"},
        label_names=samples.label_names,
        num_train_videos=samples.train.num_rows,
        num_validation_videos=samples.validation.num_rows,
        num_unknown_labels=samples.num_unknown,
        num_without_frames=samples.num_without_frames,
        num_workers=config.resources.num_workers,
        selected_by=config.optimizer.select_by if config.objective == "classify" else "loss",
    )


def _so_far(record: TrainingRecord, told: _Told) -> TrainingRecord:
    about = told.starts[-1] if told.starts else {}
    history = told.ended["state"]["history"] if told.ended else None
    epochs = tuple(EpochMetrics(**epoch) for epoch in history) if history is not None else tuple(told.epochs)
    return replace(
        record,
        epochs=epochs,
        best_epoch=told.ended["state"]["best_epoch"] if told.ended else None,
        model_uri=told.ended["model_uri"] if told.ended else "",
        num_parameters=about.get("num_parameters", 0),
        num_trainable_parameters=about.get("num_trainable_parameters", 0),
        num_restarts=max(0, len(told.starts) - 1),
    )


def _earlier(output: Folder, record: TrainingRecord) -> TrainingRecord:
    """What an earlier run that finished left to say."""
    lines = output.read("metrics.jsonl").decode().splitlines()
    metrics = json.loads(output.read(f"{MODEL_FOLDER}/{CONFIG}"))["metrics"]
    return replace(
        record,
        outcome="finished",
        finished_at=record.started_at,
        epochs=tuple(EpochMetrics(**json.loads(line)) for line in lines),
        best_epoch=metrics.get("epoch"),
        model_uri=output.child(MODEL_FOLDER),
    )
