"""Load a GPT-2 from sizes, a folder or the hub, completely or not at all."""

import json
import shutil
import socket
from pathlib import Path

import huggingface_hub.constants
import pytest
import safetensors.torch
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from raypipe.config import ClassifierConfig, Gpt2Size
from raypipe.errors import ConfigError, WeightsError
from raypipe.jobs.train.run_spec import NetworkSpec, build
from raypipe.models.classifier import VideoClassifier
from raypipe.models.gpt2 import HUB_NAMES, resolve_gpt2
from support.tiny_models import random_videos, tiny_classifier, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Save a GPT-2 with random weights and its vocabulary, as ``save_pretrained`` does."""
    torch.manual_seed(1)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=12, vocab_size=7, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


@pytest.fixture
def nano(assets: Path) -> Path:
    """Return the folder of a trained GPT-2."""
    folder = assets / "weights" / "gpt2_nano_sort"
    if not folder.is_dir():
        pytest.skip(f"no trained GPT-2 at {folder}")
    return folder


@pytest.fixture
def unreachable_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the hub client to a closed port and an empty cache; return the cache."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cache = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def built(gpt2: str, *, max_frames: int = 11) -> VideoClassifier:
    """Return the classifier that a training starts from."""
    found = resolve_gpt2(gpt2)
    config = tiny_config(names=["a", "b"], gpt2=dict(found.config), max_frames=max_frames)
    made = build(NetworkSpec(config, ClassifierConfig(gpt2=gpt2), objective="classify", gpt2=found), seed=0)
    assert isinstance(made, VideoClassifier)
    return made


def problem(gpt2: str | Path) -> WeightsError:
    """Return the error of a GPT-2 that cannot be loaded: one line that names it."""
    with pytest.raises(WeightsError) as caught:
        resolve_gpt2(str(gpt2))
    error = caught.value
    assert str(error).isprintable()
    assert (error.key, error.value) == ("model.gpt2", str(gpt2))
    assert repr(str(gpt2)) in str(error)
    return error


def test_sizes_have_no_weights() -> None:
    found = resolve_gpt2(Gpt2Size(n_layer=3, n_head=2, n_embd=8))
    assert (dict(found.config), dict(found.weights)) == ({"n_layer": 3, "n_head": 2, "n_embd": 8}, {})
    assert found.max_frames is None


def test_a_folder_gives_every_weight_but_those_of_words(saved: Path) -> None:
    found = resolve_gpt2(str(saved))
    stored = safetensors.torch.load_file(saved / "model.safetensors")
    expected = {key.removeprefix("transformer."): tensor for key, tensor in stored.items() if "wte" not in key}
    expected.pop("lm_head.weight", None)
    assert found.weights.keys() == expected.keys()
    assert all(torch.equal(found.weights[key], tensor) for key, tensor in expected.items())
    assert (found.max_frames, found.config["n_layer"]) == (12, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_are_widened(saved: Path, dtype: torch.dtype) -> None:
    whole = resolve_gpt2(str(saved)).weights
    GPT2LMHeadModel.from_pretrained(saved).to(dtype).save_pretrained(saved)
    found = resolve_gpt2(str(saved)).weights
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert all(torch.equal(found[key], tensor.to(dtype).float()) for key, tensor in whole.items())


def test_the_weights_of_a_trained_gpt2_arrive_in_the_classifier(nano: Path) -> None:
    model = built(str(nano))
    original = GPT2Model.from_pretrained(nano)
    original.eval()
    model.eval()
    states = torch.randn(1, 11, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = original(inputs_embeds=states).last_hidden_state
        torch.testing.assert_close(model.encoder.gpt2(inputs_embeds=states).last_hidden_state, expected)
    assert model.classify(random_videos([3, 40])).probabilities.shape == (2, 2)


def test_a_tilde_is_the_home_folder(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(saved.parent))
    assert resolve_gpt2("~/gpt2").weights


def test_an_unknown_name_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_gpt2("gpt5")
    error = caught.value
    assert (error.key, error.value, error.choices) == ("model.gpt2", "gpt5", HUB_NAMES)
    assert "n_layer: 2" in error.remedy


def test_a_hub_that_cannot_be_reached_is_one_line_that_says_what_to_do(unreachable_hub: Path) -> None:
    error = problem("gpt2-medium")
    assert "Connection refused" in str(error)
    assert "model.gpt2" in error.remedy
    assert "n_layer: 2" in error.remedy
    assert not list(unreachable_hub.rglob("*.safetensors"))


def test_a_cached_download_is_used_if_the_hub_is_unreachable(unreachable_hub: Path, saved: Path) -> None:
    model, commit = unreachable_hub / "models--gpt2", "0" * 40
    shutil.copytree(saved, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    found = resolve_gpt2("gpt2").weights
    assert all(torch.equal(found[key], tensor) for key, tensor in resolve_gpt2(str(saved)).weights.items())


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    remedy = problem(tmp_path).remedy
    assert all(token in remedy for token in ("save_pretrained", "config.json", "model.safetensors"))


def test_pickled_weights_are_not_read(saved: Path) -> None:
    torch.save(safetensors.torch.load_file(saved / "model.safetensors"), saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    assert "save_pretrained" in problem(saved).remedy


def test_a_file_that_is_cut_short_is_refused(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "save_pretrained" in problem(saved).remedy


def test_weights_that_are_missing_do_not_begin_at_random(saved: Path) -> None:
    weights = saved / "model.safetensors"
    stored = safetensors.torch.load_file(weights)
    kept = {key: tensor for key, tensor in stored.items() if ".h.1.mlp." not in key}
    safetensors.torch.save_file(kept, weights, metadata={"format": "pt"})
    said = str(problem(saved)).replace(str(saved), "")
    assert "'h.1.mlp.c_fc.bias'" in said
    assert "4" in said.split()


def test_another_model_is_refused(tmp_path: Path) -> None:
    tiny_classifier().save_pretrained(tmp_path)
    assert "save_pretrained" in problem(tmp_path).remedy


def test_sizes_that_do_not_fit_the_weights_are_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "n_embd": 32}))
    assert "save_pretrained" in problem(saved).remedy
