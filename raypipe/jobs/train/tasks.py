"""What the training loop needs from an objective: batches, losses and scores."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn

from raypipe.jobs.train.batches import Collective, WorkerSamples
from raypipe.jobs.train.inputs import Ints
from raypipe.models.backbones import resolve_dtype

Precision = Literal["auto", "float32", "bfloat16"]


class EpochScores(Protocol):
    """Scores of the validation samples: first of one worker, and after ``add_up`` of all workers."""

    def add_up(self, workers: Collective) -> None:
        """Add the scores of all workers. All workers must call it."""

    def metrics(self) -> dict[str, float]:
        """Return the scores as keyword arguments of ``EpochMetrics``."""


class Task(Protocol):
    """An objective with its model. The window of a method holds samples of this objective."""

    model: Any
    start_loss: float | None  # of a model that predicts before its first step, for training samples it has not seen

    def standardise(self, samples: WorkerSamples[Any], workers: Collective) -> None:
        """Adapt a model with random weights to the training samples of all workers."""

    def batch(self, window: Any, positions: Ints) -> Any:  # noqa: ANN401 - a batch of this objective
        """Return a batch of the samples at these positions, on the model's device.

        Without positions, return a placeholder, because even a worker without samples must take part in each step.
        """

    def losses(self, network: nn.Module, batch: Any) -> torch.Tensor:  # noqa: ANN401 - a batch of this objective
        """Return the training loss of each sample. ``network`` may be wrapped in ``DistributedDataParallel``."""

    def scores(self) -> EpochScores:
        """Return scores of no samples."""

    def score(self, window: Any, positions: Ints, scores: Any) -> torch.Tensor | None:  # noqa: ANN401 - of this objective
        """Add the samples at these positions to the scores. Return their logits if the model classifies."""

    def autocast(self) -> AbstractContextManager[None]:
        """Return a context in which torch multiplies matrices in bfloat16, if that is the precision."""


def is_native_bfloat16(device: torch.device) -> bool:
    """Return whether ``auto`` means bfloat16. On CPUs, autocast is slower as often as it is faster."""
    return device.type == "cuda" and resolve_dtype("auto", str(device)) == "bfloat16"


def autocast(device: torch.device, *, bfloat16: bool) -> AbstractContextManager[None]:
    """Return a context in which torch multiplies matrices in bfloat16, or one that changes nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if bfloat16 else nullcontext()


def seed_step(*numbers: int) -> None:
    """Seed torch's random generators, on the CPU and the GPU, with a hash of these numbers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which asks every backend: 0.1 ms per step
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)
