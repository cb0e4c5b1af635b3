"""Quantize a backbone to int8 for OpenVINO.

Weights are rounded as in GPTQ (Frantar et al., 2022): the other weights of a filter compensate the error of rounding
one weight. This needs sample frames, preferably of the catalogue itself, and no labels. Weights have 7 of the 8 bits.
So the sum of two products fits in 16 bits, and processors with and without VNNI return the same vectors.
"""

from collections.abc import Mapping
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from raypipe.models.backbone import normalizing_network
from raypipe.models.backbones import Pixels
from raypipe.models.openvino_backbone import ExportedNetwork, Quantized, with_int8

_MAX_WEIGHT = 63
_BATCH_SIZE = 8
_INPUTS_PER_BATCH = 4000  # inputs of a layer that are sampled from each batch of frames
_DAMPING = 0.01
_BLOCK = 64  # weights that are rounded before the other weights of their group are updated; for speed alone
_GROUP = 1152  # weights of a filter that compensate each other: 128 channels; all together would take minutes
_TINY = 1e-9
# How many of the first layers to keep in float32: they are the most sensitive, and small. The inputs of the first one
# are not from a ReLU, and OpenVINO's kernels for such inputs differ between processors.
FLOAT_LAYERS = (1, 2, 3)


def quantize_layers(
    name: str, state_dict: Mapping[str, npt.NDArray[np.float32]], frames: Pixels
) -> dict[str, Quantized]:
    """Round the weights of every convolution, for the inputs that it gets from sample frames [N, crop, crop, 3].

    Return the layers by their names in PyTorch, from the first to the last.
    """
    network = normalizing_network(name, state_dict)
    layers = {key: each for key, each in network.named_modules() if isinstance(each, nn.Conv2d)}
    inputs = {key: LayerInputs(layer) for key, layer in layers.items()}
    with torch.inference_mode():
        for start in range(0, len(frames), _BATCH_SIZE):
            network(torch.tensor(frames[start : start + _BATCH_SIZE]))
        return {key.removeprefix("network."): inputs[key].quantize() for key in layers}


class LayerInputs:
    """The inputs of a convolution: their maximum and their second moments, collected in each pass of the network."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self._layer = layer
        self._highest = _TINY
        self._moments: list[torch.Tensor] = []  # of each group of weights
        self._random = torch.Generator().manual_seed(0)
        layer.register_forward_pre_hook(lambda _layer, given: self._add(given[0]))

    def _add(self, images: torch.Tensor) -> None:
        layer = self._layer
        self._highest = max(self._highest, images.max().item())
        if layer.groups > 1:  # the few weights of a group cannot compensate much
            return
        padding = cast("tuple[int, ...]", layer.padding)  # no backbone has padding by name
        patches = nn.functional.unfold(images, layer.kernel_size, layer.dilation, padding, layer.stride)
        rows = patches.transpose(1, 2).reshape(-1, patches.shape[1])
        rows = rows[torch.randperm(len(rows), generator=self._random)[:_INPUTS_PER_BATCH]]
        moments = [group.T @ group for group in torch.split(rows, _GROUP, dim=1)]
        before = self._moments or [torch.zeros_like(each) for each in moments]
        self._moments = [one + other for one, other in zip(before, moments, strict=True)]

    def quantize(self) -> Quantized:
        weights = self._layer.weight.reshape(len(self._layer.weight), -1).float()
        scale = weights.abs().amax(dim=1, keepdim=True).clamp(min=_TINY) / _MAX_WEIGHT
        if self._moments:
            groups = zip(torch.split(weights, _GROUP, dim=1), self._moments, strict=True)
            rounded = torch.cat([_round_with_compensation(some, scale, each) for some, each in groups], dim=1)
        else:
            rounded = _round(weights, scale)
        return Quantized(rounded.to(torch.int8).numpy(), scale[:, 0].numpy(), self._highest)


def _round(weights: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (weights / scale).round().clamp(-_MAX_WEIGHT, _MAX_WEIGHT)


def _round_with_compensation(weights: torch.Tensor, scale: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """Divide weights [O, K] by ``scale`` [O, 1] and round them, given the second moments [K, K] of their inputs."""
    weights, rounded = weights.clone(), torch.empty_like(weights)
    damped = moments + torch.eye(len(moments)) * (_DAMPING * moments.diagonal().mean() + _TINY)
    # The upper Cholesky factor of the inverse, from the Cholesky factor of the matrix in reverse order.
    reverse = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
    factor = torch.linalg.solve_triangular(reverse, torch.eye(len(moments)), upper=True)
    for start in range(0, weights.shape[1], _BLOCK):
        stop = min(start + _BLOCK, weights.shape[1])
        errors = torch.empty(len(weights), stop - start)
        for at in range(start, stop):
            column = weights[:, at : at + 1]
            rounded[:, at : at + 1] = _round(column, scale)
            error = (column - scale * rounded[:, at : at + 1]) / factor[at, at]
            weights[:, at + 1 : stop] -= error * factor[at, at + 1 : stop]
            errors[:, at - start : at - start + 1] = error
        weights[:, stop:] -= errors @ factor[start:stop, stop:]
    return rounded


def with_float_layers(exported: ExportedNetwork, layers: Mapping[str, Quantized], count: int) -> ExportedNetwork:
    """Return a network with all convolutions in int8 except the first ``count``."""
    return with_int8(exported, dict(list(layers.items())[count:]))
