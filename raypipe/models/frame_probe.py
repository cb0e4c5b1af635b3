"""A linear classifier on statistics of a video's frame embeddings over time: the probe.

The statistics are the mean over the frames or, as ``mean_slope_std``, the mean, the slope over time and the standard
deviation. All functions take frames ``[B, T, D]`` and a mask ``[B, T]`` that is 0 where there is no frame.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

ProbeFeatures = Literal["mean", "mean_slope_std"]
NUM_STATISTICS: Mapping[str, int] = {"mean": 1, "mean_slope_std": 3}
_EPS = 1e-6


def frame_statistics(frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean, the slope and the standard deviation over time of each dimension, ``[B, 3, D]``.

    The slope is the covariance with the frame number, divided by the frame number's standard deviation. So it has the
    unit of the embeddings, for videos of any length. With one frame, the slope and the deviation are 0.
    """
    parts = _Parts.of(frames.float(), mask)
    slope = (parts.times * parts.weights)[..., None] * parts.centred
    variance = (parts.weights[..., None] * parts.centred.square()).sum(dim=1)
    return torch.stack([parts.mean[:, 0], slope.sum(dim=1), variance.sqrt()], dim=1)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the statistics are made of.

    ``weights`` ``[B, T]`` add up to 1 over the frames of a video. ``times`` ``[B, T]`` are frame numbers with a mean of
    0 and a deviation of 1 over these frames. ``mean`` is ``[B, 1, D]``, and ``centred`` ``[B, T, D]`` is the difference
    to it.
    """

    weights: torch.Tensor
    times: torch.Tensor
    mean: torch.Tensor
    centred: torch.Tensor

    @classmethod
    def of(cls, frames: torch.Tensor, mask: torch.Tensor) -> "_Parts":
        weights = mask.to(frames.dtype)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
        times = torch.arange(frames.shape[1], device=frames.device, dtype=frames.dtype).expand_as(weights)
        times = times - (weights * times).sum(dim=1, keepdim=True)
        times = times / (weights * times.square()).sum(dim=1, keepdim=True).sqrt().clamp(min=_EPS)
        mean = (weights[..., None] * frames).sum(dim=1, keepdim=True)
        return cls(weights, times, mean, frames - mean)


class FrameProbe(nn.Module):
    """A linear model on standardised statistics of the frames. It is fitted on its own, never by gradient descent.

    It computes in float32, even under autocast and in a model of another dtype, so its logits are always the same.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, features: ProbeFeatures, *, embedding_dim: int, num_labels: int) -> None:
        super().__init__()
        self.num_statistics = NUM_STATISTICS[features]
        size = self.num_statistics * embedding_dim
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.linear = nn.Linear(size, num_labels)
        self.requires_grad_(False)  # noqa: FBT003 - torch's own signature

    def forward(self, frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the logits ``[B, C]``."""
        with torch.autocast(frames.device.type, enabled=False):
            inputs = frame_statistics(frames, mask)[:, : self.num_statistics].flatten(start_dim=1)
            scaled = (inputs - self.mean.float()) / self.std.float()
            return nn.functional.linear(scaled, self.linear.weight.float(), self.linear.bias.float())

    def contributions(self, frames: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return how much each frame adds to the logit of one label per video, ``[B, T]``. They add up to the logit.

        The mean and the slope are sums over the frames. The standard deviation s is the sum of (x - mean)^2 / (T s)
        over the frames x. What does not depend on a frame, the bias and the standardisation, is divided evenly.
        """
        parts = _Parts.of(frames.float(), mask)
        of_label = self.linear.weight[labels].float() / self.std.float()
        weights = of_label.reshape(len(frames), self.num_statistics, -1)
        constant = self.linear.bias[labels].float() - (of_label * self.mean.float()).sum(dim=1)
        each = frames.float() @ weights[:, 0, :, None]
        if self.num_statistics > 1:
            deviation = (parts.weights[..., None] * parts.centred.square()).sum(dim=1).sqrt().clamp(min=_EPS)
            each = each + parts.times[..., None] * (parts.centred @ weights[:, 1, :, None])
            each = each + parts.centred.square() @ (weights[:, 2] / deviation)[..., None]
        return parts.weights * (each.squeeze(dim=2) + constant[:, None])
