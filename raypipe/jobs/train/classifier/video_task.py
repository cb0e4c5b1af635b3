"""The objectives that read the frames of videos: with labels, or masked_frame and frame_order, which need none."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn

from raypipe.config import OptimizerConfig
from raypipe.dataset.read import frame_embeddings
from raypipe.jobs.train.batches import Collective, WorkerSamples
from raypipe.jobs.train.classifier.scores import Scores
from raypipe.jobs.train.inputs import INDEX, TARGETS, Ints
from raypipe.jobs.train.tasks import autocast, is_native_bfloat16
from raypipe.models.classifier import VideoClassifier, VideoClassifierConfig, classification_loss, pad_frames
from raypipe.models.frame_probe import FrameProbe
from raypipe.models.gpt2 import VideoModel
from raypipe.models.pretraining import FrameOrderModel

Half = npt.NDArray[np.float16]
_NO_LABEL = np.array([-1], dtype=np.int64)


@dataclass(slots=True)
class FramesWindow:
    """Videos held in memory. Each has a sample number, its label numbers, and its frames ``[T, D]``."""

    index: list[int] = field(default_factory=list)
    targets: list[Ints] = field(default_factory=list)
    frames: list[Half] = field(default_factory=list)
    size_bytes: int = 0

    @property
    def lengths(self) -> list[int]:
        return [len(frames) for frames in self.frames]

    def add(self, block: pa.Table) -> None:
        frames = [vectors.copy() for vectors in frame_embeddings(block)]
        self.frames += frames
        self.index += block[INDEX].to_pylist()
        self.targets += [np.array(targets, dtype=np.int64) for targets in block[TARGETS].to_pylist()]
        self.size_bytes += sum(vectors.nbytes for vectors in frames)

    def sort(self) -> None:
        order = np.argsort(self.index).tolist()
        self.index = [self.index[at] for at in order]
        self.targets = [self.targets[at] for at in order]
        self.frames = [self.frames[at] for at in order]


@dataclass(frozen=True, slots=True)
class FramesBatch:
    """Videos padded to the same length, as frames ``[B, T, D]`` and a mask ``[B, T]`` of the real frames.

    ``labels`` holds class numbers ``[B]`` or, for multi-label training, zeros and ones ``[B, C]``. ``index`` ``[B]``
    holds the sample numbers.
    """

    frames: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor | None
    index: torch.Tensor


class UnseenLogits:
    """The logits of a probe for training videos that it was not fitted to.

    Out-of-fold logits ``[N, C]``, on the model's device, exist for the videos whose number is a multiple of ``stride``.
    The probe was not fitted to the others, so that it predicts them itself.
    """

    def __init__(self, out_of_fold: torch.Tensor, *, stride: int, loss: float) -> None:
        self.loss = loss  # the mean out-of-fold loss
        self._out_of_fold, self._stride = out_of_fold, stride

    def of(self, batch: FramesBatch, probe: FrameProbe) -> torch.Tensor:
        """Return the logits ``[B, C]`` of a batch of training videos."""
        stored = self._out_of_fold[batch.index // self._stride]
        if self._stride == 1:
            return stored
        is_stored = (batch.index % self._stride == 0)[:, None]
        return torch.where(is_stored, stored, probe(batch.frames, batch.mask))


class VideoTask:
    """Classifies videos or, with a model of ``models.pretraining``, predicts something of their frames."""

    def __init__(
        self,
        model: VideoModel,
        config: OptimizerConfig,
        *,
        device: torch.device,
        class_weights: torch.Tensor | None = None,
        unseen: UnseenLogits | None = None,
    ) -> None:
        self.model: VideoModel = model.to(device)  # type: ignore[arg-type]
        self.start_loss = None if unseen is None else unseen.loss
        self.num_labels = len(model.config.label_names) if isinstance(model, VideoClassifier) else 0
        self._sizes = cast("VideoClassifierConfig", model.config)
        self._config = config
        self._device = device
        self._class_weights = class_weights
        self._unseen = unseen
        self._bfloat16 = is_native_bfloat16(device) if config.precision == "auto" else config.precision == "bfloat16"

    def standardise(self, samples: WorkerSamples[FramesWindow], workers: Collective) -> None:
        """Compute the mean and the standard deviation of each of the D dimensions, and store them in the encoder.

        They are computed over all frames of the training videos of all workers.
        """
        sums, num_frames = moments(samples, self._sizes.embedding_dim)
        samples.settle(workers)
        mean, square = workers.sum(sums) / max(1, workers.sum([num_frames])[0])
        # Embeddings are float16. A deviation below the resolution of float16 means that the dimension is constant.
        with np.errstate(invalid="ignore"):  # if a value is not finite, the first step stops the training
            deviation = np.sqrt(np.maximum(square - np.square(mean), 1e-8))
        self.model.encoder.mean.copy_(torch.from_numpy(mean))
        self.model.encoder.std.copy_(torch.from_numpy(deviation))

    def batch(self, window: FramesWindow, positions: Ints) -> FramesBatch:
        """Return a batch of the videos at these positions; without positions, of one video of zeros."""
        videos = [window.frames[at] for at in positions]
        targets = [window.targets[at] for at in positions]
        index = [window.index[at] for at in positions]
        if not videos:
            videos = [np.zeros((1, self._sizes.embedding_dim), dtype=np.float16)]
            targets, index = [np.zeros(min(1, self.num_labels), dtype=np.int64)], [0]
        padded = pad_frames(videos, max_frames=self._sizes.max_frames).to(self._device)
        labels = None
        if all(len(target) for target in targets):
            labels = label_tensor(targets, self.num_labels, multi_label=self._sizes.multi_label).to(self._device)
        return FramesBatch(padded.frames, padded.mask, labels, torch.tensor(index, device=self._device))

    def losses(self, network: nn.Module, batch: FramesBatch) -> torch.Tensor:
        """Return the losses ``[B]``. Frames are dropped, labels smoothed and classes weighted, as configured."""
        return self.run(network, batch, learning=True)[0]

    def run(
        self, network: nn.Module, batch: FramesBatch, *, learning: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the network on a batch and return the losses ``[B]`` and the logits ``[B, C]``.

        The logits are None if the network does not classify. While learning, GPT-2 is added to what a probe predicts
        for videos that it has not seen. The loss is then the mean of two: of the sum, and of GPT-2 alone, which would
        otherwise learn little from videos that the probe gets right.
        """
        if batch.labels is None:
            is_order = isinstance(self.model, FrameOrderModel)
            hidden = hide_frames(batch.mask, 0.5 if is_order else self._config.masked_fraction)
            return network(batch.frames, batch.mask, hidden).losses, None
        dropped = None
        if learning and self._config.frame_dropout:
            dropped = drop_frames(batch.mask, self._config.frame_dropout) < batch.mask
        unseen = self._unseen.of(batch, self._probe) if learning and self._unseen is not None else None
        found = network(batch.frames, batch.mask, probe_logits=unseen, dropped=dropped)
        weights = self._class_weights if learning else None
        smoothing = self._config.label_smoothing if learning else 0.0
        losses_of = partial(classification_loss, labels=batch.labels, class_weights=weights, label_smoothing=smoothing)
        losses = losses_of(found.logits)
        if unseen is not None:
            losses = (losses + losses_of(found.order_logits)) / 2
        return losses, found.logits.detach().float()

    @property
    def _probe(self) -> FrameProbe:
        return cast("VideoClassifier", self.model).probe

    def scores(self) -> Scores:
        return Scores(self.num_labels, has_probe=self._unseen is not None)

    def score(self, window: FramesWindow, positions: Ints, scores: Scores) -> torch.Tensor | None:
        batch = self.batch(window, positions)
        with self.autocast():
            losses, logits = self.run(self.model, batch, learning=False)
        scores.add(losses.float(), logits, batch.labels)
        if self._unseen is not None and batch.labels is not None:
            of_probe = classification_loss(self._probe(batch.frames, batch.mask), batch.labels)
            scores.add_gains(of_probe - losses)
        return logits

    def prediction(self, window: FramesWindow, positions: Ints, logits: torch.Tensor) -> dict[str, Any]:
        """Return the logits of the videos at these positions, their sample numbers and their label numbers."""
        index, targets = ([values[at] for at in positions] for values in (window.index, window.targets))
        return {"logits": logits.cpu().numpy().astype(np.float32), "index": index, "targets": targets}

    def autocast(self) -> AbstractContextManager[None]:
        return autocast(self._device, bfloat16=self._bfloat16)


