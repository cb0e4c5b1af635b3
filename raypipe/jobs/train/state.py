"""What a training loop is given, and how far it is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from raypipe.config import CheckpointConfig, OptimizerConfig

Ended = Literal["running", "finished", "stopped_early", "not_finite"]


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """What a loop is given beside its model and its samples."""

    optimizer: OptimizerConfig
    checkpoint: CheckpointConfig
    learning_rate: float
    seed: int
    num_train: int
    num_validation: int
    class_weights: Sequence[float] | None = None


@dataclass(slots=True)
class State:
    """How far a training is: what a checkpoint holds beside tensors."""

    epoch: int = 0  # epochs that ended
    step: int = 0  # optimizer steps
    loss_sum: float = 0.0  # of this epoch so far: of this worker, in a checkpoint of all
    num_videos: int = 0  # likewise
    num_done: int = 0  # of all workers
    learning_rate: float = 0.0  # of the last step
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)  # EpochMetrics
    best_epoch: int | None = None
    best_value: list[float] = field(default_factory=list)
    best_checkpoint: int | None = None
    ended: Ended = "running"
    message: str = ""


def seed_step(*numbers: int) -> None:
    """Make all that is random from here on a function of these numbers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which asks every backend: 0.1 ms of every step
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)
