"""The numbers of a training as a person reads them: on its page, on its model's card and on the terminal."""

import math

from raypipe.records import EpochMetrics, TrainingRecord
from raypipe.text import NOTHING, finite, format_count, format_rate, format_share, plural

_NAMES = {
    "loss": "validation loss",
    "validation_loss": "validation loss",
    "train_loss": "training loss",
    "accuracy": "accuracy",
    "top5_accuracy": "top-5 accuracy",
    "macro_f1": "macro-F1",
}
_SHARES = frozenset({"accuracy", "top5_accuracy"})
_SCORES = frozenset({"macro_f1"})
_TOP = 5
_MAX_RATE = 1e15  # a rate beyond it was divided by nothing
_PLAIN_LOSSES = (0.01, 1000)  # between these, three decimals say enough


def metric_name(name: str) -> str:
    """Return the name of an epoch's metric in words."""
    return _NAMES.get(name, name)


def title(words: str) -> str:
    """Return ``words`` with a capital at the start and the rest as it is: ``Macro-F1``."""
    return f"{words[:1].upper()}{words[1:]}"


def selected_name(record: TrainingRecord) -> str:
    """Return in words which metric chose the kept epoch."""
    losses = record.selected_by in {"loss", "validation_loss"}
    if losses and (record.kept is None or record.kept.validation_loss is None):
        return metric_name("train_loss")
    return metric_name(record.selected_by)


def format_metric(name: str, value: float | None) -> str:
    """Format a metric by its kind: accuracies in percent, F1 as a number up to 1, losses to three decimals."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite"
    if name in _SHARES:
        return format_share(value)
    return format_score(value) if name in _SCORES else format_loss(value)


def format_score(value: float) -> str:
    """Format a number between 0 and 1: ``0.842``."""
    return f"{finite(value):.3f}"


def format_loss(value: float) -> str:
    """Format a loss: ``0.412``, ``0.00034``, ``1.2e+05``."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite"
    smallest, largest = _PLAIN_LOSSES
    return f"{value:.3f}" if value == 0 or smallest <= abs(value) < largest else f"{value:.2g}"


def metric_names(record: TrainingRecord) -> list[str]:
    """Return the names of an epoch's metrics that mean something, as they are told one after the other."""
    names = ["accuracy", "top5_accuracy", "macro_f1", "validation_loss", "train_loss"]
    if len(record.label_names) <= _TOP or record.several_labels:
        names.remove("top5_accuracy")  # is 100 % of five labels whatever the model
    return names


def measured(record: TrainingRecord, metrics: EpochMetrics) -> list[tuple[str, str]]:
    """Return (name, number) of what an epoch measured on the validation split, then its training loss."""
    names = metric_names(record)
    named = [(name, getattr(metrics, name)) for name in names]
    return [(metric_name(name), format_metric(name, value)) for name, value in named if value is not None]


def headline(record: TrainingRecord) -> str:
    """Return how good the kept checkpoint is, in one sentence."""
    kept = record.kept
    if kept is None:
        ended = {"failed": "Training failed", "interrupted": "Training was interrupted"}.get(record.outcome)
        return f"{ended} before an epoch had ended" if ended else "No epoch has ended"
    videos = plural(record.num_validation_videos, "validation video")
    if record.objective == "classify" and not record.several_labels and _is_number(kept.accuracy):
        return f"{format_metric('accuracy', kept.accuracy)} of {videos} right"
    if record.objective == "classify" and _is_number(kept.macro_f1):
        return f"Macro-F1 {format_metric('macro_f1', kept.macro_f1)} on {videos}"
    if kept.validation_loss is not None:
        return f"Loss {format_loss(kept.validation_loss)} on {videos}"
    return f"Training loss {format_loss(kept.train_loss)}, with no validation videos"


def most_common_label(record: TrainingRecord) -> tuple[str, float] | None:
    """Return the most common true label and the accuracy of always saying it; None where that means nothing."""
    whole = sum(metrics.support for metrics in record.classes)
    if record.several_labels or not whole:
        return None
    largest = max(record.classes, key=lambda metrics: metrics.support)
    return largest.label, largest.support / whole


def loss_trouble(record: TrainingRecord) -> str:
    """Return from which epoch on a loss was no number, or nothing."""
    for metrics in record.epochs:
        for name in ("train_loss", "validation_loss"):
            value = getattr(metrics, name)
            if value is not None and not math.isfinite(value):
                return (
                    f"The {metric_name(name)} of epoch {metrics.epoch} is {format_loss(value)}: "
                    "a smaller learning rate or float32 may help."
                )
    return ""


def left_out(record: TrainingRecord) -> str:
    """Return which videos could not be learned from, or nothing."""
    parts = []
    if record.num_unknown_labels:
        parts.append(f"{format_count(record.num_unknown_labels)} without embeddings")
    if record.num_without_frames:
        parts.append(f"{format_count(record.num_without_frames)} without frames")
    return ", ".join(parts)


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def format_speed(per_second: float) -> str:
    """Format a rate that a worker has measured, which may be no number."""
    return format_rate(per_second) if abs(per_second) < _MAX_RATE else NOTHING


def format_parameters(count: int) -> str:
    """Format a number of weights: ``820``, ``1.23M``, ``124M``."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{format_rate(count / size)}{unit}"
    return str(count)
