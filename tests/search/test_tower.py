"""The ranker in numpy equals the one in transformers, and its files are checked."""

from pathlib import Path

import numpy as np
import pytest
import torch

from raypipe.errors import IndexVersionError
from raypipe.models.next_video import NextVideoConfig, NextVideoModel
from raypipe.search.tower import TowerWeights


def make_model(n_layer: int, *, seed: int = 0) -> NextVideoModel:
    """Return a model with random weights, larger than those at the start of a training."""
    torch.manual_seed(seed)
    config = NextVideoConfig(num_ids=30, content_dim=5, n_embd=16, n_layer=n_layer, n_head=2, max_events=12)
    model = NextVideoModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def weights_of(model: NextVideoModel) -> TowerWeights:
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items() if name != "ids.weight"}
    names = ("n_layer", "n_head", "n_embd", "max_events")
    about = {name: getattr(model.config, name) for name in names}
    return TowerWeights(tensors, {**about, "scale": float(model.scale.detach())})


@pytest.mark.parametrize("n_layer", [1, 2])
@pytest.mark.parametrize("length", [1, 2, 7, 12])
def test_the_state_equals_that_of_transformers(n_layer: int, length: int) -> None:
    model = make_model(n_layer, seed=length)
    content = torch.randn(length, 5)
    with torch.no_grad():
        vectors = model.vectors(torch.arange(1, length + 1), content)
        expected = model.states(vectors[None], torch.ones(1, length, dtype=torch.long))[0, -1].numpy()
    state = weights_of(model).last_state(vectors.numpy())
    np.testing.assert_allclose(state / np.linalg.norm(state), expected, atol=1e-5)


def test_weights_are_the_same_after_saving(tmp_path: Path) -> None:
    weights, path = weights_of(make_model(2)), tmp_path / "ranker.safetensors"
    weights.save(path)
    loaded, inputs = TowerWeights.load(path), np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
    assert loaded.about == weights.about
    assert np.array_equal(loaded.last_state(inputs), weights.last_state(inputs))


@pytest.mark.parametrize("damage", ["truncated", "lacks a tensor", "other sizes"])
def test_damaged_weights_are_refused(tmp_path: Path, damage: str) -> None:
    weights, path = weights_of(make_model(1)), tmp_path / "ranker.safetensors"
    if damage == "lacks a tensor":
        del weights.tensors["gpt2.ln_f.weight"]
    elif damage == "other sizes":
        weights.about["n_embd"] = 8
    weights.save(path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(IndexVersionError) as raised:
        TowerWeights.load(path)
    assert raised.value.key == str(path)
