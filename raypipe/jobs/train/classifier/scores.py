"""Scores of predictions, kept as sums over videos, so that batches and workers can be added up."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from raypipe.jobs.train.batches import Collective
from raypipe.schema import LABEL_THRESHOLD

_TOP = 5
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Scores:
    """Sums over the videos that were evaluated.

    ``totals`` holds four sums. ``gains`` holds two: by how much the loss of the probe alone is higher, and the squares
    of that. ``by_label`` counts for each of the C labels the videos that have it (support), the
    videos for which it is predicted (predicted), and the videos for which both are true (both).
    """

    num_labels: int
    has_probe: bool = False
    totals: Floats = field(
        init=False, default_factory=lambda: np.zeros(4)
    )  # loss, videos, correct, correct within the top five
    gains: Floats = field(init=False, default_factory=lambda: np.zeros(2))
    by_label: Floats = field(init=False)  # [3, C]: support, predicted, both

    def __post_init__(self) -> None:
        self.by_label = np.zeros((3, self.num_labels))

    def add(self, losses: torch.Tensor, logits: torch.Tensor | None, labels: torch.Tensor | None) -> None:
        """Add a batch to the sums, given its losses ``[B]`` and logits ``[B, C]``.

        ``labels`` holds class numbers ``[B]``, or zeros and ones ``[B, C]`` if a video may have several labels.
        """
        self.totals[:2] += float(losses.double().sum()), len(losses)
        if logits is None or labels is None or not len(losses):
            return
        truth, given = as_sets(labels, self.num_labels), predicted_sets(logits, multi_label=labels.ndim > 1)
        best = logits.topk(min(_TOP, self.num_labels), dim=1).indices.cpu().numpy()
        among = np.take_along_axis(truth, best, axis=1).any(axis=1)
        self.totals[2:] += (truth == given).all(axis=1).sum(), among.sum()
        self.by_label += label_sums(truth, given)

    def add_gains(self, gains: torch.Tensor) -> None:
        """Add by how much the loss of the probe alone is higher than that of the model, for each video ``[B]``."""
        values = gains.double()
        self.gains += float(values.sum()), float(values.square().sum())

    @property
    def probe_gain(self) -> float:
        """By how much the mean loss is lower than that of the probe alone."""
        return float(self.gains[0] / self.totals[1])

    @property
    def probe_gain_error(self) -> float:
        """The standard error of ``probe_gain``, from the differences of each video."""
        num_videos = self.totals[1]
        variance = max(0.0, self.gains[1] / num_videos - self.probe_gain**2)
        return float((variance / max(1, num_videos - 1)) ** 0.5)

    @property
    def loss(self) -> float:
        """The mean loss per video, or NaN if there are no videos."""
        return float(self.totals[0] / self.totals[1]) if self.totals[1] else float("nan")

    @property
    def accuracy(self) -> float:
        """The fraction of videos for which exactly the right labels are predicted."""
        return float(self.totals[2] / self.totals[1])

    @property
    def top5_accuracy(self) -> float:
        """The fraction of videos for which at least one true label is among the five most likely labels."""
        return float(self.totals[3] / self.totals[1])

    @property
    def macro_f1(self) -> float:
        """The mean F1 over all labels that at least one video has or is predicted to have."""
        present = self.by_label[:2].sum(axis=0) > 0
        return float(f1(self.by_label)[present].mean()) if present.any() else 0.0

    def add_up(self, workers: Collective) -> None:
        """Add the sums of all workers."""
        self.totals, self.gains = workers.sum(self.totals), workers.sum(self.gains)
        self.by_label = workers.sum(self.by_label)

    def metrics(self) -> dict[str, float]:
        """Return the scores as keyword arguments of ``EpochMetrics``; only the loss if the model does not classify."""
        names = ["accuracy", "top5_accuracy", "macro_f1"] if self.num_labels else []
        names += ["probe_gain", "probe_gain_error"] if self.has_probe else []
        return {"validation_loss": self.loss} | {name: getattr(self, name) for name in names}


def f1(by_label: Floats) -> Floats:
    """Return the F1 of each label ``[C]``.

    ``by_label`` ``[3, C]`` has the rows support, predicted and both, as in ``Scores``. The F1 of a label is 0 if no
    video has the label and it is predicted for none.
    """
    scores: Floats = 2 * by_label[2] / np.maximum(by_label[0] + by_label[1], 1)
    return scores


def label_sums(truth: Bools, given: Bools) -> Floats:
    """Return counts for each label, ``[3, C]``, with the rows support, predicted and both, as in ``Scores``.

    ``truth`` ``[V, C]`` says which labels each video has, and ``given`` ``[V, C]`` which labels are predicted.
    """
    sums: Floats = np.stack([truth.sum(axis=0), given.sum(axis=0), (truth & given).sum(axis=0)]).astype(np.float64)
    return sums


def label_mask(targets: Sequence[Sequence[int] | npt.NDArray[np.int64]], num_labels: int) -> Bools:
    """Return a mask ``[V, C]`` of each video's labels, given its label numbers."""
    mask = np.zeros((len(targets), num_labels), dtype=np.bool_)
    for row, target in zip(mask, targets, strict=True):
        row[np.asarray(target, dtype=np.int64)] = True
    return mask


def as_sets(labels: torch.Tensor, num_labels: int) -> Bools:
    """Return a mask ``[B, C]`` of each video's labels, given class numbers ``[B]`` or zeros and ones ``[B, C]``."""
    sets: Bools = (labels if labels.ndim > 1 else torch.nn.functional.one_hot(labels, num_labels)).bool().cpu().numpy()
    return sets


def predicted_sets(logits: torch.Tensor, *, multi_label: bool) -> Bools:
    """Return a mask ``[B, C]`` of the predicted labels of each video, given logits ``[B, C]``.

    Without ``multi_label`` this is the most likely label. With ``multi_label`` these are all labels with a probability
    of at least 0.5.
    """
    if multi_label:
        several: Bools = (logits.sigmoid() >= LABEL_THRESHOLD).cpu().numpy()
        return several
    return as_sets(logits.argmax(dim=1), logits.shape[1])
