"""Linear models with cross-validation: what they fit, and that no prediction has seen its own video."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raypipe.models import linear_fit
from raypipe.models.linear_fit import NUM_FOLDS, PENALTIES, LinearFit, VideoLosses, blocked_folds, fit_linear

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_LABELS = 3


def draw_inputs(count: int, size: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def fit(inputs: torch.Tensor, labels: torch.Tensor, *, class_weights: list[float] | None = None) -> LinearFit:
    """Fit class numbers, or zeros and ones of several labels."""
    several = labels.ndim > 1
    folds = blocked_folds(labels.argmax(dim=1) if several else labels)
    weights = None if class_weights is None else torch.tensor(class_weights)
    return fit_linear(inputs, VideoLosses(labels, NUM_LABELS, class_weights=weights), folds)


def one_label(count: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, NUM_LABELS, (count,), generator=torch.Generator().manual_seed(seed))


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_folds_are_blocks_of_each_label(labels: list[int]) -> None:
    folds = blocked_folds(torch.tensor(labels))
    for label in set(labels):
        members = [fold for fold, one in zip(folds.tolist(), labels, strict=True) if one == label]
        first = label % NUM_FOLDS
        assert members == sorted(members, key=lambda fold: (fold - first) % NUM_FOLDS)
        sizes = np.bincount(members, minlength=NUM_FOLDS)
        assert len(sizes) == NUM_FOLDS
        assert sizes.max() - sizes.min() <= 1


def test_each_of_many_rare_labels_keeps_its_rate() -> None:
    random = torch.Generator().manual_seed(0)
    labels = (torch.rand(400, 100, generator=random) < 0.02).float()
    found = fit_linear(draw_inputs(400, 6), VideoLosses(labels, 100), blocked_folds(labels.argmax(dim=1)))
    chances = found.logits(draw_inputs(400, 6, seed=1)).sigmoid()
    assert float(chances.mean()) == pytest.approx(float(labels.mean()), rel=0.2)


def test_labels_with_one_video_are_in_all_folds() -> None:
    assert blocked_folds(torch.arange(10)).bincount().tolist() == [2] * NUM_FOLDS


def test_separable_labels_are_recovered() -> None:
    labels, shift, scale = one_label(60), 40.0, 7.0
    inputs = shift + scale * (draw_inputs(60, 6) + 4 * torch.nn.functional.one_hot(labels, 6))
    found = fit(inputs, labels)
    new = one_label(60, seed=1)
    unseen = shift + scale * (draw_inputs(60, 6, seed=1) + 4 * torch.nn.functional.one_hot(new, 6))
    assert (found.out_of_fold.argmax(dim=1) == labels).float().mean() > 0.9
    assert (found.logits(unseen).argmax(dim=1) == new).float().mean() > 0.9
    assert found.penalty < max(PENALTIES)


def test_several_separable_labels_are_recovered() -> None:
    labels = (draw_inputs(80, NUM_LABELS, seed=5) > 0).float()
    found = fit(draw_inputs(80, 6) + 5 * torch.nn.functional.pad(labels, (0, 3)), labels)
    assert ((found.out_of_fold > 0) == labels.bool()).float().mean() > 0.9


def test_a_fit_is_the_minimum_of_its_loss() -> None:
    labels, inputs = one_label(40), draw_inputs(40, 4)
    inputs[:, 0] += labels
    found = fit(inputs, labels)
    weight, bias = found.weight.clone().requires_grad_(), found.bias.clone().requires_grad_()
    logits = (inputs - inputs.mean(dim=0)) / inputs.std(dim=0, correction=0) @ weight.T + bias
    loss = torch.nn.functional.cross_entropy(logits, labels) + found.penalty / 2 * weight.square().sum()
    loss.backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-3
    torch.testing.assert_close(found.logits(inputs), logits.detach())


def test_noise_gets_the_strongest_penalty_and_predicts_nothing() -> None:
    labels = torch.arange(90) % NUM_LABELS
    found = fit(draw_inputs(90, 30), labels)
    assert found.penalty == max(PENALTIES)
    loss = VideoLosses(labels, NUM_LABELS)(found.out_of_fold).mean()
    assert float(loss) == pytest.approx(math.log(NUM_LABELS), abs=0.05)


def test_out_of_fold_logits_have_not_seen_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random labels of fewer videos than inputs can be fitted perfectly, but not predicted."""
    monkeypatch.setattr(linear_fit, "PENALTIES", (0.001,))
    labels, inputs = one_label(60), draw_inputs(60, 200)
    found = fit(inputs, labels)
    assert (found.logits(inputs).argmax(dim=1) == labels).all()
    assert (found.out_of_fold.argmax(dim=1) == labels).float().mean() < 0.55
    folds = blocked_folds(labels)
    for fold in range(NUM_FOLDS):
        others = torch.where(folds == fold, (labels + 1) % NUM_LABELS, labels)
        changed = fit_linear(inputs, VideoLosses(others, NUM_LABELS), folds).out_of_fold
        same = (changed == found.out_of_fold).all(dim=1)
        assert same.tolist() == (folds == fold).tolist()


