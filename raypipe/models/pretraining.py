"""Models that learn from videos without labels: their encoder is a starting point for a classifier.

All take frame embeddings ``[B, T, D]``, an attention mask ``[B, T]``, and the frames ``[B, T]`` that are hidden.
"""

from typing import Any, cast

import numpy as np
import torch
from torch import nn

from raypipe.models.classifier import (
    MAX_LEFT_OUT,
    Array,
    Frames,
    VideoClassifierConfig,
    VideoEncoder,
    VideoOutput,
    VideoPreTrainedModel,
    masked_mean,
    pad_frames,
    thin,
)

_TEMPERATURE = 0.1  # of the cosines


class MaskedFrameModel(VideoPreTrainedModel):
    """A GPT-2 that predicts the embeddings of hidden frames. Training it is self-supervised pretraining."""

    def __init__(self, config: VideoClassifierConfig) -> None:
        super().__init__(config)
        self.encoder = VideoEncoder(config)
        self.decoder = nn.Linear(config.gpt2.n_embd, config.embedding_dim)
        self.post_init()

    def forward(
        self,
        frame_embeddings: torch.Tensor,
        attention_mask: torch.Tensor,
        hidden: torch.Tensor,
        **_: Any,  # noqa: ANN401 - what transformers' callers add
    ) -> VideoOutput:
        """Predict the standardised embeddings of all frames.

        ``hidden`` ``[B, T]`` is true for hidden frames. A video's loss is the mean squared error over its hidden
        frames.
        """
        target = self.encoder.standardise(frame_embeddings)
        frames = self.decoder(self.encoder(target, attention_mask, hidden))
        errors = (frames.float() - target).square().mean(dim=-1, keepdim=True)
        losses = masked_mean(errors, hidden).squeeze(dim=1)
        return VideoOutput(loss=losses.mean(), losses=losses, frames=frames)

    def frame_errors(self, video: Frames) -> Array:
        """Return for each frame ``[T, D]`` of a video the error of its prediction while it alone is hidden, ``[T]``.

        Evenly spread frames are scored if there are more than ``MAX_LEFT_OUT``, and the others get NaN.
        """
        self.eval()
        padded = pad_frames([video], max_frames=self.config.max_frames).to(self.device)
        length = padded.frames.shape[1]
        scored = torch.from_numpy(thin(length, max_frames=MAX_LEFT_OUT)).to(self.device)
        hidden = torch.zeros((len(scored), length), dtype=torch.bool, device=self.device)
        hidden[torch.arange(len(scored)), scored] = True
        frames, mask = padded.frames.expand(len(scored), -1, -1), padded.mask.expand(len(scored), -1)
        with torch.inference_mode():
            losses = cast("torch.Tensor", self(frames, mask, hidden).losses).float().cpu().numpy()
        errors = np.full(len(video), np.nan, np.float32)
        errors[padded.kept[0][scored.cpu().numpy()]] = losses
        return errors


class FrameOrderModel(VideoPreTrainedModel):
    """A GPT-2 that learns the order of frames from two tasks on a random half of the frames of a video.

    It must tell which continues the half, the other half forwards or the same frames backwards, and whether frames are
    played forwards or backwards (Wei et al. 2018, Learning and Using the Arrow of Time). Other videos are not compared,
    because their frames look different, so that the order need not be learned to tell them apart.
    """

    def __init__(self, config: VideoClassifierConfig) -> None:
        super().__init__(config)
        self.encoder = VideoEncoder(config)
        self.projection = nn.Linear(config.gpt2.n_embd, config.gpt2.n_embd)
        self.direction = nn.Linear(config.gpt2.n_embd, 1)
        self.post_init()

    def forward(
        self,
        frame_embeddings: torch.Tensor,
        attention_mask: torch.Tensor,
        hidden: torch.Tensor,
        **_: Any,  # noqa: ANN401 - what transformers' callers add
    ) -> VideoOutput:
        """Compare the frames of each video that are not ``hidden`` with those that are, ``[B, T]``.

        The loss of a video is the sum of both tasks. A video with one frame has no order, and its loss is 0.
        """
        has_order = attention_mask.sum(dim=1, keepdim=True) > 1
        shown = attention_mask * (~hidden | ~has_order)
        others = attention_mask * (hidden | ~has_order)
        given, forwards = self._read(frame_embeddings, shown), self._read(frame_embeddings, others)
        reverse = self._read(backwards(frame_embeddings, attention_mask), others)
        asked, right, wrong = (self._unit(states) for states in (given, forwards, reverse))
        losses = nn.functional.softplus((asked * (wrong - right)).sum(dim=1) / _TEMPERATURE)
        for states, sign in ((given, -1.0), (forwards, -1.0), (reverse, 1.0)):
            losses = losses + nn.functional.softplus(sign * self.direction(states)[:, 0].float()) / 3
        losses = losses * has_order[:, 0]
        return VideoOutput(loss=losses.mean(), losses=losses)

    def _read(self, frames: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Return the mean state ``[B, N]`` of the frames where ``kept`` ``[B, T]`` is 1. GPT-2 sees no others."""
        return masked_mean(self.encoder(self.encoder.standardise(frames), kept), kept)

    def _unit(self, states: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.projection(states).float(), dim=1)


def backwards(frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the frames ``[B, T, D]`` of each video in reverse order. Padding, where ``mask`` is 0, stays in place."""
    numbers = torch.arange(frames.shape[1], device=frames.device)
    lengths = mask.sum(dim=1, keepdim=True)
    order = torch.where(numbers < lengths, lengths - 1 - numbers, numbers)
    return frames.gather(1, order[..., None].expand_as(frames))
