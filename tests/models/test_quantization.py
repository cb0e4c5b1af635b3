"""int8 networks: compensated rounding, agreement with float32, and the file."""

import hashlib
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raypipe import schema
from raypipe.errors import WeightsError
from raypipe.models.int8_files import Agreement, Int8Facts, int8_file, open_int8_file, read_int8_file
from raypipe.models.openvino_backbone import OpenVinoBackbone, export
from raypipe.models.quantization import LayerInputs, quantize_layers, with_float_layers
from raypipe.models.weights import resolve_weights
from raypipe.storage import Folder


@given(seed=st.integers(0, 2**31), groups=st.sampled_from([1, 2]))
def test_rounding_with_compensation_changes_the_outputs_less_than_rounding_alone(seed: int, groups: int) -> None:
    torch.manual_seed(seed)
    layer = nn.Conv2d(8, 6, 3, padding=1, groups=groups, bias=False).requires_grad_(False)  # noqa: FBT003 - torch's signature
    inputs = LayerInputs(layer)
    # Channels that depend on each other, as in a trained network: without any dependence, nothing can compensate.
    images = torch.einsum("nchw,cd->ndhw", torch.randn(4, 2, 9, 9), torch.randn(2, 8)).relu()
    exact = layer(images)
    found = inputs.quantize()
    assert found.highest == images.max().item()
    assert np.abs(found.weights).max() <= 63
    scale = torch.from_numpy(found.scale).reshape(-1, 1, 1, 1)
    shape = layer.weight.shape
    errors = []
    for rounded in (torch.from_numpy(found.weights).reshape(shape), (layer.weight / scale).round()):
        layer.weight = nn.Parameter(rounded * scale, requires_grad=False)
        errors.append((layer(images) - exact).square().mean().item())
    assert errors[0] < errors[1] if groups == 1 else errors[0] == pytest.approx(errors[1])


def test_an_int8_network_returns_almost_the_same_vectors() -> None:
    weights = resolve_weights("resnet18", "random", read_bytes=Path.read_bytes)
    random = np.random.default_rng(0)
    cells = random.integers(0, 256, (12, 7, 7, 3), np.uint8)
    frames = cells.repeat(32, axis=1).repeat(32, axis=2)
    exported = export("resnet18", weights.state_dict)
    layers = quantize_layers("resnet18", weights.state_dict, frames[:6])
    assert len(layers) == 20
    float_network = OpenVinoBackbone(exported, name="resnet18", dtype="float32")
    expected = float_network.embed(frames[6:])
    cosines = []
    for num_float_layers in (1, 2, 20):
        network = with_float_layers(exported, layers, num_float_layers)
        vectors = OpenVinoBackbone(network, name="resnet18", dtype="int8").embed(frames[6:])
        cosines.append(Agreement.of(vectors, expected, np.arange(7)).cosine_p01)
        constants = [node for node in network.model().get_ordered_ops() if node.get_type_name() == "Constant"]
        num_int8 = sum(node.get_element_type().get_type_name() == "i8" for node in constants)
        assert num_int8 == 20 - num_float_layers
        # float32 arithmetic on the same rounded numbers: no product or sum of this processor's int8 kernels overflows
        options = {"LP_TRANSFORMS_MODE": False, "INFERENCE_PRECISION_HINT": "f32"}
        emulated = openvino.Core().compile_model(network.model(), "CPU", options)([frames[6:]])[0]
        assert Agreement.of(vectors, emulated, np.arange(7)).cosine_p01 > 0.9999
    assert 0.99 < cosines[0] < cosines[1] < 1 - 1e-6
    assert cosines[2] == pytest.approx(1, abs=1e-6)


def test_agreement_counts_cosines_and_neighbors() -> None:
    random = np.random.default_rng(0)
    frames = random.standard_normal((40, 16)).astype(np.float32)
    stops = np.arange(0, 41, 2)
    assert Agreement.of(3 * frames, frames, stops) == Agreement(20, pytest.approx(1), pytest.approx(1), 1.0)
    assert Agreement.of(frames, frames, stops).is_enough
    swapped = frames.copy()
    swapped[:2] = -frames[:2]
    found = Agreement.of(swapped, frames, stops)
    assert (found.cosine_median, found.cosine_p01) == (pytest.approx(1), pytest.approx(-1))
    assert found.same_neighbor < 1
    assert not found.is_enough
    copies = np.concatenate([frames, frames, frames])  # which of two copies is nearer depends on rounding alone
    nearly = copies + random.standard_normal(copies.shape).astype(np.float32) * 1e-7
    assert Agreement.of(nearly, copies, np.arange(0, 121, 2)).same_neighbor == 1


@pytest.mark.parametrize(("median", "p01", "neighbor"), [(0.989, 0.95, 0.95), (0.99, 0.949, 0.95), (0.99, 0.95, 0.949)])
def test_each_limit_is_needed(median: float, p01: float, neighbor: float) -> None:
    assert not Agreement(100, median, p01, neighbor).is_enough
    assert Agreement(100, 0.99, 0.95, 0.95).is_enough


def test_the_file_returns_the_network_and_refuses_other_content(tmp_path: Path) -> None:
    weights = resolve_weights("resnet18", "random", read_bytes=Path.read_bytes)
    facts = Int8Facts("resnet18", weights.digest, 1, Agreement(3, 1.0, 0.99, 1.0))
    network = export("resnet18", weights.state_dict)
    data, folder = int8_file(network, facts), Folder(str(tmp_path))
    found = open_int8_file(data, uri="x")
    assert found.facts == facts
    assert found.network.structure == network.structure
    assert np.array_equal(found.network.weights, network.weights)
    assert found.digest == hashlib.sha256(data).hexdigest()
    with pytest.raises(WeightsError) as raised:
        read_int8_file(folder, {"int8": found.digest})
    assert raised.value.key == folder.child(schema.INT8_NETWORK)
    folder.put(schema.INT8_NETWORK, data)
    assert read_int8_file(folder, {"int8": found.digest}) == data
    with pytest.raises(WeightsError) as raised:
        read_int8_file(folder, {"int8": "0" * 64})
    assert raised.value.value == found.digest
    for corrupt in (b"", data[:-9], b"PK\x05\x06" + bytes(18)):
        with pytest.raises(WeightsError):
            open_int8_file(corrupt, uri="x")
