"""Calibration: the temperature of logits, their losses, and the calibration error."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raypipe.evaluation.calibration import calibration_error, fit_temperature, log_losses

SEEDS = st.integers(0, 99)
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def drawn(count: int, *, multi_label: bool, seed: int) -> tuple[Floats, Bools]:
    """Return random logits ``[V, 4]``, and labels that are drawn with their probabilities."""
    random = np.random.default_rng(seed)
    logits = 2 * random.standard_normal((count, 4))
    if multi_label:
        return logits, random.random(logits.shape) < 1 / (1 + np.exp(-logits))
    best = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)  # a draw with the probabilities of a softmax
    return logits, np.eye(4, dtype=bool)[best]


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_of_sampled_labels_is_recovered(temperature: float, *, multi_label: bool) -> None:
    logits, truth = drawn(4000, multi_label=multi_label, seed=0)
    found = fit_temperature(logits * temperature, truth, multi_label=multi_label)
    assert found == pytest.approx(temperature, rel=0.1)


@pytest.mark.parametrize("multi_label", [False, True])
@given(count=st.integers(1, 8), seed=SEEDS)
def test_a_few_videos_keep_the_temperature_near_1(count: int, seed: int, *, multi_label: bool) -> None:
    logits, _ = drawn(count, multi_label=multi_label, seed=seed)
    right = logits > 0 if multi_label else np.eye(4, dtype=bool)[logits.argmax(axis=1)]
    found = fit_temperature(logits, right, multi_label=multi_label)
    # Without the prior, the temperature of predictions that are all right would be 0.
    assert 0.3 < found <= 1


def test_a_temperature_of_no_videos_is_1() -> None:
    assert fit_temperature(np.zeros((0, 4)), np.zeros((0, 4), bool), multi_label=False) == pytest.approx(1)


@pytest.mark.parametrize("multi_label", [False, True])
@given(count=st.integers(1, 20), seed=SEEDS)
def test_losses_are_those_of_torch(count: int, seed: int, *, multi_label: bool) -> None:
    logits, truth = drawn(count, multi_label=multi_label, seed=seed)
    given_logits, targets = torch.from_numpy(logits), torch.from_numpy(truth).double()
    if multi_label:
        losses = torch.nn.functional.binary_cross_entropy_with_logits(given_logits, targets, reduction="none").mean(1)
    else:
        losses = torch.nn.functional.cross_entropy(given_logits, targets, reduction="none")
    np.testing.assert_allclose(log_losses(logits, truth, multi_label=multi_label), losses.numpy(), atol=1e-12)


def test_losses_of_huge_logits_are_finite() -> None:
    logits, truth = np.array([[900.0, -900.0]]), np.array([[False, True]])
    assert log_losses(logits, truth, multi_label=False).tolist() == [1800]
    assert log_losses(logits, truth, multi_label=True).tolist() == [900]


@pytest.mark.parametrize(
    ("confidences", "right", "num_bins", "expected"),
    [
        ([0.8], [True], 10, 0.2),
        ([0.8], [False], 10, 0.8),
        ([0.5, 0.5, 0.9, 0.9], [True, False, True, True], 2, 0.05),
        ([0.9, 0.5, 0.9, 0.5], [True, True, True, False], 2, 0.05),  # in any order
        ([0.6, 0.8], [True, False], 1, 0.2),
        ([0.6, 0.8], [True, False], 2, 0.6),
        ([0.2, 0.4, 0.9], [False, True, True], 2, (2 / 3) * 0.2 + (1 / 3) * 0.1),  # bins of two and one
        ([1.0, 1.0, 0.0], [True, True, False], 2, 0.0),
    ],
)
def test_the_calibration_error_is_the_mean_gap_of_bins(
    confidences: list[float], right: list[bool], num_bins: int, expected: float
) -> None:
    found = calibration_error(np.array(confidences), np.array(right), num_bins=num_bins)
    assert found == pytest.approx(expected)


def test_without_predictions_the_calibration_error_is_nan() -> None:
    assert np.isnan(calibration_error(np.zeros(0), np.zeros(0, bool)))


def test_calibrated_confidences_have_a_small_error_and_others_a_large_one() -> None:
    random = np.random.default_rng(0)
    confidences = random.random(20_000)
    right = random.random(20_000) < confidences
    assert calibration_error(confidences, right) < 0.02
    assert calibration_error(confidences**0.3, right) > 0.2
