"""AdamW, and how its learning rate moves."""

import math

import torch
from torch import nn

_BETAS = (0.9, 0.95)  # those of GPT-2's and GPT-3's training


def make_optimizer(model: nn.Module, *, weight_decay: float) -> torch.optim.AdamW:
    """Decay matrices, not biases, norms and single vectors; leave out what is frozen."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in trained if one.ndim > 1], "weight_decay": weight_decay},
        {"params": [one for one in trained if one.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=_BETAS)


def learning_rate(*, n_embd: int, pretrained: bool, lora: bool) -> float:
    """What ``auto`` means: weights that start at random learn faster the narrower they are, pretrained ones slowly.

    The first is measured at a width of 128 and goes with its inverse, as AdamW's does (Yang et al. 2022,
    arXiv:2203.03466); the others are what fine-tuning of GPT-2 commonly takes (Hu et al. 2021, arXiv:2106.09685).
    """
    if lora:
        return 1e-3
    return 1e-4 if pretrained else 3e-3 * 128 / n_embd


def rate_at(progress: float, *, warmup_fraction: float) -> float:
    """The share of the learning rate, 0 to 1, at a share of the training: up in a line, then half a cosine to nothing.

    ``progress`` is that of a step's middle, so that neither the first step nor the last learns nothing.
    """
    if progress < warmup_fraction:
        return progress / warmup_fraction
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup_fraction) / (1 - warmup_fraction)))


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
