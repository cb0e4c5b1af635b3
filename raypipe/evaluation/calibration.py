"""How well probabilities say how often a classifier is right."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]
_LOG_RANGE, _NUM_STEPS = 3.0, 60  # of the search: temperatures of exp(-3) to exp(3)
_PRIOR_DEVIATION = 0.5  # of the logarithm: with a few videos, the temperature stays near 1
NUM_BINS = 10


def fit_temperature(logits: Floats, truth: Bools, *, multi_label: bool) -> float:
    """Return the temperature by which logits ``[V, C]`` are divided to give the best probabilities.

    ``truth`` ``[V, C]`` says which labels each video has. The negative log-likelihood has one minimum (Guo et al. 2017,
    arXiv:1706.04599). A normal prior of the logarithm keeps the temperature near 1 if there are few videos.
    """

    def cost(log_temperature: float) -> float:
        losses = log_losses(logits / np.exp(log_temperature), truth, multi_label=multi_label)
        return float(losses.sum()) + (log_temperature / _PRIOR_DEVIATION) ** 2 / 2

    low, high = -_LOG_RANGE, _LOG_RANGE
    for _ in range(_NUM_STEPS):
        third = (high - low) / 3
        low, high = (low, high - third) if cost(low + third) < cost(high - third) else (low + third, high)
    return float(np.exp((low + high) / 2))


def log_losses(logits: Floats, truth: Bools, *, multi_label: bool) -> npt.NDArray[np.float64]:
    """Return the loss of each video ``[V]``: the cross-entropy or, with ``multi_label``, the mean binary one."""
    values = logits.astype(np.float64)
    if multi_label:
        return np.asarray(np.logaddexp(0, np.where(truth, -values, values)).mean(axis=1))
    largest = values.max(axis=1, keepdims=True)
    normal = largest[:, 0] + np.log(np.exp(values - largest).sum(axis=1))
    return np.asarray(normal - values[truth])


def calibration_error(confidences: Floats, is_right: Bools, *, num_bins: int = NUM_BINS) -> float:
    """Return the expected calibration error of predictions ``[N]``, in bins of equally many predictions.

    This is the mean difference between the confidence and the fraction of right predictions in a bin. Fewer
    predictions than bins give one bin each. Without predictions, the error is NaN.
    """
    if not len(confidences):
        return float("nan")
    order = np.argsort(confidences, kind="stable")
    bins = np.array_split(order, min(num_bins, len(order)))
    gaps = [abs(confidences[rows].mean() - is_right[rows].mean()) * len(rows) for rows in bins]
    return float(sum(gaps) / len(order))
