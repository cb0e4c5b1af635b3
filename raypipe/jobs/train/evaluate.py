"""Batches of a window's samples, and how good a model is on them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast

import numpy as np
import torch

from raypipe.jobs.train.network import Batch, Objective, make_batch
from raypipe.jobs.train.scores import Scores
from raypipe.jobs.train.shard import Ints, Shard, Window
from raypipe.jobs.train.state import seed_step
from raypipe.jobs.train.team import Team
from raypipe.models.adapters import VideoModel
from raypipe.models.backbones import resolve_dtype
from raypipe.models.classifier import VideoClassifier, VideoClassifierConfig, by_length

Precision = Literal["auto", "float32", "bfloat16"]
Each = Callable[[Window, Ints, torch.Tensor], None]


class Feeder:
    """Makes batches for a model, on its device; ``precision`` auto is bfloat16 on a GPU that has it."""

    def __init__(self, model: VideoModel, *, device: torch.device, precision: Precision) -> None:
        self._config = cast("VideoClassifierConfig", model.config)
        self._device = device
        # On processors autocast gains little where it does not lose.
        native = device.type == "cuda" and resolve_dtype("auto", str(device)) == "bfloat16"
        self._bfloat16 = native if precision == "auto" else precision == "bfloat16"
        self.num_labels = len(model.config.label_names) if isinstance(model, VideoClassifier) else 0

    def batch(self, window: Window, positions: Ints) -> Batch:
        """The samples at these positions; one of nothing but zeros where a worker has none, and must take part."""
        if not len(positions):
            frames = np.zeros((1, self._config.embedding_dim), dtype=np.float16)
            return make_batch(
                [frames], [np.zeros(min(1, self.num_labels), dtype=np.int64)], self._config, device=self._device
            )
        videos = [window.frames[at] for at in positions]
        targets = [window.targets[at] for at in positions]
        return make_batch(videos, targets, self._config, device=self._device)

    def autocast(self) -> AbstractContextManager[None]:
        """Where matrices are multiplied in bfloat16."""
        if not self._bfloat16:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)


@torch.no_grad()
def evaluate(
    model: VideoModel,
    validation: Shard,
    *,
    feeder: Feeder,
    objective: Objective,
    batch_size: int,
    seed: int,
    team: Team,
    each: Each | None = None,
) -> Scores:
    """Measure a model on the validation split of all workers; ``each`` is shown the logits of every batch."""
    model.eval()
    scores = Scores(feeder.num_labels)
    for window in validation.windows():
        lengths = [len(frames) for frames in window.frames]
        for number, members in enumerate(by_length(lengths, batch_size=batch_size)):
            positions = np.array(members, dtype=np.int64)
            seed_step(seed, 0, number, team.rank)  # hides the same frames in every epoch
            batch = feeder.batch(window, positions)
            with feeder.autocast():
                losses, logits = objective(model, batch, learning=False)
            scores.add(losses.float(), logits, batch.labels)
            if each is not None and logits is not None:
                each(window, positions, logits)
    validation.settle(team)
    scores.totals, scores.by_label = team.sum(scores.totals), team.sum(scores.by_label)
    return scores


def measured(scores: Scores | None) -> dict[str, Any]:
    """What an epoch's metrics hold of the scores; only a loss where nothing is classified."""
    if scores is None:
        return {}
    if not scores.num_labels:
        return {"validation_loss": scores.loss}
    return {
        "validation_loss": scores.loss,
        "accuracy": scores.accuracy,
        "top5_accuracy": scores.top5_accuracy,
        "macro_f1": scores.macro_f1,
    }