def label_tensor(targets: Sequence[Ints], num_labels: int, *, multi_label: bool) -> torch.Tensor:
    """Return the class numbers ``[V]`` of videos with one label or, with ``multi_label``, zeros and ones ``[V, C]``.

    A video without a label has the class number -1, or only zeros.
    """
    if not multi_label:
        return torch.from_numpy(np.concatenate([target if len(target) else _NO_LABEL for target in targets]))
    several = torch.zeros(len(targets), num_labels)
    for row, target in enumerate(targets):
        several[row, target] = 1
    return several


def moments(samples: WorkerSamples[FramesWindow], embedding_dim: int) -> tuple[npt.NDArray[np.float64], int]:
    """Return the sum and the sum of squares of each dimension over all frames, ``[2, D]``, and the frame count."""
    sums, num_frames = np.zeros((2, embedding_dim)), 0
    for window in samples.windows():
        for frames in window.frames:
            vectors = frames.astype(np.float64)
            sums += vectors.sum(axis=0), np.square(vectors).sum(axis=0)
            num_frames += len(vectors)
    return sums, num_frames


def drop_frames(mask: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return the mask ``[B, T]`` without about ``fraction`` of its frames, chosen at random.

    Every video keeps at least one frame.
    """
    chance = torch.rand(mask.shape, device=mask.device).masked_fill(mask == 0, -1.0)
    kept = chance >= fraction
    kept[torch.arange(len(mask)), chance.argmax(dim=1)] = True
    return mask * kept


def hide_frames(mask: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return a mask ``[B, T]`` of the frames to hide: a random choice of about ``fraction`` of the frames in ``mask``.

    At least one frame of every video is hidden.
    """
    chance = torch.rand(mask.shape, device=mask.device).masked_fill(mask == 0, 2.0)
    hidden = chance < fraction
    hidden[torch.arange(len(mask)), chance.argmin(dim=1)] = True
    return hidden
