"""The blocks and heads that cost least are removed first."""

from collections.abc import Callable

import pytest
import torch
from transformers import GPT2Model

from raypipe.jobs.compress.shrinking import block_levels, prune_blocks, prune_heads
from raypipe.models.pruning import blocks, num_heads
from support.tiny_models import tiny_classifier


@pytest.fixture
def gpt2() -> GPT2Model:
    return tiny_classifier(gpt2={"n_layer": 4, "n_head": 4, "n_embd": 16}).encoder.gpt2


def drift(gpt2: GPT2Model) -> Callable[[], float]:
    """Return the distance of the outputs for some inputs from what they are now."""
    inputs = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def states() -> torch.Tensor:
        found: torch.Tensor = gpt2(inputs_embeds=inputs).last_hidden_state
        return found

    whole = states()
    return lambda: float((states() - whole).square().mean())


def silence(gpt2: GPT2Model, block: int, *, heads: tuple[int, ...] | None = None) -> None:
    """Make a block, or only some of its heads, useless."""
    found = blocks(gpt2)[block]
    with torch.no_grad():
        if heads is None:
            for layer in (found.attn.c_proj, found.mlp.c_proj):
                layer.weight.zero_()
                layer.bias.zero_()
        for head in heads or ():
            found.attn.c_proj.weight[head * 4 : head * 4 + 4] = 0


def test_useless_blocks_are_removed(gpt2: GPT2Model) -> None:
    every = blocks(gpt2)
    for number in (0, 2):
        silence(gpt2, number)
    cost = drift(gpt2)
    prune_blocks(gpt2, 2, cost)
    assert blocks(gpt2) == [every[1], every[3]]
    assert cost() == 0
    prune_blocks(gpt2, 1, cost)
    assert len(gpt2.h) == gpt2.config.n_layer == 1
    assert cost() > 0


def test_useless_heads_are_removed_and_each_block_keeps_one(gpt2: GPT2Model) -> None:
    silence(gpt2, 0, heads=(1, 3))
    silence(gpt2, 2, heads=(0, 1, 2, 3))
    cost = drift(gpt2)
    prune_heads(gpt2, cost, tolerance=1e-9)
    assert num_heads(gpt2) == [2, 4, 1, 4]
    assert cost() < 1e-9
    prune_heads(gpt2, cost, tolerance=1e9)
    assert num_heads(gpt2) == [1, 1, 1, 1]


def test_nothing_is_changed_while_looking(gpt2: GPT2Model) -> None:
    before = {name: tensor.clone() for name, tensor in gpt2.state_dict().items()}
    prune_heads(gpt2, drift(gpt2), tolerance=-1.0)
    prune_blocks(gpt2, 4, drift(gpt2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in gpt2.state_dict().items())


def test_levels_halve_the_number_of_blocks() -> None:
    assert block_levels("auto", num_blocks=12) == [6, 3, 1]
    assert block_levels("auto", num_blocks=1) == []
    assert block_levels([1, 8, 4, 4, 12], num_blocks=8) == [4, 1]
