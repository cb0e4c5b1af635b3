"""What a training tells: events of its workers on the way to a person, and to the record of it."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from raypipe.errors import CommitError, ObjectError
from raypipe.jobs.train.setup import Setup
from raypipe.models.classifier_files import MODEL_FOLDER
from raypipe.records import ClassMetrics, EpochMetrics, Mistake, TrainingRecord
from raypipe.runs.actors import machine
from raypipe.runs.job import versions
from raypipe.runs.progress import TrainingProgress
from raypipe.storage import Folder

SUMMARY = "summary.json"


@dataclass(slots=True)
class Story:
    """What the workers have told so far."""

    epochs: list[EpochMetrics] = field(default_factory=list)
    starts: list[Mapping[str, Any]] = field(default_factory=list)
    ended: Mapping[str, Any] | None = None


def first_record(setup: Setup, started_at: float, *, use_gpu: bool) -> TrainingRecord:
    """What is known of a training before it begins; ``started_at`` is Unix time."""
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


def show(progress: TrainingProgress, story: Story, kind: str, about: Mapping[str, Any]) -> None:
    """Add one event of a worker to the story, and show it."""
    if kind == "started":
        story.starts.append(about)
        story.epochs = [EpochMetrics(**epoch) for epoch in about["history"]]
        if about["checkpoint"] is not None:
            again = "workers were started again" if len(story.starts) > 1 else "going on"
            progress.note(f"{again} from checkpoint {about['checkpoint']}, epoch {about['epoch'] + 1}")
        elif len(story.starts) > 1:
            progress.note("workers were started again from the beginning")
    elif kind == "step":
        per_epoch = story.starts[-1]["steps_per_epoch"]
        step = about["step"] - (story.epochs[-1].step if story.epochs else 0)
        progress.step(about["epoch"], step, per_epoch, about["loss"], about["samples_per_second"])
    elif kind == "epoch":
        metrics = EpochMetrics(**about["metrics"])
        story.epochs = [*(epoch for epoch in story.epochs if epoch.epoch < metrics.epoch), metrics]
        progress.epoch(metrics, about["is_best"])
    elif kind == "ended":
        story.ended = about


def so_far(record: TrainingRecord, story: Story) -> TrainingRecord:
    """The record with what the workers have told."""
    about = story.starts[-1] if story.starts else {}
    return replace(
        record,
        epochs=tuple(story.epochs),
        best_epoch=story.ended["state"]["best_epoch"] if story.ended else None,
        model_uri=story.ended["model_uri"] if story.ended else "",
        num_parameters=about.get("num_parameters", 0),
        num_trainable_parameters=about.get("num_trainable_parameters", 0),
        num_restarts=max(0, len(story.starts) - 1),
    )


def earlier_record(output: Folder, record: TrainingRecord) -> TrainingRecord:
    """What an earlier run that finished said, but for the pictures.

    Raises:
        CommitError: its summary is not one.
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
            model_uri=output.child(MODEL_FOLDER),
            **{key: said[key] for key in known},
        )
    except (ObjectError, KeyError, TypeError, ValueError) as error:
        msg = f"{output.child(SUMMARY)} is not that of a training: {' '.join(str(error).split())}."
        raise CommitError(msg) from None
