"""Remove whole blocks and attention heads of a GPT-2. A pruned GPT-2 has its own number of heads in each block."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from raypipe.models.weights import prepare_torchvision

prepare_torchvision()  # transformers imports torchvision if it is installed

from transformers import GPT2Model  # noqa: E402
from transformers.pytorch_utils import Conv1D  # noqa: E402


def shape_heads(gpt2: GPT2Model, heads: Sequence[int]) -> None:
    """Give a new GPT-2 the shapes of a pruned one. ``heads`` are the numbers of heads of its blocks.

    Raises:
        ValueError: the numbers do not fit the model.
    """
    limit = gpt2.config.n_head
    if len(heads) != len(gpt2.h) or not all(1 <= count <= limit for count in heads):
        msg = f"gpt2_heads is {heads}, not {len(gpt2.h)} numbers from 1 to {limit}."
        raise ValueError(msg)
    keep_heads(gpt2, [range(count) for count in heads])


def keep_blocks(gpt2: GPT2Model, kept: Sequence[int]) -> None:
    """Remove all blocks but those with these numbers."""
    gpt2.h = nn.ModuleList([gpt2.h[number] for number in kept])
    gpt2.config.n_layer = len(kept)
    for number, block in enumerate(blocks(gpt2)):
        block.attn.layer_idx = number


@torch.no_grad()
def keep_heads(gpt2: GPT2Model, kept: Sequence[Sequence[int]]) -> None:
    """Remove all heads but those with these numbers, for each block."""
    for block, numbers in zip(blocks(gpt2), kept, strict=True):
        attention = block.attn
        if len(numbers) == attention.num_heads:
            continue
        size = attention.head_dim
        columns = torch.cat([torch.arange(number * size, (number + 1) * size) for number in numbers])
        parts = [columns + part * attention.split_size for part in range(3)]  # queries, keys, values
        attention.c_attn = _columns(attention.c_attn, torch.cat(parts))
        attention.c_proj = _rows(attention.c_proj, columns)
        attention.num_heads, attention.split_size = len(numbers), len(columns)


def blocks(gpt2: GPT2Model) -> list[Any]:
    """Return the blocks, whose parts transformers does not type."""
    return list(gpt2.h)


def num_heads(gpt2: GPT2Model) -> list[int]:
    """Return the number of heads of each block."""
    return [int(block.attn.num_heads) for block in blocks(gpt2)]


def _columns(layer: Conv1D, columns: torch.Tensor) -> Conv1D:
    made = Conv1D(len(columns), layer.weight.shape[0])
    made.weight.copy_(layer.weight[:, columns])
    made.bias.copy_(layer.bias[columns])
    return made


def _rows(layer: Conv1D, rows: torch.Tensor) -> Conv1D:
    made = Conv1D(layer.nf, len(rows))
    made.weight.copy_(layer.weight[rows])
    made.bias.copy_(layer.bias)
    return made
