"""Pruning removes exactly what it says, and a pruned model is stored and loaded like any other."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from raypipe.models.classifier import VideoClassifier, VideoClassifierConfig
from raypipe.models.pruning import blocks, keep_blocks, keep_heads, num_heads
from support.tiny_models import random_videos, tiny_classifier, tiny_config

VIDEOS = random_videos([1, 4, 7])


def without_outputs(model: VideoClassifier, block: int, head: int) -> VideoClassifier:
    """Return a copy in which the outputs of a head are not used."""
    copied = copy.deepcopy(model)
    attention = blocks(copied.encoder.gpt2)[block].attn
    with torch.no_grad():
        attention.c_proj.weight[head * attention.head_dim : (head + 1) * attention.head_dim] = 0
    return copied


@pytest.mark.parametrize(("block", "head"), [(0, 0), (0, 1), (1, 1)])
def test_a_removed_head_is_one_whose_outputs_are_zero(block: int, head: int) -> None:
    model = tiny_classifier()
    wanted = without_outputs(model, block, head).classify(VIDEOS).probabilities
    kept = [[0, 1], [0, 1]]
    kept[block] = [1 - head]
    keep_heads(model.encoder.gpt2, kept)
    np.testing.assert_allclose(model.classify(VIDEOS).probabilities, wanted, rtol=1e-5)
    assert num_heads(model.encoder.gpt2) == [len(heads) for heads in kept]


def test_a_block_that_adds_nothing_can_be_removed() -> None:
    model = tiny_classifier()
    first = blocks(model.encoder.gpt2)[0]
    with torch.no_grad():
        for layer in (first.attn.c_proj, first.mlp.c_proj):
            layer.weight.zero_()
            layer.bias.zero_()
    wanted = model.classify(VIDEOS).probabilities
    keep_blocks(model.encoder.gpt2, [1])
    assert np.array_equal(model.classify(VIDEOS).probabilities, wanted)
    assert (model.encoder.gpt2.config.n_layer, model.encoder.gpt2.h[0].attn.layer_idx) == (1, 0)


def test_a_pruned_model_is_stored_and_loaded(tmp_path: Path) -> None:
    model = tiny_classifier(gpt2={"n_layer": 3, "n_head": 4, "n_embd": 16})
    keep_blocks(model.encoder.gpt2, [0, 2])
    keep_heads(model.encoder.gpt2, [[3], [0, 1, 2, 3]])
    model.config.gpt2_heads = num_heads(model.encoder.gpt2)
    model.save_pretrained(tmp_path)
    loaded = VideoClassifier.from_pretrained(tmp_path)
    assert np.array_equal(loaded.classify(VIDEOS).probabilities, model.classify(VIDEOS).probabilities)
    assert num_heads(loaded.encoder.gpt2) == [1, 4]


@pytest.mark.parametrize("heads", [[1], [2, 0], [3, 1], [1, 1, 1]])
def test_heads_that_do_not_fit_are_refused(heads: list[int]) -> None:
    config: VideoClassifierConfig = tiny_config(gpt2_heads=heads)
    with pytest.raises(ValueError, match="gpt2_heads"):
        VideoClassifier(config)
