"""Scores: the quality of predictions, as sums over videos that can be added across batches and workers."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from raypipe.schema import LABEL_THRESHOLD

_TOP = 5
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Scores:
    """Sums over videos; for each of C labels, how many videos have it, how many are predicted to have it, and both."""

    num_labels: int
    totals: Floats = field(
        init=False, default_factory=lambda: np.zeros(4)
    )  # loss, videos, correct, correct within the top five
    by_label: Floats = field(init=False)  # [3, C]: support, predicted, both

    def __post_init__(self) -> None:
        self.by_label = np.zeros((3, self.num_labels))

    def add(self, losses: torch.Tensor, logits: torch.Tensor | None, labels: torch.Tensor | None) -> None:
        """Count a batch: losses ``[B]``, logits ``[B, C]``, class numbers ``[B]`` or zeros and ones ``[B, C]``."""
        self.totals[:2] += float(losses.double().sum()), len(losses)
        if logits is None or labels is None or not len(losses):
            return
        truth, given = as_sets(labels, self.num_labels), predicted_sets(logits, multi_label=labels.ndim > 1)
        best = logits.topk(min(_TOP, self.num_labels), dim=1).indices.cpu().numpy()
        among = np.take_along_axis(truth, best, axis=1).any(axis=1)
        self.totals[2:] += (truth == given).all(axis=1).sum(), among.sum()
        self.by_label += label_sums(truth, given)

    @property
    def loss(self) -> float:
        """The mean loss of a video; NaN if there is none."""
        return float(self.totals[0] / self.totals[1]) if self.totals[1] else float("nan")

    @property
    def accuracy(self) -> float:
        """The fraction of videos whose labels are all correct."""
        return float(self.totals[2] / self.totals[1])

    @property
    def top5_accuracy(self) -> float:
        """The fraction of videos with a label among the five most likely ones."""
        return float(self.totals[3] / self.totals[1])

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the labels that some video has or is predicted to have."""
        present = self.by_label[:2].sum(axis=0) > 0
        return float(f1(self.by_label)[present].mean()) if present.any() else 0.0


def f1(by_label: Floats) -> Floats:
    """Return the F1 of each label ``[C]`` from support, predicted and both ``[3, C]``; 0 if there is neither."""
    scores: Floats = 2 * by_label[2] / np.maximum(by_label[0] + by_label[1], 1)
    return scores


def label_sums(truth: Bools, given: Bools) -> Floats:
    """Return support, predicted and both of each label ``[3, C]``, from true and predicted labels ``[V, C]``."""
    sums: Floats = np.stack([truth.sum(axis=0), given.sum(axis=0), (truth & given).sum(axis=0)]).astype(np.float64)
    return sums


def as_sets(labels: torch.Tensor, num_labels: int) -> Bools:
    """Convert class numbers ``[B]``, or zeros and ones ``[B, C]``, to booleans ``[B, C]``: the labels of each video."""
    sets: Bools = (labels if labels.ndim > 1 else torch.nn.functional.one_hot(labels, num_labels)).bool().cpu().numpy()
    return sets


def predicted_sets(logits: torch.Tensor, *, multi_label: bool) -> Bools:
    """Return which labels the logits ``[B, C]`` predict: the best one, or all with a probability of at least 0.5."""
    if multi_label:
        several: Bools = (logits.sigmoid() >= LABEL_THRESHOLD).cpu().numpy()
        return several
    return as_sets(logits.argmax(dim=1), logits.shape[1])


def measured(scores: Scores | None) -> dict[str, float]:
    """Return the scores as fields of an epoch's metrics; only the loss if nothing is classified."""
    if scores is None:
        return {}
    names = ("accuracy", "top5_accuracy", "macro_f1") if scores.num_labels else ()
    return {"validation_loss": scores.loss} | {name: getattr(scores, name) for name in names}
