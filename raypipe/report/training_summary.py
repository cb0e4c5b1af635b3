"""The content of a training's ``summary.json``."""

import math
from dataclasses import asdict

from raypipe.records import MAX_MISTAKES, EpochMetrics, TrainingRecord, confused_pairs
from raypipe.report.write import plain, utc
from raypipe.text import redact

FORMAT = 1
MAX_CONFUSION_LABELS = 100
_MAX_PAIRS = 100


def summarize_training(record: TrainingRecord) -> dict[str, object]:
    """Return the content of ``summary.json``.

    Always these keys, of which new ones may be added and none renamed without raising ``format``:

    - ``format`` (1), ``job`` (train), ``objective``, ``problem_type``, ``command``, ``embeddings_uri``,
      ``labels_uri``, ``output_uri``, ``model_uri``
    - ``outcome`` (running, finished, failed, interrupted), ``message``, ``started_at`` and ``finished_at`` (UTC,
      ISO 8601; ``finished_at`` is null while running), ``elapsed_seconds``
    - ``num_labels``, ``label_names``, ``num_train_videos``, ``num_validation_videos``, ``num_unknown_labels`` (videos
      with a label and no embeddings), ``num_without_frames``, ``num_parameters``, ``num_trainable_parameters``,
      ``num_workers``, ``num_restarts``
    - ``epochs``: as ``epoch``, ``step``, ``train_loss``, ``validation_loss``, ``accuracy``, ``top5_accuracy``,
      ``macro_f1``, ``learning_rate``, ``samples_per_second``, ``seconds``; null is not measured, or not a number
    - ``best_epoch``, ``selected_by``, ``metrics`` (the kept epoch again; null: none ended)
    - ``confusion``: rows true, columns predicted; null of several labels each, and of more than 100 labels
    - ``confused_pairs``: at most 100 of ``label``, ``predicted``, ``num_videos``
    - ``classes``: ``label``, ``support``, ``predicted``, ``precision``, ``recall``, ``f1``
    - ``mistakes``: ``video_id``, ``label``, ``predicted``, ``score``, ``label_score``
    - ``trials``: ``name``, ``settings``, ``outcome``, ``best_epoch``, ``metrics``, ``is_best``
    - ``settings``, ``versions``, ``machine``
    """
    kept = record.kept
    return {
        "format": FORMAT,
        "job": "train",
        "objective": record.objective,
        "problem_type": record.problem_type,
        "command": redact(record.command),
        "embeddings_uri": redact(record.embeddings_uri),
        "labels_uri": redact(record.labels_uri),
        "output_uri": redact(record.output_uri),
        "model_uri": redact(record.model_uri),
        "outcome": record.outcome,
        "message": redact(record.message),
        "started_at": utc(record.started_at),
        "finished_at": None if record.finished_at is None else utc(record.finished_at),
        "elapsed_seconds": record.elapsed_seconds,
        **_counts(record),
        "epochs": [_epoch(metrics) for metrics in record.epochs],
        "best_epoch": record.best_epoch,
        "selected_by": record.selected_by,
        "metrics": None if kept is None else _epoch(kept),
        **_of_the_kept(record),
        "trials": _trials(record),
        "settings": plain(record.settings),
        "versions": plain(record.versions),
        "machine": plain(record.machine),
    }


def _counts(record: TrainingRecord) -> dict[str, object]:
    return {
        "num_labels": len(record.label_names),
        "label_names": list(record.label_names),
        "num_train_videos": record.num_train_videos,
        "num_validation_videos": record.num_validation_videos,
        "num_unknown_labels": record.num_unknown_labels,
        "num_without_frames": record.num_without_frames,
        "num_parameters": record.num_parameters,
        "num_trainable_parameters": record.num_trainable_parameters,
        "num_workers": record.num_workers,
        "num_restarts": record.num_restarts,
    }


def _of_the_kept(record: TrainingRecord) -> dict[str, object]:
    """Return how the kept checkpoint does on the validation split."""
    small = record.confusion is not None and len(record.confusion) <= MAX_CONFUSION_LABELS
    pairs = confused_pairs(record)[:_MAX_PAIRS]
    mistakes = []
    for mistake in record.mistakes[:MAX_MISTAKES]:
        said = asdict(mistake)
        del said["thumbnail"]
        mistakes.append({name: _number(value) for name, value in said.items()})
    return {
        "confusion": [list(map(int, row)) for row in record.confusion or ()] if small else None,
        "confused_pairs": [
            {"label": label, "predicted": predicted, "num_videos": int(count)} for label, predicted, count, _ in pairs
        ],
        "classes": [{name: _number(value) for name, value in asdict(metrics).items()} for metrics in record.classes],
        "mistakes": mistakes,
    }


def _trials(record: TrainingRecord) -> list[dict[str, object]]:
    return [
        {
            "name": trial.name,
            "settings": plain(trial.settings),
            "outcome": trial.outcome,
            "best_epoch": trial.best_epoch,
            "metrics": None if trial.metrics is None else _epoch(trial.metrics),
            "is_best": trial is record.best_trial,
        }
        for trial in record.trials
    ]


def _epoch(metrics: EpochMetrics) -> dict[str, object]:
    return {name: _number(value) for name, value in asdict(metrics).items()}


def _number(value: object) -> object:
    """Return a float that JSON cannot hold as null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
