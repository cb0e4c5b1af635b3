"""The train job: produce a model, its model card and a report from a configuration, by one training or a small grid."""

import json
import logging
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue
from rich.console import Console

from raypipe.config import TrainConfig
from raypipe.errors import JobError, ObjectError, RaypipeError, SetupError
from raypipe.jobs.train.classifier.peers import compare_with_peers, in_order
from raypipe.jobs.train.classifier.probing import find_probe
from raypipe.jobs.train.classifier.self_training import add_pseudo_labels
from raypipe.jobs.train.datasets import READ_CPUS, UnevenSplits, frames_dataset, histories_dataset
from raypipe.jobs.train.events import SUMMARY, EventLog, earlier_record, first_record, listen, open_queue, with_events
from raypipe.jobs.train.inputs import find_samples
from raypipe.jobs.train.loop import LoopSettings
from raypipe.jobs.train.ranker.blending import put_blend
from raypipe.jobs.train.ranker.histories import HistorySamples, find_histories
from raypipe.jobs.train.ranker.ranker_spec import BETAS, FINAL_RATE, RankerNetwork, put_ranker_files
from raypipe.jobs.train.run_spec import NetworkSpec, RunSpec, check_same_run, prepare, run_facts
from raypipe.jobs.train.tuning import grid, keep_best, search_grid
from raypipe.jobs.train.worker import TRAIN, VALIDATION, WorkerSettings, train_worker
from raypipe.models.model_files import COMPLETE, MODEL_FOLDER
from raypipe.records import GPT2_ALONE, THIS_MODEL, EpochMetrics, PeerMetrics, SelfTraining, TrainingRecord
from raypipe.report.training_page import model_card
from raypipe.report.write import write_training_report
from raypipe.runs.actors import await_resources, connect, data_context, reason_of
from raypipe.runs.progress import TrainingProgress, status
from raypipe.storage import Folder

REPORT = "report.html"
_WIDTH_PER_THREAD = 128
_WORKER_CPUS = 0.5  # reserved in Ray per worker; less than 1, so that the readers fit on the same node
_logger = logging.getLogger(__name__)
_CONTINUES = "The same command continues from the last checkpoint."


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """The record of a training, and the URI of its report. ``is_new`` is False if an earlier run had finished it."""

    record: TrainingRecord
    report_uri: str
    is_new: bool = True


def run_train(config: TrainConfig, *, console: Console | None = None) -> TrainingRun:
    """Train a model, or resume an earlier run of the same command. Write the model, its model card and the report.

    If ``config.search`` is set, train every point of the grid, and keep only the model of the best point.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: the workers failed too often, a loss is not finite, or every point of the grid failed.
    """
    output = Folder(config.output)
    output.check_writable()
    samples = find_histories(config) if config.objective == "next_video" else find_samples(config)
    points = grid(config) if config.search else []
    specs = [prepare(point.config, samples) for point in points] or [prepare(config, samples)]
    check_same_run(output, run_facts(replace(specs[0], config=config)))
    connect()
    use_gpu = decide_gpu(config)
    record = first_record(specs[0], time.time(), use_gpu=use_gpu)
    if points:
        record = replace(record, settings=config.model_dump(mode="json"))
    if _is_finished(output):
        return TrainingRun(earlier_record(output, record), output.child(REPORT), is_new=False)
    if points:
        records = search_grid(points, _train_point, use_gpu=use_gpu, console=console or Console())
        record = keep_best(output, record, points, records)
    else:
        record = _train_in_steps(specs[0], record, use_gpu=use_gpu, console=console)
        _put_blend(specs[0], console)
    _write_report(output, record)
    return TrainingRun(record, output.child(REPORT))


