"""Choose the blocks and the heads of a GPT-2 that a model can do without. Ray is not used here.

``cost`` measures the model, such as by its validation loss. It is called after each change of the GPT-2 inside it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn
from transformers import GPT2Model

from raypipe.models.pruning import blocks, keep_blocks, keep_heads, num_heads

Cost = Callable[[], float]
Head = tuple[int, int]  # the number of a block, and of a head in it


def prune_blocks(gpt2: GPT2Model, num_blocks: int, cost: Cost) -> None:
    """Remove blocks one by one, each time the one whose removal costs least, until ``num_blocks`` are left."""
    while len(gpt2.h) > num_blocks:
        costs = []
        for number in range(len(gpt2.h)):
            with _without_block(gpt2, number):
                costs.append(cost())
        least = costs.index(min(costs))
        keep_blocks(gpt2, [number for number in range(len(gpt2.h)) if number != least])


@contextmanager
def _without_block(gpt2: GPT2Model, number: int) -> Iterator[None]:
    every = gpt2.h
    gpt2.h = nn.ModuleList(block for at, block in enumerate(every) if at != number)
    try:
        yield
    finally:
        gpt2.h = every


def prune_heads(gpt2: GPT2Model, cost: Cost, *, tolerance: float) -> None:
    """Remove as many heads as possible while the cost rises by at most ``tolerance``. Each block keeps one.

    Heads are removed in the order of what the removal of each alone costs (Michel et al. 2019, arXiv:1905.10650).
    """
    whole = cost()
    costs: dict[Head, float] = {}
    for head in [(block, head) for block, count in enumerate(num_heads(gpt2)) for head in range(count)]:
        with _without_heads(gpt2, [head]):
            costs[head] = cost()
    order = _removable(sorted(costs, key=lambda head: costs[head]))
    fits, too_many = 0, len(order) + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        with _without_heads(gpt2, order[:middle]):
            is_fine = cost() <= whole + tolerance
        fits, too_many = (middle, too_many) if is_fine else (fits, middle)
    removed = set(order[:fits])
    counts = enumerate(num_heads(gpt2))
    keep_heads(gpt2, [[head for head in range(count) if (block, head) not in removed] for block, count in counts])


def _removable(order: list[Head]) -> list[Head]:
    """Return the heads in the same order, without the last one of each block."""
    last = dict(order)
    return [(block, head) for block, head in order if last[block] != head]


@contextmanager
@torch.no_grad()
def _without_heads(gpt2: GPT2Model, heads: list[Head]) -> Iterator[None]:
    """Ignore the outputs of some heads during the ``with`` block."""
    before = [block.attn.c_proj.weight.clone() for block in blocks(gpt2)]
    for block, head in heads:
        attention = blocks(gpt2)[block].attn
        attention.c_proj.weight[head * attention.head_dim : (head + 1) * attention.head_dim] = 0
    try:
        yield
    finally:
        for whole, weight in zip(blocks(gpt2), before, strict=True):
            whole.attn.c_proj.weight.copy_(weight)


def block_levels(wanted: Literal["auto"] | Sequence[int], *, num_blocks: int) -> list[int]:
    """Return the numbers of blocks to try, in falling order. ``auto`` halves the number until one is left."""
    if wanted != "auto":
        return sorted({count for count in wanted if count < num_blocks}, reverse=True)
    levels = []
    while num_blocks > 1:
        num_blocks //= 2
        levels.append(num_blocks)
    return levels
