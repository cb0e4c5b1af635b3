"""Int8 layers compute nearly what float32 layers compute, each row on its own, and files hold them exactly."""

import copy
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from raypipe.models import int8
from raypipe.models.classifier import VideoClassifier
from raypipe.models.int8 import Int8Embedding, Int8Linear, quantize
from raypipe.models.pruning import num_heads
from support.tiny_models import random_videos, tiny_classifier

KERNELS = pytest.mark.parametrize("kernel", [False, True], ids=["float32", "int8"])


def layer_of(num_inputs: int, num_outputs: int, *, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    layer = nn.Linear(num_inputs, num_outputs)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(num_outputs, 1) * 10)  # outputs of different sizes
    return layer


def use_kernel(monkeypatch: pytest.MonkeyPatch, *, kernel: bool) -> None:
    if kernel and not int8.has_kernel():
        pytest.skip("this machine has no int8 kernel")
    monkeypatch.setattr(int8, "_MIN_FAST_WEIGHTS", 0 if kernel else 10**9)


@given(
    num_inputs=st.integers(1, 70), num_outputs=st.integers(1, 40), seed=st.integers(0, 99), size=st.floats(1e-3, 1e3)
)
@pytest.mark.parametrize("fast", [0, 10**9], ids=["int8", "float32"])
def test_the_error_is_that_of_rounding(fast: int, num_inputs: int, num_outputs: int, seed: int, size: float) -> None:
    layer = layer_of(num_inputs, num_outputs, seed=seed)
    rows = size * torch.randn(5, num_inputs)
    small = Int8Linear.of(layer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "_MIN_FAST_WEIGHTS", fast)
        found = small(rows)
    largest = rows.abs().amax(dim=1, keepdim=True)
    half_weight = small.scale / 2  # weights are at most this far off
    half_row = largest / 63 / 2 * (1.0 if fast == 0 else 0.0)
    bound = rows.abs().sum(dim=1, keepdim=True) * half_weight + half_row * layer.weight.abs().sum(dim=1)
    bound = bound + num_inputs * half_weight * half_row
    assert ((found - layer(rows)).abs() <= bound * 1.001 + 1e-4 * size).all()


@KERNELS
def test_a_row_does_not_depend_on_others(monkeypatch: pytest.MonkeyPatch, *, kernel: bool) -> None:
    use_kernel(monkeypatch, kernel=kernel)
    small = Int8Linear.of(layer_of(33, 20))
    rows = torch.randn(6, 33) * torch.tensor([1.0, 1e3, 1e-3, 0.0, 1.0, 50.0])[:, None]
    alone = torch.cat([small(row[None]) for row in rows])
    torch.testing.assert_close(small(rows), alone, rtol=1e-5, atol=1e-6)
    assert torch.equal(small(rows)[3], small.bias)
    torch.testing.assert_close(small(rows.reshape(2, 3, 33)).reshape(6, 20), alone, rtol=1e-5, atol=1e-6)


def test_both_kinds_of_linear_layers_are_replaced() -> None:
    conv = Conv1D(6, 4)
    linear = nn.Linear(4, 6)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.T)
        linear.bias.copy_(conv.bias)
    both = nn.ModuleDict({"conv": conv, "linear": linear, "inner": nn.Sequential(nn.Linear(2, 2))})
    quantize(both)
    rows = torch.randn(3, 4)
    assert torch.equal(both["conv"](rows), both["linear"](rows))
    assert isinstance(both["inner"][0], Int8Linear)


def test_a_layer_of_zeros_gives_its_bias() -> None:
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    assert torch.equal(Int8Linear.of(layer)(torch.randn(4, 3)), layer.bias.detach().expand(4, 2))


def test_an_embedding_is_rounded_by_row() -> None:
    embedding = nn.Embedding(5, 8)
    with torch.no_grad():
        embedding.weight[0] = 0
        embedding.weight[2] *= 1e3
    small = Int8Embedding.of(embedding)
    rows = torch.tensor([[0, 1], [2, 4]])
    wanted = embedding(rows)
    assert ((small(rows) - wanted).abs() <= wanted.abs().amax(dim=-1, keepdim=True) / 254 * 1.001).all()
    assert torch.equal(small(torch.tensor([0])), torch.zeros(1, 8))


@KERNELS
def test_a_saved_classifier_gives_the_same_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, kernel: bool
) -> None:
    use_kernel(monkeypatch, kernel=kernel)
    model, videos = tiny_classifier(), random_videos([1, 5, 9, 16])
    whole = model.classify(videos).probabilities
    quantize(model.encoder)
    model.config.int8 = True
    before = model.classify(videos).probabilities
    np.testing.assert_allclose(before, whole, atol=0.05)
    assert not np.array_equal(before, whole)
    model.save_pretrained(tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert stored["encoder.gpt2.h.0.attn.c_attn.weight"].dtype == torch.int8
    loaded = VideoClassifier.from_pretrained(tmp_path)
    assert np.array_equal(loaded.classify(videos).probabilities, before)
    assert np.array_equal(copy.deepcopy(loaded).classify(videos).probabilities, before)
    assert all(torch.equal(stored[name], tensor) for name, tensor in loaded.state_dict().items())


def test_new_weights_replace_packed_ones() -> None:
    layers = [Int8Linear.of(layer_of(16, 8, seed=seed)) for seed in range(2)]
    rows = torch.randn(2, 16)
    wanted = [layer(rows) for layer in layers]
    layers[0].load_state_dict(layers[1].state_dict())
    assert torch.equal(layers[0](rows), wanted[1])
    assert not torch.equal(wanted[0], wanted[1])


def test_an_old_configuration_has_float32_weights_and_all_heads() -> None:
    model = tiny_classifier()
    assert (model.config.int8, model.config.gpt2_heads) == (False, None)
    assert num_heads(model.encoder.gpt2) == [2, 2]