def _put_blend(spec: RunSpec, console: Console | None) -> None:
    """Choose how a ranker and counted successors are combined. Models that are not rankers have nothing to combine."""
    chosen_on = spec.selection or spec
    if isinstance(chosen_on.samples, HistorySamples) and spec.config.ranker.loss == "softmax":
        with status(console, "Choosing the share of counted successors"):
            put_blend(spec.output, chosen_on.output, chosen_on.samples, seed=spec.config.seed)


def _write_report(output: Folder, record: TrainingRecord) -> None:
    output.put(f"{MODEL_FOLDER}/README.md", model_card(record).encode())
    write_training_report(record, output.put)


def _train_point(config: TrainConfig) -> TrainingRecord:
    """Train one point of a grid, and return its record. A failure is recorded instead of raised."""
    try:
        return run_train(config, console=Console(quiet=True)).record
    except RaypipeError as error:
        now, about = time.time(), str(error)
        return TrainingRecord(
            objective=config.objective, outcome="failed", message=about, started_at=now, finished_at=now
        )


def _is_finished(output: Folder) -> bool:
    """Return whether the output holds a finished training, with its model and its report."""
    if not output.exists(f"{MODEL_FOLDER}/{COMPLETE}"):
        return False
    try:
        return bool(json.loads(output.read(SUMMARY))["outcome"] == "finished" and output.exists(REPORT))
    except (ObjectError, KeyError, TypeError, ValueError):
        return False


def _train_in_steps(spec: RunSpec, record: TrainingRecord, *, use_gpu: bool, console: Console | None) -> TrainingRecord:
    """Train, after the training that chooses the epoch if there is one. Each is resumed or skipped by itself."""
    if spec.selection is None:
        return _train(spec, record, use_gpu=use_gpu, console=console)
    first = spec.selection
    check_same_run(first.output, run_facts(first))
    chosen = first_record(first, time.time(), use_gpu=use_gpu)
    if _is_finished(first.output):
        chosen = earlier_record(first.output, chosen)
    else:
        chosen = _train(first, chosen, use_gpu=use_gpu, console=console)
        _write_report(first.output, chosen)
    refitted = _train(spec, record, use_gpu=use_gpu, console=console, chosen=chosen.kept)
    epochs, best, users = chosen.epochs, chosen.best_epoch, chosen.num_validation_videos
    return replace(refitted, epochs=epochs, best_epoch=best, num_validation_videos=users, is_refitted=True)


def _train(
    spec: RunSpec,
    record: TrainingRecord,
    *,
    use_gpu: bool,
    console: Console | None,
    chosen: EpochMetrics | None = None,
) -> TrainingRecord:
    """Train, and return the completed record. If the training fails, write the report before the error is raised.

    ``chosen`` is the epoch of another training after which this one stops.
    """
    log = EventLog()
    labelled = spec
    try:
        spec, self_training = with_pseudo_labels(spec, console)
        record = replace(record, self_training=self_training)
        spec = with_probe(spec, console)
        _run_workers(spec, log, use_gpu=use_gpu, console=console, chosen=chosen)
    except RaypipeError as error:
        failed = with_events(record, spec, log, outcome="failed", message=str(error))
        with suppress(RaypipeError):  # the report may fail for the same reason; raise the first error
            write_training_report(failed, spec.output.put)
        raise
    record = with_events(record, spec, log, outcome="finished")
    try:
        with status(console, "Comparing with simple models"):
            return replace(record, peers=_peers(labelled, log.ended or {}))
    except RaypipeError as error:  # the model is stored, and its report must not be missing
        _logger.warning("The model is not compared with simple models: %s", error)
        return record


def _peers(spec: RunSpec, ended: Mapping[str, Any]) -> tuple[PeerMetrics, ...]:
    """Compare a classifier with simple models, and with GPT-2 alone if it was trained as well."""
    samples, network = spec.samples, spec.network
    if isinstance(samples, HistorySamples) or not isinstance(network, NetworkSpec) or not spec.is_compared:
        return ()
    predicted = {GPT2_ALONE: ended["peer_predictions"], THIS_MODEL: ended["predictions"]}
    return compare_with_peers(
        samples,
        {name: in_order(parts) for name, parts in predicted.items() if parts},
        embeddings_uri=spec.config.embeddings_uri,
        space=spec.label_space,
        max_frames=network.config.max_frames,
    )


