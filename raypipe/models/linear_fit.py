"""Fit linear models with cross-validation. The penalty is the one whose out-of-fold loss is the lowest."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from raypipe.models.classifier import classification_loss

PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001)  # half the squared weights times this is added to the mean loss
NUM_FOLDS = 5
_MAX_CHOICE_VIDEOS, _MAX_STEPS = 5_000, 200
_MIN_PARALLEL = 2**24  # numbers in the inputs of a fit that several threads speed up
_BIAS_PENALTY = 1e-3  # of the difference to the prior: bounds the bias of a label that is in no video of a fold
MIN_STD = 1e-4  # embeddings are float16: below its resolution, an input is constant


@dataclass(frozen=True, slots=True)
class LinearFit:
    """A linear model on standardised inputs, with the penalty that predicts unseen videos best.

    ``out_of_fold`` ``[N, C]`` are logits for the inputs of the fit, by models that were fitted without them.
    """

    mean: torch.Tensor  # [F]
    std: torch.Tensor  # [F]
    weight: torch.Tensor  # [C, F]
    bias: torch.Tensor  # [C]
    penalty: float
    out_of_fold: torch.Tensor

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits ``[V, C]`` for inputs ``[V, F]``."""
        return (inputs - self.mean) / self.std @ self.weight.T + self.bias


def blocked_folds(labels: torch.Tensor) -> torch.Tensor:
    """Return the fold of each video ``[N]``: each label's videos are divided into consecutive blocks.

    Videos with neighboring IDs are often parts of one recording. In one block, they cannot make a model look better
    than it is.
    """
    folds = torch.zeros(len(labels), dtype=torch.long)
    for label in torch.unique(labels):
        members = (labels == label).nonzero()[:, 0]
        blocks = torch.arange(len(members)) * NUM_FOLDS // len(members)
        folds[members] = (blocks + label) % NUM_FOLDS  # so that labels with few videos are not all in one fold
    return folds


def spread_folds(labels: torch.Tensor) -> torch.Tensor:
    """Return the fold of each video ``[N]``: each label's videos are dealt to the folds in turn.

    So each model has seen the neighbors of the videos that it is asked about. This is wrong for measuring a model, and
    right for checking labels, because the neighbors of a video with a wrong label say what it should be.
    """
    folds = torch.zeros(len(labels), dtype=torch.long)
    for label in torch.unique(labels):
        members = (labels == label).nonzero()[:, 0]
        folds[members] = (torch.arange(len(members)) + label) % NUM_FOLDS
    return folds


def fit_linear(inputs: torch.Tensor, loss: "VideoLosses", folds: torch.Tensor) -> LinearFit:
    """Fit a linear model to inputs ``[N, F]`` by L-BFGS, with the penalty whose out-of-fold loss is the lowest.

    With many videos, the penalty is chosen on some of them.
    """
    with _threads(inputs):
        return _fit_linear(inputs, loss, folds)


def _fit_linear(inputs: torch.Tensor, loss: "VideoLosses", folds: torch.Tensor) -> LinearFit:
    mean, std = inputs.mean(dim=0), inputs.std(dim=0, correction=0).clamp(min=MIN_STD)
    scaled = (inputs - mean) / std
    every = torch.arange(len(inputs))
    some = every[:: -(-len(inputs) // _MAX_CHOICE_VIDEOS)]
    tried = _out_of_fold(scaled[some], loss.take(some), folds[some], PENALTIES)
    penalty = min(tried, key=lambda one: float(loss.take(some)(tried[one]).mean()))
    path = PENALTIES[: PENALTIES.index(penalty) + 1]
    whole = len(some) == len(every)
    out_of_fold = tried[penalty] if whole else _out_of_fold(scaled, loss, folds, (penalty,))[penalty]
    weight, bias = _fit_path(scaled, loss, path if whole else (penalty,))[penalty]
    return LinearFit(mean, std, weight, bias, penalty, out_of_fold)


@contextmanager
def _threads(inputs: torch.Tensor) -> Iterator[None]:
    """Use one thread for small inputs: then several are slower, and much slower if the CPUs are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if inputs.numel() < _MIN_PARALLEL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class VideoLosses:
    """The losses of N videos whose labels are known, as a function of their logits."""

    def __init__(self, labels: torch.Tensor, num_labels: int, *, class_weights: torch.Tensor | None = None) -> None:
        self.labels, self.num_labels, self._class_weights = labels, num_labels, class_weights

    @property
    def prior(self) -> torch.Tensor:
        """The logits ``[C]`` of the labels' frequencies, with half a video more and less of each."""
        if self.labels.ndim > 1:
            rates = (self.labels.sum(dim=0) + 0.5) / (len(self.labels) + 1)
            return rates.logit()
        counts = torch.bincount(self.labels, minlength=self.num_labels) + 0.5
        return (counts / counts.sum()).log().float()

    def take(self, rows: torch.Tensor) -> "VideoLosses":
        """Return the losses of some videos."""
        return VideoLosses(self.labels[rows], self.num_labels, class_weights=self._class_weights)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the losses ``[N]`` for logits ``[N, C]``."""
        return classification_loss(logits, self.labels, class_weights=self._class_weights)


def _out_of_fold(
    inputs: torch.Tensor, loss: VideoLosses, folds: torch.Tensor, penalties: tuple[float, ...]
) -> dict[float, torch.Tensor]:
    """Return logits for all inputs, by penalty. Those of a fold come from a model that was fitted to the others."""
    logits = {penalty: torch.zeros(len(inputs), loss.num_labels) for penalty in penalties}
    for fold in torch.unique(folds):
        is_held_out = folds == fold
        rows = (~is_held_out).nonzero()[:, 0]
        for penalty, (weight, bias) in _fit_path(inputs[rows], loss.take(rows), penalties).items():
            logits[penalty][is_held_out] = inputs[is_held_out] @ weight.T + bias
    return logits


def _fit_path(
    inputs: torch.Tensor, loss: VideoLosses, penalties: tuple[float, ...]
) -> dict[float, tuple[torch.Tensor, torch.Tensor]]:
    """Return the weights and biases for each penalty. Each fit starts from the one before it."""
    weight, bias = torch.zeros(loss.num_labels, inputs.shape[1]), loss.prior
    fits = {}
    for penalty in penalties:
        if len(inputs):
            weight, bias = _fit(inputs, loss, weight, bias, penalty=penalty)
        fits[penalty] = weight, bias
    return fits


def _fit(
    inputs: torch.Tensor, loss: VideoLosses, weight: torch.Tensor, bias: torch.Tensor, *, penalty: float
) -> tuple[torch.Tensor, torch.Tensor]:
    # The loss of several labels is their mean. Each label is a separate fit, with the same penalty.
    scale, prior = loss.num_labels if loss.labels.ndim > 1 else 1, loss.prior
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_MAX_STEPS, line_search_fn="strong_wolfe", tolerance_grad=1e-5, tolerance_change=1e-7
    )

    def value() -> torch.Tensor:
        optimizer.zero_grad()
        total = scale * loss(inputs @ weight.T + bias).mean() + penalty / 2 * weight.square().sum()
        total = total + _BIAS_PENALTY / 2 * (bias - prior).square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(value)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
