"""The training loop of one worker: epochs, checkpoints, and exact resume. Ray is not used here."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from raypipe.config import CheckpointConfig, OptimizerConfig
from raypipe.errors import JobError
from raypipe.jobs.train.batches import Collective, Window, WorkerSamples, epoch_batches
from raypipe.jobs.train.checkpoints import Checkpoint, Checkpoints, load_optimizer
from raypipe.jobs.train.inputs import Ints
from raypipe.jobs.train.tasks import EpochScores, Task, seed_step
from raypipe.models.classifier import by_length
from raypipe.records import EpochMetrics, selected_metric

Notify = Callable[[str, Mapping[str, Any]], None]
_AGREE_STEPS = 16  # several workers check only every 16 steps whether a checkpoint is due, because they must agree
BETAS = (0.9, 0.95)  # AdamW's betas in the training of GPT-2 and GPT-3


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """The settings of a training loop. ``num_train`` and ``num_validation`` count the samples of all workers.

    The learning rate decays to ``final_rate`` times itself over ``optimizer.epochs``, even if ``stop_epoch`` ends the
    training earlier.
    """

    optimizer: OptimizerConfig
    checkpoint: CheckpointConfig
    learning_rate: float
    seed: int
    num_train: int
    num_validation: int
    class_weights: Sequence[float] | None = None
    betas: tuple[float, float] = BETAS
    final_rate: float = 0.0
    stop_epoch: int | None = None

    @property
    def num_epochs(self) -> int:
        return self.optimizer.epochs if self.stop_epoch is None else self.stop_epoch


@dataclass(slots=True)
class TrainingState:
    """The progress of a training. A checkpoint stores it in addition to the tensors."""

    epoch: int = 0  # completed epochs
    step: int = 0  # optimizer steps since the start of the training
    loss_sum: float = 0.0  # the sum of this worker's losses in this epoch; in a checkpoint, the sum over all workers
    num_videos: int = 0  # the number of losses in ``loss_sum``
    num_done: int = 0  # videos that all workers have processed in this epoch
    learning_rate: float = 0.0  # the rate of the last step
    seconds: float = 0.0  # the time spent on the steps of this epoch
    history: list[dict[str, Any]] = field(default_factory=list)  # one EpochMetrics per epoch, as a dict
    best_epoch: int | None = None
    best_value: list[float] = field(default_factory=list)
    best_checkpoint: int | None = None
    ended: Literal["running", "finished", "stopped_early", "not_finite"] = "running"
    message: str = ""


class Loop:
    """Train a model on the samples of one worker. All workers must call ``run``.

    The randomness of a step depends only on the seed, the step number and the worker number. So a resumed training has
    exactly the same losses as an uninterrupted one.
    """

    def __init__(
        self,
        task: Task,
        settings: LoopSettings,
        *,
        train: WorkerSamples[Any],
        validation: WorkerSamples[Any],
        workers: Collective,
        checkpoints: Checkpoints,
        notify: Notify,
    ) -> None:
        self.task = task
        self.model = task.model
        self._settings = settings
        self._train, self._validation = train, validation
        self._workers = workers
        self._checkpoints = checkpoints
        self._notify = notify
        decay = settings.optimizer.weight_decay
        self._optimizer = make_optimizer(self.model, weight_decay=decay, betas=settings.betas)
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._network = cast("nn.Module", self.model)
        if workers.size > 1:
            devices = [workers.device.index] if workers.device.type == "cuda" else None
            self._network = DistributedDataParallel(self.model, device_ids=devices, broadcast_buffers=False)
        self.num_epochs = settings.num_epochs
        self.num_validation = settings.num_validation
        self.has_validation = settings.num_validation > 0  # True on all workers or on none
        self.state = TrainingState()
        self._seen = np.zeros(settings.num_train, dtype=bool)
        self._stored_at = time.monotonic()
        per_step = workers.size * settings.optimizer.batch_size * settings.optimizer.accumulate
        self.steps_per_epoch = max(1, -(-settings.num_train // per_step))

    def resume(self, checkpoint: Checkpoint) -> None:
        self.model.load_state_dict(dict(checkpoint.model))
        load_optimizer(self.model, self._optimizer, checkpoint.optimizer)
        known = TrainingState.__dataclass_fields__
        self.state = TrainingState(**{key: value for key, value in checkpoint.state.items() if key in known})
        if not self._workers.leads:  # the stored sums are of all workers
            self.state.loss_sum, self.state.num_videos = 0.0, 0
        self._seen = checkpoint.seen.copy()

    def standardise(self) -> None:
        """Adapt a model with random weights to the training samples of all workers."""
        self.task.standardise(self._train, self._workers)

    def run(self) -> TrainingState:
        """Train until the last epoch, until the validation split stops improving, or until a loss is not finite.

        The returned state says in ``ended`` which of these it was.

        Raises:
            StorageError: a checkpoint cannot be stored.
        """
        if self.task.start_loss is not None and not self.state.history:
            self._end_epoch(0, train_loss=self.task.start_loss)
        while self.state.ended == "running":
            if self.state.epoch >= self._settings.num_epochs:
                self.state.ended = "finished"
                break
            self._run_epoch()
            if self.state.ended == "running":
                loss_sum, num_videos = self._workers.sum([self.state.loss_sum, self.state.num_videos])
                self._end_epoch(self.state.epoch + 1, train_loss=float(loss_sum / max(1, num_videos)))
        return self.state

    def _run_epoch(self) -> None:
        self.model.train()
        for number, window in self._windows():
            batches = epoch_batches(
                window.index,
                window.lengths,
                batch_size=self._settings.optimizer.batch_size,
                seed=[self._settings.seed, self.state.epoch, number],
                seen=self._seen,
            )
            # If other workers have more batches, add empty ones. Otherwise the other workers would wait forever.
            sizes = np.zeros(int(self._workers.max(len(batches))))
            sizes[: len(batches)] = [len(batch) for batch in batches]
            batches += [np.zeros(0, dtype=np.int64)] * (len(sizes) - len(batches))
            num_videos = self._workers.sum(sizes)
            accumulate = self._settings.optimizer.accumulate
            for start in range(0, len(batches), accumulate):
                began = time.perf_counter()
                micro = slice(start, start + accumulate)
                if not self._step(window, batches[micro], float(num_videos[micro].sum())):
                    return
                self.state.seconds += time.perf_counter() - began
                self._notify_step()
                self._maybe_checkpoint()
        self._train.settle(self._workers)

    def _windows(self) -> Iterator[tuple[int, Window]]:
        """Yield the windows of this worker with their numbers, then empty windows until no worker has any left.

        The empty windows are needed because all workers must take part in every step.
        """
        windows = self._train.windows()
        for number in count():
            window = next(windows, None)
            if not self._workers.max(window is not None):
                return
            yield number, self._train.empty() if window is None else window

    def _step(self, window: Window, group: list[Ints], num_videos: float) -> bool:
        """Take one optimizer step over a group of batches. Return False, without a step, if the gradient is not finite.

        ``num_videos`` is the number of videos in this step on all workers.
        """
        state, config = self.state, self._settings.optimizer
        state.learning_rate = self._rate(num_videos)
        set_rate(self._optimizer, state.learning_rate)
        self._optimizer.zero_grad(set_to_none=True)
        losses = torch.zeros((), dtype=torch.float64, device=self._workers.device)
        for micro, positions in enumerate(group):
            seed_step(self._settings.seed, state.step, micro, self._workers.rank)
            network, is_last = self._network, micro == len(group) - 1
            with nullcontext() if is_last or not isinstance(network, DistributedDataParallel) else network.no_sync():
                batch = self.task.batch(window, positions)
                with self.task.autocast():
                    each = self.task.losses(network, batch)
                # A worker without samples takes part with a gradient of 0.
                loss = each.float().sum() if len(positions) else each.float().sum() * 0
                # DDP averages the gradients of the workers. Here they are parts of a sum, so undo the average.
                (loss * (self._workers.size / num_videos)).backward()
            losses += loss.detach().double()
        norm = clip_grad_norm_(self._trained, config.max_grad_norm)
        if not bool(norm.isfinite()):
            self._stop_not_finite()
            return False
        self._optimizer.step()
        state.step += 1
        for positions in group:
            self._seen[[window.index[at] for at in positions]] = True
        state.loss_sum += float(losses)
        state.num_videos += sum(len(positions) for positions in group)
        state.num_done += int(num_videos)
        return True

    def _rate(self, num_videos: float) -> float:
        """Return the learning rate of the next step, which has ``num_videos`` videos."""
        config, num_train = self._settings.optimizer, self._settings.num_train
        done = self.state.epoch * num_train + self.state.num_done + num_videos / 2
        progress = done / (config.epochs * num_train)
        factor = rate_at(progress, warmup_fraction=config.warmup_fraction, final=self._settings.final_rate)
        return self._settings.learning_rate * factor

    def _notify_step(self) -> None:
        state = self.state
        if self._workers.leads:
            loss, speed = state.loss_sum / max(1, state.num_videos), state.num_done / state.seconds
            about = {"epoch": state.epoch + 1, "step": state.step, "loss": loss, "samples_per_second": speed}
            self._notify("step", about)

    def _end_epoch(self, epoch: int, *, train_loss: float) -> None:
        """Measure the model, and store a checkpoint. Epoch 0 is the model before its first step."""
        state, seconds = self.state, self._workers.max(self.state.seconds)
        scores = self.evaluate() if self.has_validation else None
        metrics = EpochMetrics(
            epoch=epoch,
            step=state.step,
            train_loss=train_loss,
            **({} if scores is None else scores.metrics()),
            learning_rate=state.learning_rate,
            samples_per_second=float(state.num_done / seconds) if seconds else 0.0,
            seconds=seconds,
        )
        value = self._value(metrics)
        if not np.isfinite(value).all():
            self._stop_not_finite()
            return
        state.epoch = epoch
        state.loss_sum, state.num_videos, state.num_done, state.seconds = 0.0, 0, 0, 0.0
        self._seen[:] = False
        state.history.append(asdict(metrics))
        is_best = not state.best_value or value > state.best_value or scores is None
        if is_best:
            state.best_epoch, state.best_value = epoch, value
        patience = self._settings.optimizer.early_stop_epochs
        if patience and scores is not None and epoch - (state.best_epoch or 0) >= patience:
            state.ended = "stopped_early"
        self._checkpoint(is_best=is_best)
        if self._workers.leads:
            self._notify("epoch", {"metrics": metrics, "is_best": is_best, "history": state.history})

    def _value(self, metrics: EpochMetrics) -> list[float]:
        """Return the values that rank an epoch (higher is better): the metric of ``select_by``, then the negative loss.

        If there is no such metric, or ``select_by`` is ``loss``, the negative loss is the only value. An epoch whose
        loss is not below that of epoch 0, the probe alone, by more than a standard error ranks below epoch 0.
        """
        loss = metrics.train_loss if metrics.validation_loss is None else metrics.validation_loss
        score = getattr(metrics, selected_metric(self._settings.optimizer.select_by), None)
        value = [-loss] if score is None else [float(score), -loss]
        if metrics.probe_gain is None or metrics.probe_gain_error is None:
            return value
        rank = 0.5 if metrics.epoch == 0 else float(metrics.probe_gain > metrics.probe_gain_error)
        return [rank, *value]

    def _stop_not_finite(self) -> None:
        self.state.ended = "not_finite"
        self.state.message = (
            f"The loss is not finite in epoch {self.state.epoch + 1}, step {self.state.step + 1}. Lower "
            "optimizer.learning_rate or max_grad_norm, or use precision float32, with another output."
        )

    @torch.no_grad()
    def evaluate(self, each: Callable[[Any, Ints, torch.Tensor], None] | None = None) -> EpochScores:
        """Measure the model on the validation samples of all workers.

        ``each`` is called with the window, the positions and the logits of every batch of this worker.
        """
        self.model.eval()
        scores = self.task.scores()
        for window in self._validation.windows():
            members = by_length(window.lengths, batch_size=self._settings.optimizer.batch_size)
            for number, chosen in enumerate(members):
                positions = np.array(chosen, dtype=np.int64)
                seed_step(self._settings.seed, 0, number, self._workers.rank)  # hides the same frames in every epoch
                logits = self.task.score(window, positions, scores)
                if each is not None and logits is not None:
                    each(window, positions, logits)
        self._validation.settle(self._workers)
        scores.add_up(self._workers)
        return scores

    def validation_windows(self) -> Iterator[Any]:
        """Yield the validation samples of this worker. All workers must read all of them."""
        yield from self._validation.windows()
        self._validation.settle(self._workers)

    def _maybe_checkpoint(self) -> None:
        if self._workers.size > 1 and self.state.step % _AGREE_STEPS:
            return
        due = time.monotonic() - self._stored_at >= 60 * self._settings.checkpoint.minutes
        if self._workers.max(due and self._workers.leads):
            self._checkpoint(is_best=False)

    def _checkpoint(self, *, is_best: bool) -> None:
        """Store a checkpoint with the sums of all workers. On resume, the first worker continues with these sums."""
        seen = self._workers.sum(self._seen) > 0
        loss_sum, num_videos = self._workers.sum([self.state.loss_sum, self.state.num_videos])
        if self._workers.leads:
            whole = asdict(self.state) | {"loss_sum": float(loss_sum), "num_videos": int(num_videos)}
            best = self._checkpoints.put(self.model, self._optimizer, seen, whole, is_best=is_best)
            self.state.best_checkpoint = best
            self._checkpoints.prune(keep=self._settings.checkpoint.keep, also=best)
        self._stored_at = time.monotonic()

    def load_best(self) -> None:
        """Load the weights of the best epoch into the model.

        Raises:
            JobError: the checkpoint of the best epoch is no longer complete.
        """
        number = max(self._workers.gather(self.state.best_checkpoint), key=lambda found: -1 if found is None else found)
        best = None if number is None else self._checkpoints.read(number)
        if best is None:
            msg = f"Checkpoint {number}, of the best epoch, is incomplete."
            raise JobError(msg, key="best_checkpoint", value=number, remedy="Train again with another output.")
        self.model.load_state_dict(dict(best.model))


def make_optimizer(model: nn.Module, *, weight_decay: float, betas: tuple[float, float] = BETAS) -> torch.optim.AdamW:
    """Make an AdamW optimizer for the parameters that are not frozen.

    Weight decay applies to matrices, but not to biases, norms and other vectors.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in trained if one.ndim > 1], "weight_decay": weight_decay},
        {"params": [one for one in trained if one.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=betas)


def rate_at(progress: float, *, warmup_fraction: float, final: float = 0.0) -> float:
    """Return the factor (0 to 1) of the learning rate: a linear warm-up, followed by a cosine decay to ``final``.

    ``progress`` is the completed fraction of the training. Callers pass its value at the middle of a step, so that no
    step has a rate of 0.
    """
    if progress < warmup_fraction:
        return progress / warmup_fraction
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - warmup_fraction) / (1 - warmup_fraction)))
    return final + (1 - final) * cosine


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
