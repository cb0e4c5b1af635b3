"""The network of a training: how it is built, what is frozen, and its loss on a batch."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from raypipe.config import ClassifierConfig, OptimizerConfig
from raypipe.errors import WeightsError
from raypipe.jobs.train.batches import Batch
from raypipe.models.classifier import (
    MaskedFrameModel,
    VideoClassifier,
    VideoClassifierConfig,
    classification_loss,
)
from raypipe.models.classifier_files import ModelFiles, build_model
from raypipe.models.gpt2 import Gpt2, VideoModel, add_lora, freeze


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """What a network starts from: a GPT-2, or the encoder of another training's model."""

    config: VideoClassifierConfig
    model: ClassifierConfig
    classifies: bool
    gpt2: Gpt2
    init_from: ModelFiles | None = None


def build(spec: NetworkSpec, *, seed: int) -> VideoModel:
    """Build the model, always the same for the same seed; frozen parameters need no gradient.

    Raises:
        WeightsError: the weights that it starts from do not fit.
    """
    torch.manual_seed(seed)
    model: VideoModel = VideoClassifier(spec.config) if spec.classifies else MaskedFrameModel(spec.config)
    try:
        if spec.init_from is not None:
            model.encoder.load_state_dict(build_model(spec.init_from).encoder.state_dict())
        elif spec.gpt2.weights:
            model.encoder.gpt2.load_state_dict(dict(spec.gpt2.weights))
    except RuntimeError as error:
        key, source = ("init_from", spec.init_from.source) if spec.init_from else ("model.gpt2", spec.model.gpt2)
        msg = f"{key}={str(source)!r} does not fit: {' '.join(str(error).split())[:300]}"
        raise WeightsError(msg, key=key, value=source) from None
    if spec.model.lora.rank:
        add_lora(model, **spec.model.lora.model_dump())
    freeze(model, spec.model.freeze)
    if spec.classifies:
        model.encoder.hidden_frame.requires_grad_(False)  # noqa: FBT003 - only masked-frame training hides frames
    return model


def seed_step(*numbers: int) -> None:
    """Make everything random from here on a function of these numbers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which asks every backend: 0.1 ms per step
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


class Objective:
    """The loss of each video of a batch ``[B]``, and its logits if it classifies."""

    def __init__(self, config: OptimizerConfig, *, class_weights: torch.Tensor | None) -> None:
        self._config = config
        self._class_weights = class_weights

    def __call__(self, network: nn.Module, batch: Batch, *, learning: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Call the network, which may be wrapped; ``learning`` drops frames, smooths labels and weighs classes."""
        if batch.labels is None:
            hidden = hide_frames(batch.mask, self._config.masked_fraction)
            return network(batch.frames, batch.mask, hidden).losses, None
        mask = batch.mask
        if learning and self._config.frame_dropout:
            mask = drop_frames(mask, self._config.frame_dropout)
        logits = network(batch.frames, mask).logits
        weights = self._class_weights if learning else None
        smoothing = self._config.label_smoothing if learning else 0.0
        losses = classification_loss(logits, batch.labels, class_weights=weights, label_smoothing=smoothing)
        return losses, logits.detach().float()


def drop_frames(mask: torch.Tensor, fraction: float) -> torch.Tensor:
    """Remove about this fraction of a mask's frames ``[B, T]`` at random, never all frames of a video."""
    chance = torch.rand(mask.shape, device=mask.device).masked_fill(mask == 0, -1.0)
    kept = chance >= fraction
    kept[torch.arange(len(mask)), chance.argmax(dim=1)] = True
    return mask * kept


def hide_frames(mask: torch.Tensor, fraction: float) -> torch.Tensor:
    """Choose about this fraction of a mask's frames ``[B, T]`` at random, at least one of every video."""
    chance = torch.rand(mask.shape, device=mask.device).masked_fill(mask == 0, 2.0)
    hidden = chance < fraction
    hidden[torch.arange(len(mask)), chance.argmin(dim=1)] = True
    return hidden
