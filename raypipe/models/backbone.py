"""The PyTorch engine: any torchvision ResNet or VGG by name turns uint8 frames into one embedding per frame."""

import logging
from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from raypipe.errors import WeightsError
from raypipe.models.backbones import Crops, FloatDtype, check_frames, embedding_dim
from raypipe.models.weights import build_network, preprocessing
from raypipe.text import one_line

logger = logging.getLogger(__name__)

# One thread is as fast with 4 frames as with 32. The activations of 32 frames exceed the caches and only cost memory.
CPU_BATCH_SIZE = 8


class Backbone:
    """A network that turns frames into embeddings.

    ``state_dict`` holds float32 arrays under torchvision's names, without the head. ``batch_size`` is the maximum
    number of frames in one pass. It is at most ``CPU_BATCH_SIZE`` on a CPU, and is halved whenever memory runs out.
    ``compile="auto"`` compiles the network on a GPU only. On a CPU, every actor would spend 10 to 40 s to become only 1
    to 20 % faster.

    Raises:
        ConfigError: the name is unknown.
        WeightsError: ``state_dict`` does not fit this backbone.
    """

    def __init__(
        self,
        state_dict: Mapping[str, npt.NDArray[np.float32]],
        *,
        name: str,
        device: str = "cpu",
        dtype: FloatDtype = "float32",
        batch_size: int = 256,
        compile: Literal["auto"] | bool = "auto",  # noqa: A002 - the key of the configuration
    ) -> None:
        self.embedding_dim = embedding_dim(name)
        self._device = torch.device(device)
        on_gpu = self._device.type == "cuda"
        self.batch_size = batch_size if on_gpu else min(batch_size, CPU_BATCH_SIZE)
        embedder = normalizing_network(name, state_dict, dtype=dtype).to(self._device)
        # A network is compiled for one batch shape, so shorter batches are padded.
        self._compiled = compile is True or (compile == "auto" and on_gpu)
        self._staging: _Staging | None = None
        self._embedder: nn.Module = embedder
        if self._compiled:
            # On a CPU, freezing converts the weights to oneDNN's layout once instead of in every pass.
            options: Any = None if on_gpu else {"freezing": True}
            self._embedder = cast("nn.Module", torch.compile(embedder, dynamic=False, options=options))

    def embed(self, frames: npt.NDArray[np.uint8] | Crops) -> npt.NDArray[np.float32]:
        """Return the embeddings ``[N, embedding_dim]`` of cropped RGB frames ``[N, H, W, 3]``, N ≥ 0.

        Raises:
            ValueError: the array has another shape or type.
            torch.OutOfMemoryError: memory is too small even for one frame. On a CPU, this can also be MemoryError or
                RuntimeError.
        """
        check_frames(frames)
        on_gpu = self._device.type == "cuda"
        # Pinned, so that a batch's embeddings leave the device while the next batch is computed.
        embeddings = torch.empty((len(frames), self.embedding_dim), pin_memory=on_gpu)
        start = 0
        with torch.inference_mode():
            while start < len(frames):
                batch = frames[start : start + self.batch_size]
                try:
                    embeddings[start : start + len(batch)].copy_(self._embed_batch(batch), non_blocking=True)
                except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                    if not _is_out_of_memory(error) or self.batch_size == 1:
                        raise
                else:
                    start += len(batch)
                    continue
                self._halve_batch_size(len(batch))  # after the except block, which keeps the batch's tensors alive
        if on_gpu:  # the only wait for the device: until here, batches are queued while it computes
            torch.cuda.current_stream(self._device).synchronize()
        return cast("npt.NDArray[np.float32]", embeddings.numpy())

    def _embed_batch(self, batch: npt.NDArray[np.uint8]) -> torch.Tensor:
        size = self.batch_size if self._compiled else len(batch)
        if self._device.type == "cuda":
            shape = (self.batch_size, *batch.shape[1:])
            if self._staging is None or self._staging.shape != shape:
                self._staging = _Staging(shape, self._device)
            frames = self._staging.put(batch)[:size]
        else:
            frames = torch.zeros((size, *batch.shape[1:]), dtype=torch.uint8)
            frames.numpy()[: len(batch)] = batch
        return cast("torch.Tensor", self._embedder(frames))[: len(batch)]

    def _halve_batch_size(self, num_frames: int) -> None:
        tried = self.batch_size if self._compiled else num_frames
        self.batch_size = max(1, tried // 2)
        logger.warning("Out of memory with %d frames: batch_size is now %d.", tried, self.batch_size)
        if self._device.type == "cuda":
            self._staging = None
            torch.cuda.empty_cache()


class _Slot:
    """Memory for one batch: a tensor on the device, and a pinned tensor on the host.

    Pinned memory is copied to the device without the CPU.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.pinned = torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
        self.frames = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.read = torch.cuda.Event()  # type: ignore[no-untyped-call]


class _Staging:
    """Copies each batch to the device while the device computes the previous batch.

    Two slots of ``shape`` are filled in turn, on a separate CUDA stream.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.shape = shape
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._slots = [_Slot(shape, device) for _ in range(2)]
        self._stream.wait_stream(torch.cuda.current_stream(device))  # that stream fills the slots with zeros

    def put(self, batch: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Copy a batch to the device. Return a tensor that begins with the batch.

        The rest of the tensor is old data of earlier batches. Only work that is queued on the current stream before the
        next call may read the tensor.
        """
        current = torch.cuda.current_stream(self._stream.device)
        self._slots[0].read.record(current)  # after all work queued so far, such as the pass over the last batch
        self._slots.reverse()
        slot = self._slots[0]
        slot.arrived.synchronize()  # the slot's previous batch has left pinned memory
        slot.pinned.numpy()[: len(batch)] = batch
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.read)
            slot.frames[: len(batch)].copy_(slot.pinned[: len(batch)], non_blocking=True)
            slot.arrived.record(self._stream)
        current.wait_event(slot.arrived)
        return slot.frames


class _Embedder(nn.Module):
    """Normalises frames on the device, then runs the network. It maps uint8 ``[N, H, W, 3]`` to float32 ``[N, D]``."""

    def __init__(self, network: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.dtype = next(network.parameters()).dtype
        self.mean: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("mean", 255 * torch.tensor(mean).reshape(1, 3, 1, 1))
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).reshape(1, 3, 1, 1)))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        images = frames.permute(0, 3, 1, 2)  # a view, already in channels-last order
        images = images.float().sub_(self.mean).mul_(self.scale)
        return cast("torch.Tensor", self.network(images.to(self.dtype)).float())


def normalizing_network(
    name: str, state_dict: Mapping[str, npt.NDArray[np.float32]], *, dtype: FloatDtype = "float32"
) -> nn.Module:
    """Return a module that maps uint8 frames ``[N, H, W, 3]`` to float32 embeddings ``[N, D]``.

    Its submodule ``network`` has the dtype ``dtype``.

    Raises:
        ConfigError: the name is unknown.
        WeightsError: ``state_dict`` does not fit this backbone.
    """
    facts = preprocessing(name)
    network = load_network(name, state_dict).to(dtype=getattr(torch, dtype))
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _Embedder(network, mean=facts.mean, std=facts.std).eval().requires_grad_(False)  # noqa: FBT003


def load_network(name: str, state_dict: Mapping[str, npt.NDArray[np.float32]]) -> nn.Module:
    """Return the network of a backbone in float32, with each batch norm folded into the convolution before it.

    Raises:
        ConfigError: the name is unknown.
        WeightsError: ``state_dict`` does not fit this backbone.
    """
    network = build_network(name)
    # Copied because arrays from an object store are read-only, which torch cannot express.
    tensors = {key: torch.tensor(array) for key, array in state_dict.items()}
    try:
        keys = network.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        msg = f"state_dict does not fit {name}: {one_line(error)}"
        raise WeightsError(msg, key="state_dict", expected=name) from None
    # Folding removes the batch norms' counters, so weights do not need them.
    wrong = [key for key in keys.missing_keys + keys.unexpected_keys if not key.endswith(".num_batches_tracked")]
    if wrong:
        msg = f"state_dict does not fit {name}: {wrong[0]!r} is missing or is not a tensor of the backbone."
        raise WeightsError(msg, key="state_dict", expected=name)
    _fold_batch_norms(network)
    return network


def _fold_batch_norms(module: nn.Module) -> None:
    """Fold each batch norm into the convolution before it, which saves one pass over the activations."""
    previous: tuple[str, nn.Module] = ("", module)
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and isinstance(previous[1], nn.Conv2d):
            setattr(module, previous[0], fuse_conv_bn_eval(previous[1], child))
            setattr(module, name, nn.Identity())
        _fold_batch_norms(child)
        previous = (name, child)


def _is_out_of_memory(error: BaseException) -> bool:
    # torch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