def with_pseudo_labels(spec: RunSpec, console: Console | None) -> tuple[RunSpec, SelfTraining | None]:
    """Return the run with more training videos if it is a self-training, and how many were given a label."""
    samples, network, config = spec.samples, spec.network, spec.config
    if config.objective != "self_train" or isinstance(samples, HistorySamples) or isinstance(network, RankerNetwork):
        return spec, None
    with status(console, "Labelling the videos that have no label"):
        more, found = add_pseudo_labels(
            samples,
            spec.output,
            embeddings_uri=config.embeddings_uri,
            space=spec.label_space,
            max_frames=network.config.max_frames,
            min_probability=config.self_train.min_probability,
        )
    return replace(spec, samples=more), found


def with_probe(spec: RunSpec, console: Console | None) -> RunSpec:
    """Return the run with its fitted probe, if the model has one."""
    samples, network = spec.samples, spec.network
    if not spec.has_probe or isinstance(samples, HistorySamples) or isinstance(network, RankerNetwork):
        return spec
    with status(console, "Fitting a linear probe"):
        probe = find_probe(
            spec.output,
            samples,
            embeddings_uri=spec.config.embeddings_uri,
            space=spec.label_space,
            max_frames=network.config.max_frames,
        )
    return replace(spec, network=replace(network, probe=probe))


def _run_workers(
    spec: RunSpec, log: EventLog, *, use_gpu: bool, console: Console | None, chosen: EpochMetrics | None
) -> None:
    """Run the workers, and add their events to ``log``.

    Raises:
        JobError: the workers failed too often, or a loss is not finite.
    """
    events = open_queue()
    with tempfile.TemporaryDirectory() as scratch:
        with data_context():
            trainer = make_trainer(spec, events, scratch=Path(scratch), use_gpu=use_gpu, chosen=chosen)
        stop_epoch = spec.stop_epoch if chosen is None else chosen.epoch
        num_epochs = spec.config.optimizer.epochs if stop_epoch is None else stop_epoch
        progress = TrainingProgress(num_epochs=num_epochs, console=console)
        try:
            with progress:
                if chosen is not None:
                    progress.note(f"fitting all events again, until epoch {chosen.epoch}")
                for kind, about in listen(events, trainer.fit):
                    log.add(kind, about, progress)
        except (TrainingFailedError, RayError) as error:
            failed = f"The workers failed more than {spec.config.resources.max_failures} times"
            what = failed if isinstance(error, TrainingFailedError) else "Ray ended the work"
            msg = f"{what}: {reason_of(error)}. {_CONTINUES}"
            raise JobError(msg) from error
    if log.ended is None:
        msg = f"The workers ended without a result. {_CONTINUES}"
        raise JobError(msg)
    state = log.ended["state"]
    if state["ended"] == "not_finite":
        msg, best = state["message"], state["best_checkpoint"]
        if best is not None:
            msg += f" The best checkpoint until then is {spec.output}/checkpoints/{best:06d}."
        raise JobError(msg)


