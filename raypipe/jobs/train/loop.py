"""The training loop of one worker: epochs, checkpoints, and going on where a run was cut off. No Ray here."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from itertools import count
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from raypipe.errors import JobError
from raypipe.jobs.train.checkpoint import Checkpoint, Checkpoints, load_optimizer
from raypipe.jobs.train.evaluate import Each, Feeder, evaluate, measured
from raypipe.jobs.train.network import Objective
from raypipe.jobs.train.optim import make_optimizer, rate_at, set_rate
from raypipe.jobs.train.scores import Scores
from raypipe.jobs.train.shard import Ints, Shard, Window, epoch_batches
from raypipe.jobs.train.state import LoopSettings, State, seed_step
from raypipe.jobs.train.team import Team
from raypipe.models.adapters import VideoModel
from raypipe.records import EpochMetrics

Notify = Callable[[str, Mapping[str, Any]], None]
_AGREE_STEPS = 16  # several workers ask the first one's clock so often


class Loop:
    """Trains a model on one worker's share of the samples; every worker of the team calls ``run``.

    All that is random in a step follows from the seed, the number of the step and of the worker: nothing but the
    step's number is needed to go on as if nothing had happened.
    """

    def __init__(
        self,
        model: VideoModel,
        settings: LoopSettings,
        *,
        train: Shard,
        validation: Shard,
        team: Team,
        checkpoints: Checkpoints,
        notify: Notify,
    ) -> None:
        self.model = model.to(team.device)  # type: ignore[arg-type]
        self._settings = settings
        self._train, self._validation = train, validation
        self._team = team
        self._checkpoints = checkpoints
        self._notify = notify
        self._optimizer = make_optimizer(self.model, weight_decay=settings.optimizer.weight_decay)
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._network = self._wrapped()
        self._feeder = Feeder(self.model, device=team.device, precision=settings.optimizer.precision)
        weights = None if settings.class_weights is None else torch.tensor(settings.class_weights, device=team.device)
        self._objective = Objective(settings.optimizer, class_weights=weights)
        self.state = State()
        self._seen = np.zeros(settings.num_train, dtype=bool)
        self._stored_at = time.monotonic()
        per_step = team.size * settings.optimizer.batch_size * settings.optimizer.accumulate
        self.steps_per_epoch = max(1, -(-settings.num_train // per_step))

    def _wrapped(self) -> nn.Module:
        if self._team.size == 1:
            return cast("nn.Module", self.model)
        devices = [self._team.device.index] if self._team.device.type == "cuda" else None
        return DistributedDataParallel(self.model, device_ids=devices, broadcast_buffers=False)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(dict(checkpoint.model))
        load_optimizer(self.model, self._optimizer, checkpoint.optimizer)
        known = State.__dataclass_fields__
        self.state = State(**{key: value for key, value in checkpoint.state.items() if key in known})
        if not self._team.leads:  # the sums are of all workers
            self.state.loss_sum, self.state.num_videos = 0.0, 0
        self._seen = checkpoint.seen.copy()

    def standardise(self) -> None:
        """Take the mean and deviation of each of the D numbers from the training videos."""
        sums, num_frames = self._train.moments(self.model.config.embedding_dim)
        self._train.settle(self._team)
        mean, square = self._team.sum(sums) / max(1, self._team.sum([num_frames])[0])
        # Embeddings are float16: what moves less than its steps is as good as constant.
        with np.errstate(invalid="ignore"):  # what is not finite ends the first step
            deviation = np.sqrt(np.maximum(square - np.square(mean), 1e-8))
        self.model.encoder.mean.copy_(torch.from_numpy(mean))
        self.model.encoder.std.copy_(torch.from_numpy(deviation))

    @property
    def has_validation(self) -> bool:
        """Whether any worker has videos to validate on."""
        return self._settings.num_validation > 0

    def run(self) -> State:
        """Train until the epochs are over, the validation split stops getting better, or a loss is not finite.

        Raises:
            StorageError: a checkpoint cannot be stored.
        """
        while self.state.ended == "running":
            if self.state.epoch >= self._settings.optimizer.epochs:
                self.state.ended = "finished"
                break
            self._run_epoch()
            if self.state.ended == "running":
                self._end_epoch()
        return self.state

    def _run_epoch(self) -> None:
        self.model.train()
        for number, window in self._windows():
            batches = epoch_batches(
                window.index,
                [len(frames) for frames in window.frames],
                batch_size=self._settings.optimizer.batch_size,
                seed=[self._settings.seed, self.state.epoch, number],
                seen=self._seen,
            )
            # The others may have more batches: whoever has run out takes part with none, or they would wait for ever.
            sizes = np.zeros(int(self._team.max(len(batches))))
            sizes[: len(batches)] = [len(batch) for batch in batches]
            together = self._team.sum(sizes)
            none = np.zeros(0, dtype=np.int64)
            padded = [*batches, *(none for _ in range(len(sizes) - len(batches)))]
            accumulate = self._settings.optimizer.accumulate
            for start in range(0, len(padded), accumulate):
                began = time.perf_counter()
                group = padded[start : start + accumulate]
                if not self._step(window, group, float(together[start : start + accumulate].sum())):
                    return
                self.state.seconds += time.perf_counter() - began
                self._tell_step()
                self._maybe_checkpoint()
        self._train.settle(self._team)

    def _windows(self) -> Iterator[tuple[int, Window]]:
        """This worker's windows, then empty ones until no worker has any left: all take part in every step."""
        windows = self._train.windows()
        for number in count():
            window = next(windows, None)
            if not self._team.max(window is not None):
                return
            yield number, window or Window()

    def _step(self, window: Window, group: list[Ints], num_videos: float) -> bool:
        """One optimizer step over the group's batches, those of all workers together; False where it is not finite."""
        state, config = self.state, self._settings.optimizer
        state.learning_rate = self._rate(num_videos)
        set_rate(self._optimizer, state.learning_rate)
        self._optimizer.zero_grad(set_to_none=True)
        losses = torch.zeros((), dtype=torch.float64, device=self._team.device)
        for micro, positions in enumerate(group):
            seed_step(self._settings.seed, state.step, micro, self._team.rank)
            with self._in_sync(last=micro == len(group) - 1):
                loss = self._loss_sum(window, positions)
                # DDP takes the mean over workers of gradients that are shares of one sum.
                (loss * (self._team.size / num_videos)).backward()
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
        """The learning rate of the next step, which has so many videos."""
        state, config, num_train = self.state, self._settings.optimizer, self._settings.num_train
        done = state.epoch * num_train + state.num_done + num_videos / 2
        share = rate_at(done / (config.epochs * num_train), warmup_fraction=config.warmup_fraction)
        return self._settings.learning_rate * share

    def _tell_step(self) -> None:
        state = self.state
        if self._team.leads:
            mean_loss = state.loss_sum / max(1, state.num_videos)
            speed = state.num_done / state.seconds
            told = {"epoch": state.epoch + 1, "step": state.step, "loss": mean_loss, "samples_per_second": speed}
            self._notify("step", told)

    def _in_sync(self, *, last: bool) -> AbstractContextManager[None]:
        if isinstance(self._network, DistributedDataParallel) and not last:
            return cast("AbstractContextManager[None]", self._network.no_sync())
        return nullcontext()

    def _loss_sum(self, window: Window, positions: Ints) -> torch.Tensor:
        """The sum of the losses of these videos; 0, with a gradient of 0, of none."""
        batch = self._feeder.batch(window, positions)
        with self._feeder.autocast():
            losses, _ = self._objective(self._network, batch, learning=True)
        return losses.float().sum() if len(positions) else losses.float().sum() * 0

    def _end_epoch(self) -> None:
        state, seconds = self.state, self._team.max(self.state.seconds)
        loss_sum, num_videos = self._team.sum([state.loss_sum, state.num_videos])
        scores = self.evaluate() if self.has_validation else None
        metrics = EpochMetrics(
            epoch=state.epoch + 1,
            step=state.step,
            train_loss=float(loss_sum / max(1, num_videos)),
            **measured(scores),
            learning_rate=state.learning_rate,
            samples_per_second=float(num_videos / seconds) if seconds else 0.0,
            seconds=seconds,
        )
        value = self._value(metrics)
        if not np.isfinite(value).all():
            self._stop_not_finite()
            return
        state.epoch += 1
        state.loss_sum, state.num_videos, state.num_done, state.seconds = 0.0, 0, 0, 0.0
        self._seen[:] = False
        state.history.append(asdict(metrics))
        is_best = not state.best_value or value > state.best_value or scores is None
        if is_best:
            state.best_epoch, state.best_value = state.epoch, value
        patience = self._settings.optimizer.early_stop_epochs
        if patience and scores is not None and state.epoch - (state.best_epoch or 0) >= patience:
            state.ended = "stopped_early"
        self._checkpoint(is_best=is_best)
        if self._team.leads:
            self._notify("epoch", {"metrics": metrics, "is_best": is_best, "history": state.history})

    def _value(self, metrics: EpochMetrics) -> list[float]:
        """What the best epoch has most of: the chosen metric, then a low loss."""
        loss = metrics.train_loss if metrics.validation_loss is None else metrics.validation_loss
        chosen = self._settings.optimizer.select_by
        if chosen == "loss" or metrics.accuracy is None:
            return [-loss]
        return [float(getattr(metrics, chosen)), -loss]

    def _stop_not_finite(self) -> None:
        self.state.ended = "not_finite"
        self.state.message = (
            f"The loss is no longer a number in epoch {self.state.epoch + 1}, step {self.state.step + 1}. Lower "
            "optimizer.learning_rate or max_grad_norm, or use precision float32, with another output."
        )

    def evaluate(self, each: Each | None = None) -> Scores:
        """Measure the model on the validation split."""
        return evaluate(
            self.model,
            self._validation,
            feeder=self._feeder,
            objective=self._objective,
            batch_size=self._settings.optimizer.batch_size,
            seed=self._settings.seed,
            team=self._team,
            each=each,
        )

    def _maybe_checkpoint(self) -> None:
        if self._team.size > 1 and self.state.step % _AGREE_STEPS:
            return
        due = time.monotonic() - self._stored_at >= 60 * self._settings.checkpoint.minutes
        if self._team.agree(due):
            self._checkpoint(is_best=False)

    def _checkpoint(self, *, is_best: bool) -> None:
        """Store the state of all workers together; each goes on with sums of its own, the first with all of them."""
        seen = self._team.sum(self._seen) > 0
        loss_sum, num_videos = self._team.sum([self.state.loss_sum, self.state.num_videos])
        if self._team.leads:
            whole = asdict(self.state) | {"loss_sum": float(loss_sum), "num_videos": int(num_videos)}
            self.state.best_checkpoint = self._checkpoints.put(
                self.model, self._optimizer, seen, whole, is_best=is_best
            )
            self._checkpoints.prune(keep=self._settings.checkpoint.keep, also=self.state.best_checkpoint)
        self._stored_at = time.monotonic()

    def load_best(self) -> None:
        """Give the model the weights of the best epoch.

        Raises:
            JobError: its checkpoint is no longer whole.
        """
        number = max(self._team.gather(self.state.best_checkpoint), key=lambda found: -1 if found is None else found)
        best = None if number is None else self._checkpoints.read(number)
        if best is None:
            msg = f"Checkpoint {number}, of the best epoch, is not whole."
            raise JobError(msg, key="best_checkpoint", value=number, remedy="Train again with another output.")
        self.model.load_state_dict(dict(best.model))
