"""Load a backbone into the engine that runs it. The engine's package, which may take seconds, is imported here."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from raypipe.models.backbones import Crops, Dtype, Engine, Vectors

if TYPE_CHECKING:
    from raypipe.models.openvino_backbone import ExportedNetwork
    from raypipe.models.weights import Arrays


class FrameEmbedder(Protocol):
    """A backbone in any engine."""

    embedding_dim: int

    def embed(self, frames: npt.NDArray[np.uint8] | Crops) -> Vectors:
        """Return the embeddings ``[N, embedding_dim]`` of cropped RGB frames ``[N, H, W, 3]``, N ≥ 0.

        Raises:
            ValueError: the array has another shape or type.
        """


def load_embedder(
    name: str,
    state_dict: Callable[[], "Arrays"],
    exported: Callable[[], "ExportedNetwork"] | None = None,
    *,
    engine: Engine,
    device: str = "cpu",
    dtype: Dtype = "float32",
    num_threads: int | None = None,
    batch_size: int = 256,
    compile: Literal["auto"] | bool = "auto",  # noqa: A002 - the key of the configuration
) -> FrameEmbedder:
    """Load a backbone.

    ``state_dict`` returns its weights, and ``exported`` the network in OpenVINO's format, which must be quantized for
    int8. Without ``exported``, OpenVINO gets the network from PyTorch. ``num_threads`` is the number of CPU threads;
    None means the engine's default. ``batch_size`` and ``compile`` are for PyTorch.

    Raises:
        ConfigError: the name is unknown.
        WeightsError: ``state_dict`` does not fit this backbone.
        ValueError: ``dtype`` is int8, but ``exported`` is missing.
    """
    if engine == "openvino" or dtype == "int8":
        from raypipe.models.openvino_backbone import OpenVinoBackbone, export  # noqa: PLC0415

        if exported is None and dtype == "int8":
            msg = "dtype int8 needs a network that was quantized."
            raise ValueError(msg)
        network = exported() if exported is not None else export(name, state_dict())
        return OpenVinoBackbone(network, name=name, dtype=dtype, num_threads=num_threads or 0)
    import torch  # noqa: PLC0415

    from raypipe.models.backbone import Backbone  # noqa: PLC0415

    if num_threads is not None:
        torch.set_num_threads(num_threads)
    return Backbone(state_dict(), name=name, device=device, dtype=dtype, batch_size=batch_size, compile=compile)
