"""Compare a classifier with simple models on the same held-out videos."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from raypipe.evaluation.calibration import calibration_error
from raypipe.evaluation.ranking_metrics import intervals
from raypipe.records import PeerMetrics
from raypipe.schema import LABEL_THRESHOLD

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]
_SMALLEST = 1e-12  # of a probability, so that its logarithm is finite
_MIN_VIDEOS = 2  # for an interval


def compare_classifiers(
    probabilities: Mapping[str, Floats], truth: Bools, *, main: str, multi_label: bool, hard: Sequence[str] = ()
) -> tuple[PeerMetrics, ...]:
    """Return the metrics of several models, each with the difference to the model ``main``.

    Args:
        probabilities: The probabilities of each model, [V, C].
        truth: The labels of each video, [V, C].
        main: The name of the model in question.
        multi_label: Whether a video may have several labels. Then an answer is right if all of them are.
        hard: Models that only name labels. Their probabilities mean nothing.
    """
    if len(truth) < _MIN_VIDEOS:
        return ()
    rights = {name: _right(found, truth, multi_label=multi_label) for name, found in probabilities.items()}
    differences = intervals({name: rights[main] - right for name, right in rights.items()})
    rows = []
    for name, right in rights.items():
        found, difference = probabilities[name].astype(np.float64), differences[name]
        is_soft = name not in hard
        rows.append(
            PeerMetrics(
                name=name,
                accuracy=float(right.mean()),
                log_loss=float(_log_losses(found, truth, multi_label=multi_label).mean()) if is_soft else None,
                calibration_error=_calibration(found, truth, right, multi_label=multi_label) if is_soft else None,
                difference=difference.value,
                difference_low=difference.low,
                difference_high=difference.high,
            )
        )
    return tuple(rows)


def _right(found: Floats, truth: Bools, *, multi_label: bool) -> npt.NDArray[np.float64]:
    if multi_label:
        return np.asarray(((found >= LABEL_THRESHOLD) == truth).all(axis=1), dtype=np.float64)
    return np.asarray(truth[np.arange(len(truth)), found.argmax(axis=1)], dtype=np.float64)


def _log_losses(found: Floats, truth: Bools, *, multi_label: bool) -> npt.NDArray[np.float64]:
    likely = np.log(np.maximum(found, _SMALLEST))
    if not multi_label:
        return np.asarray(-likely[truth])
    return np.asarray(-np.where(truth, likely, np.log(np.maximum(1 - found, _SMALLEST))).mean(axis=1))


def _calibration(found: Floats, truth: Bools, right: npt.NDArray[np.float64], *, multi_label: bool) -> float:
    """Return the calibration error: of the most likely label or, with ``multi_label``, of each label of each video."""
    if multi_label:
        return calibration_error(found.ravel(), truth.ravel())
    return calibration_error(found.max(axis=1), right > 0)
