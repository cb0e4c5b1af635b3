"""Distil a classifier: a pruned one learns the probabilities of the whole one. Ray is not used here."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from raypipe.config import CheckpointConfig, DistillConfig, OptimizerConfig
from raypipe.jobs.train.batches import Collective, WorkerSamples
from raypipe.jobs.train.checkpoints import Checkpoints
from raypipe.jobs.train.classifier.scores import predicted_sets
from raypipe.jobs.train.classifier.video_task import FramesBatch, FramesWindow, VideoTask, drop_frames
from raypipe.jobs.train.inputs import INDEX, TARGETS
from raypipe.jobs.train.loop import Loop, LoopSettings, Notify
from raypipe.models.classifier import VideoClassifier, by_length, classification_loss, pad_frames
from raypipe.storage import Folder

Blocks = Callable[[], Iterable[pa.Table]]
_AT_ONCE = 64
_RATE_FACTOR = 0.3  # of the rate for random weights: the student starts with trained ones


@dataclass(frozen=True, slots=True)
class TeacherAnswers:
    """What the whole classifier says about N videos, and which of them have labels.

    ``order_logits`` are those of GPT-2 alone, next to a probe; otherwise None.
    """

    logits: torch.Tensor  # [N, C]
    order_logits: torch.Tensor | None  # [N, C]
    is_labelled: torch.Tensor  # [N]

    def fill(self, blocks: Iterable[pa.Table], *, multi_label: bool) -> Iterable[pa.Table]:
        """Yield the blocks, with the teacher's labels as the targets of videos without a label."""
        said = [np.flatnonzero(row).tolist() for row in predicted_sets(self.logits, multi_label=multi_label)]
        for block in blocks:
            index, known = block[INDEX].to_pylist(), block[TARGETS].to_pylist()
            targets = [given if self.is_labelled[at] else said[at] for at, given in zip(index, known, strict=True)]
            column = pa.array(targets, block.schema.field(TARGETS).type)
            yield block.set_column(block.column_names.index(TARGETS), TARGETS, column)


@torch.no_grad()
def ask_teacher(teacher: VideoClassifier, samples: pa.Table, blocks: Iterable[pa.Table]) -> TeacherAnswers:
    """Return the teacher's answers for the samples, whose frames are in the blocks."""
    config, device = teacher.config, next(teacher.parameters()).device
    shape = (samples.num_rows, len(config.label_names))
    logits, order = torch.zeros(shape), torch.zeros(shape)
    teacher.train(mode=False)
    for block in blocks:
        window = FramesWindow()
        window.add(block)
        for positions in by_length(window.lengths, batch_size=_AT_ONCE):
            padded = pad_frames([window.frames[at] for at in positions], max_frames=config.max_frames).to(device)
            found = teacher(padded.frames, padded.mask)
            index = [window.index[at] for at in positions]
            logits[index], order[index] = found.logits.float().cpu(), found.order_logits.float().cpu()
    is_labelled = torch.tensor([len(targets) > 0 for targets in samples[TARGETS].to_pylist()])
    return TeacherAnswers(logits, None if config.probe is None else order, is_labelled)


class DistillTask(VideoTask):
    """Learns the probabilities of a teacher, and the labels of the videos that have some."""

    def __init__(
        self,
        model: VideoClassifier,
        config: OptimizerConfig,
        *,
        device: torch.device,
        teacher: TeacherAnswers,
        distill: DistillConfig,
    ) -> None:
        super().__init__(model, config, device=device)
        self.start_loss = 0.0  # so that the loop also measures the student before its first step
        self._distill, self._teacher = distill, teacher

    def run(
        self, network: nn.Module, batch: FramesBatch, *, learning: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the network on a batch and return the losses ``[B]`` and the logits ``[B, C]``.

        While learning, the loss is the divergence from the teacher, and the loss of the labels if there are any. Next
        to a probe, GPT-2 also learns what the teacher's GPT-2 adds to it.
        """
        if not learning:
            return super().run(network, batch, learning=False)
        index, teacher = batch.index.cpu(), self._teacher
        dropped = drop_frames(batch.mask, self._config.frame_dropout) < batch.mask
        found = network(batch.frames, batch.mask, dropped=dropped)
        divergence = partial(divergences, temperature=self._distill.temperature, multi_label=self._sizes.multi_label)
        losses = divergence(found.logits, teacher.logits[index].to(batch.frames.device))
        if teacher.order_logits is not None:
            losses = losses + divergence(found.order_logits, teacher.order_logits[index].to(batch.frames.device))
        if batch.labels is not None:
            is_labelled = teacher.is_labelled[index].to(batch.frames.device)
            losses = losses + self._distill.label_weight * is_labelled * classification_loss(found.logits, batch.labels)
        return losses, found.logits.detach().float()


def divergences(logits: torch.Tensor, wanted: torch.Tensor, *, temperature: float, multi_label: bool) -> torch.Tensor:
    """Return the KL divergence of probabilities from the wanted ones, both softened, for each video ``[B]``.

    It is multiplied by the square of the temperature, so that gradients do not depend on it (Hinton et al. 2015,
    arXiv:1503.02531). With ``multi_label`` it is the mean over the labels.
    """
    given, aim = logits.float() / temperature, wanted.float() / temperature
    if multi_label:
        each = nn.functional.binary_cross_entropy_with_logits(given, aim.sigmoid(), reduction="none")
        entropy = nn.functional.binary_cross_entropy_with_logits(aim, aim.sigmoid(), reduction="none")
        return temperature**2 * (each - entropy).mean(dim=1)
    logs = nn.functional.log_softmax(given, dim=1), nn.functional.log_softmax(aim, dim=1)
    return temperature**2 * nn.functional.kl_div(*logs, reduction="none", log_target=True).sum(dim=1)


def learning_rate(config: DistillConfig, *, n_embd: int) -> float:
    """Return the peak learning rate. ``auto`` is lower than for random weights, and inverse to the width."""
    return _RATE_FACTOR * 6e-3 * 128 / n_embd if config.learning_rate == "auto" else config.learning_rate


def distil(
    student: VideoClassifier,
    teacher: TeacherAnswers,
    config: DistillConfig,
    *,
    train: WorkerSamples[FramesWindow],
    validation: WorkerSamples[FramesWindow],
    num_validation: int,
    device: torch.device,
    seed: int,
    notify: Notify,
) -> None:
    """Train the student in place, and keep the weights of the epoch with the lowest validation loss.

    Raises:
        JobError: the best epoch was not stored.
    """
    optimizer = OptimizerConfig(
        epochs=config.epochs, batch_size=config.batch_size, early_stop_epochs=config.early_stop_epochs
    )
    settings = LoopSettings(
        optimizer=optimizer,
        checkpoint=CheckpointConfig(keep=1),
        learning_rate=learning_rate(config, n_embd=student.config.gpt2.n_embd),
        seed=seed,
        num_train=len(teacher.logits),
        num_validation=num_validation,
    )
    student.encoder.hidden_frame.requires_grad_(False)  # noqa: FBT003 - only masked-frame training hides frames
    with tempfile.TemporaryDirectory(prefix="raypipe-distil-") as scratch:
        loop = Loop(
            DistillTask(student, optimizer, device=device, teacher=teacher, distill=config),
            settings,
            train=train,
            validation=validation,
            workers=Collective(device=device),
            checkpoints=Checkpoints(Folder(scratch)),
            notify=notify,
        )
        loop.run()
        loop.load_best()
    student.train(mode=False)
