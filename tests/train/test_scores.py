"""Scores from sums over batches equal a plain count over all videos."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raypipe.jobs.train.classifier.scores import Scores, f1, predicted_sets


def plain_f1(truth: list[set[int]], given: list[set[int]], label: int) -> float | None:
    """Compute the F1 of one label by definition; None if no video has it or was given it."""
    both = sum(label in a and label in b for a, b in zip(truth, given, strict=True))
    has, was_given = sum(label in a for a in truth), sum(label in b for b in given)
    if not has and not was_given:
        return None
    precision = both / was_given if was_given else 0.0
    recall = both / has if has else 0.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


CASE = st.integers(2, 8).flatmap(
    lambda num_labels: st.tuples(
        st.just(num_labels),
        st.integers(1, 40),
        st.integers(1, 9),
        st.integers(0, 10_000),
        st.booleans(),
    )
)


@given(case=CASE)
def test_scores_are_a_plain_count(case: tuple[int, int, int, int, bool]) -> None:
    num_labels, count, batch_size, seed, several = case
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, num_labels, generator=random)
    losses = torch.rand(count, generator=random)
    if several:
        labels = (torch.rand(count, num_labels, generator=random) < 0.4).float()
        truth = [set(np.flatnonzero(row).tolist()) for row in labels.numpy()]
        answers = [set(np.flatnonzero(row >= 0).tolist()) for row in logits.numpy()]
    else:
        labels = torch.randint(0, num_labels, (count,), generator=random)
        truth = [{int(label)} for label in labels]
        answers = [{int(row.argmax())} for row in logits]
    scores, other = Scores(num_labels), Scores(num_labels)  # one for each of two workers
    for number, at in enumerate(range(0, count, batch_size)):
        part = slice(at, at + batch_size)
        (other if number % 2 else scores).add(losses[part], logits[part], labels[part])
    scores.totals, scores.by_label = scores.totals + other.totals, scores.by_label + other.by_label
    best = [set(row.argsort(descending=True)[:5].tolist()) for row in logits]
    values = [value for label in range(num_labels) if (value := plain_f1(truth, answers, label)) is not None]
    assert scores.loss == pytest.approx(float(losses.double().mean()))
    assert scores.accuracy == pytest.approx(np.mean([a == b for a, b in zip(truth, answers, strict=True)]))
    assert scores.top5_accuracy == pytest.approx(np.mean([bool(a & b) for a, b in zip(truth, best, strict=True)]))
    assert scores.macro_f1 == pytest.approx(np.mean(values) if values else 0.0)


def test_a_label_of_no_video_does_not_count() -> None:
    scores = Scores(3)
    scores.add(torch.zeros(2), torch.tensor([[9.0, 0, 0], [0, 9.0, 0]]), torch.tensor([0, 1]))
    assert (scores.accuracy, scores.macro_f1) == (1.0, 1.0)


def test_a_probability_of_one_half_gives_the_label() -> None:
    assert predicted_sets(torch.tensor([[0.0, -0.001, 3.0]]), multi_label=True).tolist() == [[True, False, True]]


def test_f1_of_nothing_is_0() -> None:
    assert f1(np.zeros((3, 2))).tolist() == [0.0, 0.0]


def test_without_labels_there_is_a_loss_alone() -> None:
    scores = Scores(0)
    assert np.isnan(scores.loss)
    scores.add(torch.tensor([1.0, 2.0]), None, None)
    scores.add(torch.tensor([6.0]), None, None)
    assert scores.loss == 3.0
