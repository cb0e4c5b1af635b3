"""Linear layers with int8 weights: a quarter of the bytes of float32 and, on CPUs with a fast kernel, less time.

Weights are rounded per output, inputs per row while the layer runs ("dynamic quantization"). Because each row has its
own scale, the output for a video does not depend on the other videos in its batch.
"""

import platform
from typing import Any, cast

import torch
from torch import nn

from raypipe.models.weights import prepare_torchvision

prepare_torchvision()  # transformers imports torchvision if it is installed

from transformers.pytorch_utils import Conv1D  # noqa: E402

_MAX_WEIGHT, _MAX_INPUT = 127, 63  # 7 bits for inputs: without VNNI, the kernel adds two products in 16 bits
_INPUT_ZERO = 64
_MIN_FAST_WEIGHTS = 2**18  # with fewer, torch's float32 kernel is at least as fast
_TINY = 1e-30
_X86 = {"x86_64", "AMD64"}


class Int8Linear(nn.Module):
    """A linear layer with int8 weights ``[N, K]``, a scale for each output ``[N]``, and a float32 bias ``[N]``.

    A small layer, and a layer on a device without an int8 kernel, multiplies by the same weights in float32.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_outputs, num_inputs, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(num_outputs))
        self.register_buffer("bias", torch.zeros(num_outputs))
        self._prepared: Any = None  # packed weights, or float32 weights; made by the first call

    @classmethod
    def of(cls, layer: nn.Linear | Conv1D) -> "Int8Linear":
        """Return the layer with rounded weights."""
        weight = layer.weight.detach().float()
        if isinstance(layer, Conv1D):
            weight = weight.T
        made = cls(weight.shape[1], weight.shape[0])
        rounded, scale = round_rows(weight)
        made.weight.copy_(rounded)
        made.scale.copy_(scale)
        if layer.bias is not None:
            made.bias.copy_(layer.bias.detach())
        return made

    def dequantized(self) -> torch.Tensor:
        """Return the weights ``[N, K]`` in float32."""
        return self.weight.float() * self.scale[:, None]

    @property
    def is_fast(self) -> bool:
        """Whether the layer runs an int8 kernel."""
        return self.weight.device.type == "cpu" and has_kernel() and self.weight.numel() >= _MIN_FAST_WEIGHTS

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the outputs ``[..., N]`` for inputs ``[..., K]``. There is no gradient."""
        is_fast = self.is_fast
        if self._prepared is None:
            self._prepared = self._pack() if is_fast else self.dequantized()
        if not is_fast:
            return nn.functional.linear(rows, self._prepared.to(rows.dtype), self.bias.to(rows.dtype))
        numbers = rows.detach().float()
        size = numbers.abs().amax(dim=-1, keepdim=True).clamp(min=_TINY)
        rounded = (numbers * (_MAX_INPUT / size)).round_().add_(_INPUT_ZERO).to(torch.uint8)
        packed, zeros = self._prepared
        products = torch.ops.onednn.qlinear_pointwise(
            *(rounded, 1 / _MAX_INPUT, _INPUT_ZERO, packed, self.scale, zeros, None),
            *(1.0, 0, torch.float32, "none", [], ""),  # the scale and the type of the output; nothing after it
        )
        return torch.addcmul(self.bias, products, size).to(rows.dtype)

    def _pack(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights in the layout of the kernel, and the zero points of the outputs."""
        zeros = torch.zeros(len(self.scale), dtype=torch.int32)
        return torch.ops.onednn.qlinear_prepack(self.weight, None), zeros

    def _apply(self, *arguments: Any, **options: Any) -> "Int8Linear":  # noqa: ANN401 - torch's own signature
        self._prepared = None  # the layer may move to another device
        return cast("Int8Linear", super()._apply(*arguments, **options))  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - torch's own signature
        self._prepared = None
        super()._load_from_state_dict(*arguments, **options)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without packed weights, which copies make again."""
        return {**self.__dict__, "_prepared": None}


def round_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int8 numbers for a matrix ``[N, K]``, and the scale ``[N]`` of each row."""
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=1).clamp(min=_TINY) / _MAX_WEIGHT
    return (weight / scale[:, None]).round().clamp(-_MAX_WEIGHT, _MAX_WEIGHT).to(torch.int8), scale


def num_weights(module: nn.Module) -> int:
    """Return the number of weights, without the scales of int8 ones."""
    return sum(tensor.numel() for key, tensor in module.state_dict().items() if not key.endswith(".scale"))


def has_kernel() -> bool:
    """Return whether this machine has an int8 kernel that is worth calling."""
    return platform.machine() in _X86 and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def quantize(module: nn.Module) -> None:
    """Replace all linear layers and embeddings in a module by int8 ones with the same weights, rounded.

    The embedding of positions keeps its type: GPT-2 takes its numbers' type for that of the model.
    """
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear | Conv1D):
            setattr(module, name, Int8Linear.of(child))
        elif isinstance(child, nn.Embedding) and name != "wpe":
            setattr(module, name, Int8Embedding.of(child))
        else:
            quantize(child)


class Int8Embedding(nn.Module):
    """An embedding with int8 numbers ``[N, d]`` and a scale for each row ``[N]``."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, num_rows: int, size: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_rows, size, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(num_rows))

    @classmethod
    def of(cls, embedding: nn.Embedding) -> "Int8Embedding":
        """Return the embedding with rounded numbers."""
        made = cls(*embedding.weight.shape)
        rounded, scale = round_rows(embedding.weight)
        made.weight.copy_(rounded)
        made.scale.copy_(scale)
        return made

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the vectors of some rows, ``[..., d]``."""
        return self.weight[rows].float() * self.scale[rows][..., None]