def decide_gpu(config: TrainConfig) -> bool:
    """Return whether each worker gets a GPU.

    Raises:
        SetupError: the cluster has too few GPUs or CPUs, so that the workers would wait forever.
    """
    num_workers, wanted = config.resources.num_workers, config.resources.use_gpu
    worker = {"CPU": _WORKER_CPUS, "GPU": 1.0} if wanted is True else {"CPU": _WORKER_CPUS}
    bundles = [*[worker] * num_workers, {"CPU": float(READ_CPUS)}]
    has = await_resources(bundles, wait_seconds=config.resources.wait_seconds)
    cpus, gpus = has["CPU"], has["GPU"]
    if wanted is True and gpus < num_workers:
        advice = "Choose fewer workers, auto or false."
        msg = f"resources.use_gpu=true with num_workers={num_workers}: the cluster has {gpus:g} GPUs. {advice}"
        raise SetupError(msg)
    if (needed := num_workers * _WORKER_CPUS + READ_CPUS) > cpus:
        needs = f"the workers and their reading need {needed:g} CPUs; the cluster has {cpus:g}"
        msg = f"resources.num_workers={num_workers}: {needs}. Choose fewer workers, or add nodes."
        raise SetupError(msg)
    return gpus >= num_workers if wanted == "auto" else wanted


def make_trainer(
    spec: RunSpec, events: Queue, *, scratch: Path, use_gpu: bool, chosen: EpochMetrics | None = None
) -> TorchTrainer:
    """Return the Ray Train trainer that runs the workers.

    Ray Train keeps only its own state in ``scratch``. The workers write the checkpoints to the output.
    """
    config, samples = spec.config, spec.samples
    num_workers = config.resources.num_workers
    loop = LoopSettings(
        optimizer=config.optimizer,
        checkpoint=config.checkpoint,
        learning_rate=spec.learning_rate,
        seed=config.seed,
        num_train=samples.train.num_rows,
        num_validation=samples.validation.num_rows,
        class_weights=spec.class_weights,
        stop_epoch=spec.stop_epoch,
    )
    model_files: Mapping[str, str] = {}
    if isinstance(samples, HistorySamples) and isinstance(spec.network, RankerNetwork):
        stop_epoch = None if chosen is None else chosen.epoch
        loop = replace(loop, betas=BETAS, final_rate=FINAL_RATE, stop_epoch=stop_epoch)
        model_files = put_ranker_files(spec.output, spec.network.id_positions, samples)
    settings = WorkerSettings(
        output_uri=spec.output.uri,
        network=ray.put(spec.network),
        loop=loop,
        cache_bytes=config.data.cache_bytes,
        num_threads=threads_per_worker(num_workers, n_embd=spec.network.n_embd),
        events=events,
        model_files=model_files,
        metrics=None if chosen is None else asdict(chosen),
        peer=None if spec.peer is None else ray.put(spec.peer),
        refitted=spec.network.probe.refitted if isinstance(spec.network, NetworkSpec) and spec.network.probe else None,
    )
    datasets: dict[str, Any] = {
        name: _dataset(config, part)
        for name, part in ((TRAIN, samples.train), (VALIDATION, samples.validation))
        if part.num_rows
    }
    return TorchTrainer(
        train_worker,
        train_loop_config={"settings": settings},
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": _WORKER_CPUS}
        ),
        run_config=RunConfig(
            name=f"raypipe-{uuid.uuid4().hex[:12]}",
            storage_path=str(scratch),  # we store checkpoints ourselves: at any URI, and atomically
            failure_config=FailureConfig(max_failures=config.resources.max_failures),
        ),
        datasets=datasets,
        dataset_config=UnevenSplits(),
    )


def _dataset(config: TrainConfig, samples: pa.Table) -> Dataset:
    num_workers, seed = config.resources.num_workers, config.seed
    if config.objective == "next_video":
        return histories_dataset(samples, num_workers=num_workers, seed=seed)
    return frames_dataset(samples, embeddings_uri=config.embeddings_uri, num_workers=num_workers, seed=seed)


def threads_per_worker(num_workers: int, *, n_embd: int) -> int:
    """Return the number of torch threads for each worker: its share of the CPUs of its node.

    A narrow model gets fewer threads, because it is slower with several threads than with one.
    """
    nodes = [node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]]
    per_node = -(-num_workers // max(1, len(nodes)))
    return max(1, min(int(min(nodes) // per_node), n_embd // _WIDTH_PER_THREAD))
