"""The OpenVINO engine: the same vectors as PyTorch, no import of PyTorch, no telemetry."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from raypipe.errors import ConfigError
from raypipe.models import backbones
from raypipe.models.backbones import resolve_engine
from raypipe.models.engines import load_embedder
from raypipe.models.openvino_backbone import OpenVinoBackbone, export
from raypipe.models.weights import resolve_weights

Frames = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def frames() -> Frames:
    """Return noise with a colour and a coarseness of its own in each of 9 frames."""
    random = np.random.default_rng(3)
    cells = [
        random.integers(0, 256, (224 // size, 224 // size, 3), np.uint8) for size in (2, 4, 7, 8, 14, 16, 28, 32, 56)
    ]
    return np.stack([each.repeat(224 // len(each), axis=0).repeat(224 // len(each), axis=1) for each in cells])


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg11"])
def test_both_engines_return_the_same_vectors(name: str, frames: Frames) -> None:
    weights = resolve_weights(name, "random", read_bytes=Path.read_bytes)
    one, other = (
        load_embedder(name, lambda: weights.state_dict, engine=engine).embed(frames) for engine in ("torch", "openvino")
    )
    assert one.shape == other.shape
    assert other.dtype == np.float32
    np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4 * float(np.abs(one).max()))


def test_any_number_of_frames(frames: Frames) -> None:
    weights = resolve_weights("resnet18", "random", read_bytes=Path.read_bytes)
    network = OpenVinoBackbone(export("resnet18", weights.state_dict), name="resnet18", dtype="float32", num_threads=1)
    assert network.embed(frames[:0]).shape == (0, 512)
    alone = np.concatenate([network.embed(frames[at : at + 1]) for at in range(len(frames))])
    np.testing.assert_allclose(network.embed(frames), alone, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="uint8"):
        network.embed(frames.astype(np.float32))  # type: ignore[arg-type]


def test_auto_is_the_engine_that_this_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_engine("auto", "cpu", "float32") == "openvino"
    assert resolve_engine("torch", "cpu", "float32") == "torch"
    assert resolve_engine("auto", "cuda", "float32") == "torch"
    with pytest.raises(ConfigError, match="not on cuda"):
        resolve_engine("openvino", "cuda", "float32")
    monkeypatch.setattr(backbones, "cpu_flags", lambda: frozenset({"avx2"}))
    assert resolve_engine("auto", "cpu", "bfloat16") == "torch"
    with pytest.raises(ConfigError, match="bfloat16"):
        resolve_engine("openvino", "cpu", "bfloat16")
    monkeypatch.setattr(backbones, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    assert resolve_engine("auto", "cpu", "bfloat16") == "openvino"
    monkeypatch.setattr(backbones.importlib.util, "find_spec", lambda _name: None)
    assert resolve_engine("auto", "cpu", "float32") == "torch"
    with pytest.raises(ConfigError, match="not installed") as raised:
        resolve_engine("openvino", "cpu", "float32")
    assert raised.value.remedy == "Install raypipe[openvino]."


def test_an_actor_imports_neither_torch_nor_telemetry() -> None:
    code = """
import pickle, sys
from raypipe.models.engines import load_embedder
exported = pickle.load(sys.stdin.buffer)
load_embedder("resnet18", lambda: {}, lambda: exported, engine="openvino")
print("torch" in sys.modules, sys.modules["openvino_telemetry"])
"""
    weights = resolve_weights("resnet18", "random", read_bytes=Path.read_bytes)
    given = pickle.dumps(export("resnet18", weights.state_dict))
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, check=True)
    assert done.stdout.decode().split() == ["False", "None"]
