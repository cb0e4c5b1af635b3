"""The fastest candidate that is accurate enough is chosen, and otherwise the original model."""

from collections.abc import Sequence

import numpy as np
import pytest

from raypipe.jobs.compress.candidates import ORIGINAL, Candidate, Limits, choose, measure
from raypipe.jobs.compress.compressing import verdict_of
from raypipe.records import CandidateMetrics


def metrics(name: str, *, speedup: float, loss: float) -> CandidateMetrics:
    return CandidateMetrics(
        name=name,
        num_blocks=1,
        num_heads=1,
        int8=False,
        num_parameters=10,
        size_bytes=40,
        samples_per_second=speedup,
        speedup=speedup,
        score=0.9 - loss,
        loss=loss,
        loss_low=loss,
        loss_high=loss,
        agreement=1.0,
    )


FIRST = metrics(ORIGINAL, speedup=1.0, loss=0.0)


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([("a", 2.0, 0.0), ("b", 3.0, 0.01), ("c", 9.0, 0.011)], "b"),
        ([("a", 1.1, 0.0)], ORIGINAL),
        ([("a", 5.0, 0.2)], ORIGINAL),
        ([("a", 2.0, -0.05)], "a"),
        ([], ORIGINAL),
    ],
)
def test_the_choice(others: list[tuple[str, float, float]], chosen: str) -> None:
    measured = [FIRST, *(metrics(name, speedup=speedup, loss=loss) for name, speedup, loss in others)]
    limits = Limits(0.01, 1.2)
    found = choose(measured, limits)
    assert found.name == chosen
    verdict = verdict_of(measured, found, limits, score_name="accuracy")
    assert ("does not pay off" in verdict) == (chosen == ORIGINAL)


def candidate(name: str, answers: Sequence[int], *, truth: Sequence[int] | None, num_bytes: int = 4) -> Candidate:
    array = np.array(answers)
    scores = None if truth is None else (array == np.array(truth)).astype(np.float64)
    files = {"model.safetensors": bytes(num_bytes)}
    return Candidate(name, [2, 1], False, 7, files, array, scores, work=lambda: 5)  # noqa: FBT003 - int8


def test_losses_are_paired_with_the_original() -> None:
    truth = [0, 1, 2, 0, 1, 2]
    first, other = measure([candidate(ORIGINAL, truth, truth=truth), candidate("a", [0, 1, 2, 0, 0, 0], truth=truth)])
    assert (first.score, first.loss, first.agreement, first.speedup) == (1.0, 0.0, 1.0, 1.0)
    assert other.score == pytest.approx(4 / 6)
    assert other.loss == pytest.approx(2 / 6)
    assert other.agreement == pytest.approx(4 / 6)
    assert 0 <= other.loss_low < other.loss < other.loss_high < 1
    assert (other.num_blocks, other.num_heads, other.size_bytes) == (2, 3, 4)


def test_without_labels_the_loss_is_the_share_of_other_answers() -> None:
    found = measure([candidate(ORIGINAL, [0, 1, 2, 0], truth=None), candidate("a", [0, 1, 2, 1], truth=None)])
    assert [one.score for one in found] == [None, None]
    assert [one.loss for one in found] == [0.0, 0.25]
