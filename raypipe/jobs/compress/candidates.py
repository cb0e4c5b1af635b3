"""Measure the candidates of a compression, and choose one. Ray is not used here."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import numpy.typing as npt

from raypipe.evaluation.ranking_metrics import intervals
from raypipe.models.model_files import WEIGHTS
from raypipe.records import CandidateMetrics

ORIGINAL = "original"
_NUM_ROUNDS = 7
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may replace the original one.

    Attributes:
        name: What was done to the original model.
        heads: The number of heads of each block.
        int8: Whether its linear layers have int8 weights.
        num_parameters: The number of its weights.
        files: The content of the files in its model folder.
        answers: What it says about each validation sample, ``[V]`` or ``[V, C]``.
        scores: How right each answer is, ``[V]``; None without labels.
        work: Runs the model on some samples, and returns how many.
        others: Further scores by name.
    """

    name: str
    heads: Sequence[int]
    int8: bool
    num_parameters: int
    files: Mapping[str, bytes]
    answers: npt.NDArray[np.generic]
    scores: Floats | None
    work: Callable[[], int]
    others: Mapping[str, float] = field(default_factory=dict)


def losses(original: Candidate, candidate: Candidate) -> Floats:
    """Return what each validation sample loses by the candidate, ``[V]``."""
    if original.scores is None or candidate.scores is None:
        return 1.0 - agreements(original, candidate)
    return original.scores - candidate.scores


def agreements(original: Candidate, candidate: Candidate) -> Floats:
    """Return 1 for each validation sample with the same answer, otherwise 0, ``[V]``."""
    same = original.answers == candidate.answers
    return np.asarray(same.reshape(len(same), -1).all(axis=1), np.float64)


def measure(candidates: Sequence[Candidate]) -> tuple[CandidateMetrics, ...]:
    """Return the metrics of the candidates. The first one is the original model.

    The speeds are measured in rounds, in each of which every candidate runs once, so that other work on the machine
    slows down all of them alike.
    """
    original = candidates[0]
    seconds = _seconds(candidates)
    lost = intervals({one.name: losses(original, one) for one in candidates})
    return tuple(
        CandidateMetrics(
            name=one.name,
            num_blocks=len(one.heads),
            num_heads=sum(one.heads),
            int8=one.int8,
            num_parameters=one.num_parameters,
            size_bytes=len(one.files[WEIGHTS]),
            samples_per_second=median(1 / each for each in seconds[one.name]),
            speedup=median(a / b for a, b in zip(seconds[ORIGINAL], seconds[one.name], strict=True)),
            score=None if one.scores is None else float(one.scores.mean()),
            loss=lost[one.name].value,
            loss_low=lost[one.name].low,
            loss_high=lost[one.name].high,
            agreement=float(agreements(original, one).mean()),
            others=one.others,
        )
        for one in candidates
    )


def _seconds(candidates: Sequence[Candidate]) -> dict[str, list[float]]:
    """Return the seconds per sample of each candidate in each round, by name."""
    seconds: dict[str, list[float]] = {one.name: [] for one in candidates}
    for number in range(_NUM_ROUNDS + 1):
        for one in candidates:
            start = time.perf_counter()
            num_samples = one.work()
            if number:  # the first round is a warm-up
                seconds[one.name].append((time.perf_counter() - start) / num_samples)
    return seconds


@dataclass(frozen=True, slots=True)
class Limits:
    """What a candidate may lose, in the unit of the score, and how many times as fast it must be."""

    max_loss: float
    min_speedup: float


def choose(measured: Sequence[CandidateMetrics], limits: Limits) -> CandidateMetrics:
    """Return the fastest candidate within the limits.

    If there is none, return the first one, the original model.
    """
    fit = [one for one in measured[1:] if one.loss <= limits.max_loss and one.speedup >= limits.min_speedup]
    return max(fit, key=lambda one: one.speedup, default=measured[0])
