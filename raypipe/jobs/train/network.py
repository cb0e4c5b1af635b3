"""The model of a training: made from what it starts with, what is frozen, and its loss on a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from raypipe.config import ClassifierConfig, OptimizerConfig
from raypipe.errors import ConfigError, WeightsError
from raypipe.models.adapters import VideoModel, add_lora, freeze
from raypipe.models.classifier import (
    Frames,
    MaskedFrameModel,
    VideoClassifier,
    VideoClassifierConfig,
    classification_loss,
    pad_frames,
)
from raypipe.models.classifier_files import ModelFiles, build_model
from raypipe.models.gpt2 import Gpt2


@dataclass(frozen=True, slots=True)
class Start:
    """What a model is made of: a GPT-2, or another training's model whose encoder goes on learning."""

    config: VideoClassifierConfig
    model: ClassifierConfig
    classifies: bool
    gpt2: Gpt2
    init_from: ModelFiles | None = None


def classifier_config(
    gpt2: Mapping[str, Any],
    *,
    model: ClassifierConfig,
    max_frames: int,
    embedding_dim: int,
    fingerprint: str,
    label_names: Sequence[str],
    multi_label: bool,
) -> VideoClassifierConfig:
    """What ``config.json`` will say; GPT-2's own dropout follows ``model.dropout``."""
    drops = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), model.dropout)
    sizes = {**gpt2, **drops}
    if heads := sizes["n_embd"] % sizes["n_head"]:
        width = sizes["n_embd"]
        msg = f"model.gpt2: n_embd {width} leaves {heads} over when divided among {sizes['n_head']} heads."
        raise ConfigError(msg, key="model.gpt2.n_embd", value=width)
    return VideoClassifierConfig(
        embedding_dim=embedding_dim,
        gpt2=sizes,
        max_frames=max_frames,
        dropout=model.dropout,
        embedding_fingerprint=fingerprint,
        problem_type="multi_label_classification" if multi_label else "single_label_classification",
        id2label=dict(enumerate(label_names)),
        label2id={label: number for number, label in enumerate(label_names)},
    )


def build(start: Start, *, seed: int) -> VideoModel:
    """Make the model, the same one for the same seed; what is not to be trained needs no gradient.

    Raises:
        WeightsError: the weights it starts from do not fit.
    """
    torch.manual_seed(seed)
    model: VideoModel = VideoClassifier(start.config) if start.classifies else MaskedFrameModel(start.config)
    try:
        if start.init_from is not None:
            model.encoder.load_state_dict(build_model(start.init_from).encoder.state_dict())
        elif start.gpt2.weights:
            model.encoder.gpt2.load_state_dict(dict(start.gpt2.weights))
    except RuntimeError as error:
        key, source = ("init_from", start.init_from.source) if start.init_from else ("model.gpt2", start.model.gpt2)
        msg = f"{key}={str(source)!r} does not fit: {' '.join(str(error).split())[:300]}"
        raise WeightsError(msg, key=key, value=source) from None
    if start.model.lora.rank:
        add_lora(model, **start.model.lora.model_dump())
    freeze(model, start.model.freeze)
    if start.classifies:
        model.encoder.hidden_frame.requires_grad_(False)  # noqa: FBT003 - nothing is hidden from a classifier
    return model


@dataclass(frozen=True, slots=True)
class Batch:
    """Videos padded to one length: frames ``[B, T, D]``, mask ``[B, T]``, labels ``[B]`` or ``[B, C]``."""

    frames: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor | None


def make_batch(
    videos: Sequence[Frames],
    targets: Sequence[npt.NDArray[np.int64]],
    config: VideoClassifierConfig,
    *,
    device: torch.device,
) -> Batch:
    """Put videos and their labels on the device; no labels where the config names none that were learned."""
    padded = pad_frames(videos, max_frames=config.max_frames).to(device)
    labels: torch.Tensor | None = None
    if targets and all(len(target) for target in targets):
        if config.problem_type == "multi_label_classification":
            several = np.zeros((len(targets), len(config.label_names)), dtype=np.float32)
            for row, target in enumerate(targets):
                several[row, target] = 1
            labels = torch.from_numpy(several).to(device)
        else:
            labels = torch.from_numpy(np.concatenate(targets)).to(device)
    return Batch(padded.frames, padded.mask, labels)


class Objective:
    """The loss of each video of a batch ``[B]``, and its logits where it classifies."""

    def __init__(self, config: OptimizerConfig, *, class_weights: torch.Tensor | None) -> None:
        self._config = config
        self._class_weights = class_weights

    def __call__(self, network: nn.Module, batch: Batch, *, learning: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Call the network, which may be wrapped; ``learning`` drops frames, smooths labels and weighs classes."""
        if batch.labels is None:
            return self._masked_frame(network, batch), None
        mask = batch.mask
        if learning and self._config.frame_dropout:
            mask = drop_frames(mask, self._config.frame_dropout)
        logits = network(batch.frames, mask).logits
        weights = self._class_weights if learning else None
        smoothing = self._config.label_smoothing if learning else 0.0
        losses = classification_loss(logits, batch.labels, class_weights=weights, label_smoothing=smoothing)
        return losses, logits.detach().float()

    def _masked_frame(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        hidden = hide_frames(batch.mask, self._config.masked_fraction)
        losses: torch.Tensor = network(batch.frames, batch.mask, hidden).losses
        return losses


def drop_frames(mask: torch.Tensor, fraction: float) -> torch.Tensor:
    """Take about this share of a mask's frames ``[B, T]`` away at random, never all of a video's."""
    chance = torch.rand(mask.shape, device=mask.device).masked_fill(mask == 0, -1.0)
    kept = chance >= fraction
    kept[torch.arange(len(mask)), chance.argmax(dim=1)] = True
    return mask * kept


def hide_frames(mask: torch.Tensor, fraction: float) -> torch.Tensor:
    """Choose about this share of a mask's frames ``[B, T]`` at random, at least one of every video."""
    chance = torch.rand(mask.shape, device=mask.device).masked_fill(mask == 0, 2.0)
    hidden = chance < fraction
    hidden[torch.arange(len(mask)), chance.argmin(dim=1)] = True
    return hidden
