"""The OpenVINO engine: a backbone that runs faster on a CPU than in PyTorch, and starts without importing PyTorch."""

import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raypipe.models.backbones import Crops, Dtype, Vectors, check_frames, embedding_dim

# OpenVINO would send usage data unless this machine's user opted out. It does without if this import fails.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402
import openvino.opset13 as opset  # noqa: E402
from openvino.preprocess import PrePostProcessor  # noqa: E402

_BATCH_SIZE = 8  # larger batches are not faster, and need more memory
_PRECISIONS: Mapping[Dtype, str] = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # of what is not in int8


@dataclass(frozen=True, slots=True)
class ExportedNetwork:
    """A network in OpenVINO's format: its structure as XML, and the bytes of its weights.

    The input are uint8 RGB frames ``[N, crop, crop, 3]``, and the output float32 embeddings ``[N, D]``.
    """

    structure: bytes
    weights: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, model: openvino.Model) -> "ExportedNetwork":
        """Return a network in this format."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "network.xml")
            openvino.serialize(model, path, path.with_suffix(".bin"))
            return cls(path.read_bytes(), np.fromfile(path.with_suffix(".bin"), np.uint8))

    def model(self) -> openvino.Model:
        """Return the network, with its own copy of the weights."""
        return openvino.Core().read_model(self.structure, openvino.Tensor(self.weights))


def export(name: str, state_dict: Mapping[str, npt.NDArray[np.float32]]) -> ExportedNetwork:
    """Export a backbone from PyTorch.

    Raises:
        ConfigError: the name is unknown.
        WeightsError: ``state_dict`` does not fit this backbone.
    """
    import torch  # noqa: PLC0415 - takes seconds, which a process that only runs the network need not spend

    from raypipe.models.backbone import load_network  # noqa: PLC0415
    from raypipe.models.weights import preprocessing  # noqa: PLC0415

    facts = preprocessing(name)
    shape = [-1, 3, facts.crop_size, facts.crop_size]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.export would first import the compiler, for seconds
        # convert_model would also trace the network, but run it three times to check the trace.
        traced = torch.jit.trace(load_network(name, state_dict), torch.zeros(1, *shape[1:]), check_trace=False)  # type: ignore[no-untyped-call]
    model = openvino.convert_model(traced, input=shape)
    frames = PrePostProcessor(model)
    frames.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    steps = frames.input().preprocess().convert_element_type(openvino.Type.f32)
    steps.mean([255 * value for value in facts.mean]).scale([255 * value for value in facts.std])
    frames.input().model().set_layout(openvino.Layout("NCHW"))
    return ExportedNetwork.of(frames.build())


@dataclass(frozen=True, slots=True)
class Quantized:
    """A convolution with weights [O, K] in int8, as multiples of ``scale`` [O].

    The inputs of the layer, which are not negative, are rounded to 256 values from 0 to ``highest``.
    """

    weights: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    highest: float


def with_int8(exported: ExportedNetwork, layers: Mapping[str, Quantized]) -> ExportedNetwork:
    """Return a network with some convolutions in int8. The keys of ``layers`` are the names in PyTorch."""
    model = exported.model()
    is_rounded: set[openvino.Output] = set()
    for node in model.get_ordered_ops():
        name = node.get_friendly_name().split("/")[0].removeprefix("__module.")
        if name not in layers or not node.get_type_name().endswith("Convolution"):
            continue
        layer, (images, filters) = layers[name], node.input_values()
        if images not in is_rounded:
            is_rounded.add(_round_for_readers(images, layer.highest))
        shape = filters.get_shape()  # with groups, the first two dimensions count the filters
        weights = opset.convert(opset.constant(layer.weights.reshape(shape)), np.float32)
        scale = opset.constant(layer.scale.reshape([*shape[: len(shape) - 3], 1, 1, 1]))
        node.input(1).replace_source_output(opset.multiply(weights, scale).output(0))
    model.validate_nodes_and_infer_types()
    return ExportedNetwork.of(model)


def _round_for_readers(images: openvino.Output, limit: float) -> openvino.Output:
    """Round a tensor for all nodes that read it. Otherwise the residual branch would need it in float32 as well."""
    readers = images.get_target_inputs()
    lowest, highest = (opset.constant(np.float32(value)) for value in (0, limit))
    rounded = opset.fake_quantize(images, lowest, highest, lowest, highest, 256).output(0)
    for reader in readers:
        reader.replace_source_output(rounded)
    return rounded


class OpenVinoBackbone:
    """A backbone that runs on the CPU in OpenVINO. ``num_threads`` 0 means one per processor."""

    def __init__(self, exported: ExportedNetwork, *, name: str, dtype: Dtype, num_threads: int = 0) -> None:
        self.embedding_dim = embedding_dim(name)
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": num_threads,
            "ENABLE_CPU_PINNING": False,  # the actors of a machine would be pinned to the same processors
        }
        self._request = openvino.Core().compile_model(exported.model(), "CPU", options).create_infer_request()

    def embed(self, frames: npt.NDArray[np.uint8] | Crops) -> Vectors:
        """Return the embeddings ``[N, embedding_dim]`` of cropped RGB frames ``[N, H, W, 3]``, N ≥ 0.

        Raises:
            ValueError: the array has another shape or type.
        """
        check_frames(frames)
        embeddings = np.empty((len(frames), self.embedding_dim), np.float32)
        for start in range(0, len(frames), _BATCH_SIZE):
            batch = np.ascontiguousarray(frames[start : start + _BATCH_SIZE])
            embeddings[start : start + len(batch)] = self._request.infer([batch], share_inputs=True)[0]
        return embeddings
