"""The train job: one training, or a small grid of them."""

from rich.console import Console

from raypipe.config import TrainConfig
from raypipe.jobs.train.search import search_grid
from raypipe.jobs.train.single import TrainingRun, train_once


def run_train(config: TrainConfig, *, console: Console | None = None) -> TrainingRun:
    """Train, or go on where an earlier run of the same command was cut off.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: the workers failed too often, or a loss is no longer a number.
    """
    return search_grid(config, console=console) if config.search else train_once(config, console=console)