def test_labels_weigh_as_given() -> None:
    labels, inputs = torch.tensor([0] * 30 + [1] * 6 + [2] * 6), draw_inputs(42, 3)
    plain, balanced = fit(inputs, labels), fit(inputs, labels, class_weights=[0.2, 1.0, 1.0])
    assert plain.bias.argmax() == 0
    assert plain.bias[0] - plain.bias[1:].max() > 1
    assert (balanced.bias - balanced.bias.mean()).abs().max() < 0.2
    several = torch.nn.functional.one_hot(labels, NUM_LABELS).float()
    plain, heavier = fit(inputs, several), fit(inputs, several, class_weights=[1.0, 20.0, 1.0])
    assert plain.bias[1] < 0 < heavier.bias[1]
    assert heavier.bias[2] == pytest.approx(float(plain.bias[2]), abs=0.05)


@pytest.mark.parametrize("several", [False, True])
def test_a_label_of_one_video_is_absent_from_a_fold(*, several: bool) -> None:
    labels = torch.tensor([0] * 10 + [1] * 10 + [2])
    inputs = draw_inputs(21, 4) + 5 * torch.nn.functional.one_hot(labels, 4)
    found = fit(inputs, torch.nn.functional.one_hot(labels, NUM_LABELS).float() if several else labels)
    assert found.out_of_fold.isfinite().all()
    assert found.out_of_fold[-1].argmax() != 2
    assert (found.out_of_fold[:20].argmax(dim=1) == labels[:20]).all()


@pytest.mark.parametrize("labels", [[0], [0, 1], [1, 1], [0, 1, 2]])
def test_very_few_videos_are_fitted(labels: list[int]) -> None:
    found = fit(draw_inputs(len(labels), 4), torch.tensor(labels))
    assert found.out_of_fold.shape == (len(labels), NUM_LABELS)
    assert all(tensor.isfinite().all() for tensor in (found.weight, found.bias, found.out_of_fold))


def test_an_input_that_never_changes_has_no_influence() -> None:
    labels = one_label(50)
    inputs = draw_inputs(50, 4) + torch.nn.functional.one_hot(labels, 4)
    inputs[:, 1] = 0.1  # its mean in float32 is not exactly 0.1
    found = fit(inputs, labels)
    moved = inputs.clone()
    moved[:, 1] += 0.01
    torch.testing.assert_close(found.logits(moved), found.logits(inputs), rtol=0, atol=0.01)


def test_with_many_videos_the_penalty_is_chosen_on_some(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, inputs = one_label(90), draw_inputs(90, 4)
    inputs[:, 0] += 2 * labels
    chosen_on: list[int] = []
    out_of_fold = linear_fit._out_of_fold

    def watched(given: torch.Tensor, *options: Any) -> dict[float, torch.Tensor]:  # noqa: ANN401 - passed through
        chosen_on.append(len(given))
        return out_of_fold(given, *options)

    whole = fit(inputs, labels)
    monkeypatch.setattr(linear_fit, "_MAX_CHOICE_VIDEOS", 50)
    monkeypatch.setattr(linear_fit, "_out_of_fold", watched)
    monkeypatch.setattr(linear_fit, "PENALTIES", (whole.penalty,))
    found = fit(inputs, labels)
    assert chosen_on == [45, 90]
    torch.testing.assert_close(found.out_of_fold, whole.out_of_fold, rtol=0, atol=1e-2)
    torch.testing.assert_close(found.weight, whole.weight, rtol=0, atol=1e-2)
