"""What a training tells about itself: its epochs, the checkpoint it kept, and how that one does on held-out videos."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from raypipe.report.record import Outcome
from raypipe.report.text import finite

Objective = Literal["classify", "masked_frame"]
ProblemType = Literal["single_label_classification", "multi_label_classification"]

MAX_MISTAKES = 48
_LOSSES = {"loss": "validation_loss", "validation_loss": "validation_loss", "train_loss": "train_loss"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochMetrics:
    """One epoch, counted from 1; ``step`` counts optimizer steps from the start of the training.

    What was not measured is None: all but losses with ``masked_frame``, all but the training loss where no videos were
    held out. ``accuracy`` is the share of held-out videos that are right; of several labels each, that all are.
    """

    epoch: int
    step: int
    train_loss: float
    validation_loss: float | None = None
    accuracy: float | None = None
    top5_accuracy: float | None = None
    macro_f1: float | None = None
    learning_rate: float
    samples_per_second: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMetrics:
    """One label on the validation split: ``support`` videos have it, ``predicted`` were given it."""

    label: str
    support: int
    predicted: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A validation video that is predicted wrong: with which probability, and with which its true label."""

    video_id: str
    label: str
    predicted: str
    score: float
    label_score: float
    thumbnail: bytes | None = None  # JPEG


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One training of a search: what it set differently, and its best epoch."""

    name: str
    settings: Mapping[str, object]
    outcome: Outcome
    best_epoch: int | None = None
    metrics: EpochMetrics | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """Everything a report says about one training.

    ``selected_by`` names the metric that chose ``best_epoch``, whose checkpoint is kept: ``loss``, ``accuracy`` or
    ``macro_f1``. ``confusion`` (rows: true label, columns: predicted, both as ``label_names``), ``classes`` and
    ``mistakes`` are of that checkpoint on the validation split. Times are Unix seconds.
    """

    objective: Objective
    problem_type: ProblemType = "single_label_classification"
    command: str = ""
    embeddings_uri: str = ""
    labels_uri: str = ""
    output_uri: str = ""
    model_uri: str = ""
    outcome: Outcome
    message: str = ""
    started_at: float
    finished_at: float | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, object] = field(default_factory=dict)
    label_names: Sequence[str] = ()
    num_train_videos: int = 0
    num_validation_videos: int = 0
    num_unknown_labels: int = 0  # videos that have a label and no embeddings
    num_without_frames: int = 0  # videos whose embeddings have no frame
    num_parameters: int = 0
    num_trainable_parameters: int = 0
    num_workers: int = 1
    epochs: tuple[EpochMetrics, ...] = ()
    best_epoch: int | None = None
    selected_by: str = "loss"
    num_restarts: int = 0
    confusion: Sequence[Sequence[int]] | None = None
    classes: tuple[ClassMetrics, ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    trials: tuple[Trial, ...] = ()

    @property
    def kept(self) -> EpochMetrics | None:
        """The epoch whose checkpoint is kept; the last one where none was chosen, None where none ended."""
        chosen = [metrics for metrics in self.epochs if metrics.epoch == self.best_epoch] or self.epochs
        return chosen[-1] if chosen else None

    @property
    def elapsed_seconds(self) -> float:
        """Wall time; that of the epochs while the training goes on."""
        if self.finished_at is None:
            return sum(finite(metrics.seconds) for metrics in self.epochs)
        return max(0.0, self.finished_at - self.started_at)

    @property
    def several_labels(self) -> bool:
        """Whether a video may have several labels at once."""
        return self.problem_type == "multi_label_classification"

    @property
    def best_trial(self) -> Trial | None:
        """The trial with the best metrics by ``selected_by``; None where no trial has any."""
        ranked = [(value, trial) for trial in self.trials if (value := self._rank(trial.metrics)) is not None]
        return max(ranked, key=lambda item: item[0])[1] if ranked else None

    def _rank(self, metrics: EpochMetrics | None) -> float | None:
        if metrics is None:
            return None
        value = selecting_value(metrics, self.selected_by)
        if value is None or value != value:  # noqa: PLR0124  a NaN is nobody's best
            return None
        return -value if self.selected_by in _LOSSES else value


def selecting_value(metrics: EpochMetrics, selected_by: str) -> float | None:
    """Return the metric named ``selected_by``; for a loss that of training where nothing was held out."""
    if selected_by in _LOSSES:
        value: float | None = getattr(metrics, _LOSSES[selected_by])
        return metrics.train_loss if value is None else value
    found = getattr(metrics, selected_by, None)
    return found if isinstance(found, int | float) else None


def confused_pairs(record: TrainingRecord) -> list[tuple[str, str, int, int]]:
    """Return (true label, predicted label, videos, videos of that true label) of what is confused, the most first."""
    pairs = []
    for row, counts in enumerate(record.confusion or ()):
        whole = sum(counts)
        pairs += [(row, column, count, whole) for column, count in enumerate(counts) if count and column != row]
    pairs.sort(key=lambda pair: (-pair[2], pair[0], pair[1]))
    return [(record.label_names[row], record.label_names[column], count, whole) for row, column, count, whole in pairs]
