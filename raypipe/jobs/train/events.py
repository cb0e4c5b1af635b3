"""Events that workers report to the driver through a queue, and the record that the driver makes of them."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raypipe import schema
from raypipe.config.load import command_line
from raypipe.dataset.read import column_by_id
from raypipe.errors import CommitError, ObjectError
from raypipe.jobs.train.classifier.scores import Bools, f1, label_mask, label_sums
from raypipe.jobs.train.inputs import TrainingSamples, ids_by_file
from raypipe.jobs.train.ranker.histories import HistorySamples
from raypipe.jobs.train.run_spec import RunSpec
from raypipe.models.model_files import MODEL_FOLDER
from raypipe.records import (
    MAX_MISTAKES,
    ClassMetrics,
    DeletionCurve,
    EpochMetrics,
    Mistake,
    Outcome,
    PeerMetrics,
    TrainingRecord,
    selected_metric,
    versions,
)
from raypipe.runs.actors import machine
from raypipe.runs.progress import TrainingProgress
from raypipe.storage import Folder
from raypipe.text import one_line

_POLL_SECONDS = 0.2
SUMMARY = "summary.json"
_FRAME_KEYS = {"embeddings", "labels", "labels_from", "init_from", "problem_type", "model"}  # not of next_video
_HISTORY_KEYS = {"index", "history", "cache", "ranker"}  # of next_video alone
Floats = npt.NDArray[np.float32]


def open_queue() -> Queue:
    """Start an event queue on the driver's node. It stops when the driver exits."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def listen(queue: Queue, work: Callable[[], object]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Run ``work`` in a thread, and yield the events from the queue until ``work`` ends.

    If ``work`` raises an exception, it is raised here after the last event.
    """
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
    """The events that the workers have reported so far.

    ``starts`` has one event for each start or restart of the workers, and ``ended`` is the final event.
    """

    epochs: list[EpochMetrics] = field(default_factory=list)
    starts: list[Mapping[str, Any]] = field(default_factory=list)
    ended: Mapping[str, Any] | None = None

    def add(self, kind: str, about: Mapping[str, Any], progress: TrainingProgress) -> None:
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
        elif kind == "note":
            progress.note(about["line"])
        elif kind == "ended":
            self.ended = about


def first_record(spec: RunSpec, started_at: float, *, use_gpu: bool) -> TrainingRecord:
    """Return the record of a training that has not started yet. ``started_at`` is Unix time."""
    config, samples = spec.config, spec.samples
    unused = _FRAME_KEYS if config.objective == "next_video" else _HISTORY_KEYS
    if config.objective != "self_train":
        unused = {*unused, "self_train"}
    settings = {key: value for key, value in config.model_dump(mode="json").items() if key not in unused}
    settings["embedding_fingerprint"] = samples.fingerprint
    settings["optimizer"]["learning_rate"] = spec.learning_rate
    record = TrainingRecord(
        objective=config.objective,
        command=command_line("train", config),
        output_uri=spec.output.uri,
        outcome="running",
        started_at=started_at,
        settings=settings,
        versions=versions(("torch", "transformers", "safetensors", "peft")),
        machine={**machine(), "device": "cuda" if use_gpu else "cpu"},
        num_train_videos=samples.train.num_rows,
        num_validation_videos=samples.validation.num_rows,
        num_workers=config.resources.num_workers,
        selected_by="loss" if config.is_pretraining else selected_metric(config.optimizer.select_by),
    )
    if isinstance(samples, HistorySamples):
        sizes = {name: getattr(spec.network.config, name) for name in ("n_embd", "n_layer", "num_ids")}
        return replace(
            record,
            index_uri=config.index_uri,
            history_uri=config.history_uri,
            settings={**settings, "ranker": {**settings["ranker"], **sizes}},
            history_facts=samples.facts,
            history_counts=samples.counts,
        )
    return replace(
        record,
        problem_type="multi_label_classification" if samples.multi_label else "single_label_classification",
        embeddings_uri=config.embeddings_uri,
        labels_uri=config.labels or "",
        label_names=samples.label_names,
        num_unknown_labels=samples.num_unknown,
        num_without_frames=samples.num_without_frames,
    )


def with_events(
    record: TrainingRecord, spec: RunSpec, log: EventLog, *, outcome: Outcome, message: str = ""
) -> TrainingRecord:
    """Return the record of a training that has ended, completed with the events of the workers."""
    about = log.starts[-1] if log.starts else {}
    num_parameters = (log.ended or about).get("num_parameters", about.get("num_parameters", 0))
    record = replace(
        record,
        outcome=outcome,
        message=message,
        finished_at=time.time(),
        epochs=tuple(log.epochs),
        best_epoch=log.ended["state"]["best_epoch"] if log.ended else None,
        model_uri=log.ended["model_uri"] if log.ended else "",
        num_parameters=num_parameters,
        num_trainable_parameters=min(num_parameters, about.get("num_trainable_parameters", 0)),
        num_restarts=max(0, len(log.starts) - 1),
        deletion=log.ended["deletion"] if log.ended else None,
    )
    return with_evaluation(record, spec, log.ended["predictions"] if log.ended else None)


def earlier_record(output: Folder, record: TrainingRecord) -> TrainingRecord:
    """Return the record of an earlier run that has finished, as read from its summary. It has no thumbnails.

    Raises:
        CommitError: the summary cannot be read.
    """
    try:
        said = json.loads(output.read(SUMMARY))
        known = ("num_parameters", "num_trainable_parameters", "num_restarts", "best_epoch", "selected_by", "confusion")
        return replace(
            record,
            outcome=said["outcome"],
            started_at=datetime.fromisoformat(said["started_at"]).timestamp(),
            finished_at=datetime.fromisoformat(said["finished_at"]).timestamp(),
            epochs=tuple(EpochMetrics(**epoch) for epoch in said["epochs"]),
            classes=tuple(ClassMetrics(**metrics) for metrics in said["classes"]),
            mistakes=tuple(Mistake(**mistake) for mistake in said["mistakes"]),
            peers=tuple(PeerMetrics(**metrics) for metrics in said.get("peers", ())),
            deletion=DeletionCurve(**said["deletion"]) if said.get("deletion") else None,
            model_uri=output.child(MODEL_FOLDER),
            is_refitted=said.get("is_refitted", False),
            **{key: said[key] for key in known},
        )
    except (ObjectError, KeyError, TypeError, ValueError) as error:
        msg = f"{output.child(SUMMARY)} is not the summary of a training: {one_line(error)}."
        raise CommitError(msg) from None


def with_evaluation(record: TrainingRecord, spec: RunSpec, predictions: list[dict[str, Any]] | None) -> TrainingRecord:
    """Add the confusion matrix, the metrics of each label and the worst mistakes to a record.

    ``predictions`` holds the predictions for the validation videos in parts. Each part has the ``index`` and the
    ``targets`` of its videos, and their ``probabilities`` ``[V, C]``. Without predictions, the record is not changed.
    """
    samples = spec.samples
    if not predictions or isinstance(samples, HistorySamples) or not samples.label_names:
        return record
    names = samples.label_names
    index = np.concatenate([np.asarray(part["index"], dtype=np.int64) for part in predictions])
    probabilities: Floats = np.concatenate([part["probabilities"] for part in predictions])
    truth = label_mask([target for part in predictions for target in part["targets"]], probabilities.shape[1])
    best = probabilities.argmax(axis=1)
    several = samples.multi_label
    given: Bools = probabilities >= schema.LABEL_THRESHOLD if several else np.eye(len(names), dtype=bool)[best]
    return replace(
        record,
        # Rows are true labels, columns are predicted labels.
        confusion=None if several else (truth.astype(np.int64).T @ given.astype(np.int64)).tolist(),
        classes=_class_metrics(truth, given, names),
        mistakes=_mistakes(samples, index, probabilities, truth, best, embeddings_uri=spec.config.embeddings_uri),
    )


def _class_metrics(truth: Bools, given: Bools, label_names: tuple[str, ...]) -> tuple[ClassMetrics, ...]:
    """Return the precision, recall and F1 of each label. ``truth`` and ``given`` are masks of labels, ``[V, C]``.

    ``truth`` says which labels each video has, and ``given`` which labels were predicted.
    """
    sums = label_sums(truth, given)
    return tuple(
        ClassMetrics(
            label=label,
            support=int(support),
            predicted=int(predicted),
            precision=float(both / max(predicted, 1)),
            recall=float(both / max(support, 1)),
            f1=float(f1_score),
        )
        for label, support, predicted, both, f1_score in zip(label_names, *sums, f1(sums), strict=True)
    )


def _mistakes(
    samples: TrainingSamples,
    index: npt.NDArray[np.int64],
    probabilities: Floats,
    truth: Bools,
    best: npt.NDArray[np.int64],
    *,
    embeddings_uri: str,
) -> tuple[Mistake, ...]:
    """Return the videos whose most likely label is wrong, with their thumbnails. The most confident mistakes are first.

    ``best`` is the number of the most likely label of each video.
    """
    rows = np.arange(len(best))
    wrong = np.flatnonzero(~truth[rows, best])
    wrong = wrong[np.argsort(-probabilities[wrong, best[wrong]], kind="stable")][:MAX_MISTAKES]
    videos = samples.validation.take(pa.array(index[wrong]))
    thumbnails = column_by_id(Folder(embeddings_uri), ids_by_file(videos), schema.THUMBNAIL)
    names = samples.label_names
    return tuple(
        Mistake(
            video_id=video_id,
            label=", ".join(names[label] for label in np.flatnonzero(truth[row])),
            predicted=names[best[row]],
            score=float(probabilities[row, best[row]]),
            label_score=float(probabilities[row, truth[row]].max()),
            thumbnail=thumbnails.get(video_id),
        )
        for row, video_id in zip(wrong.tolist(), videos[schema.VIDEO_ID].to_pylist(), strict=True)
    )
