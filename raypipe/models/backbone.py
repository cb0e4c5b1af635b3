"""The backbone: any torchvision ResNet or VGG by name; uint8 frames in, one embedding per frame out."""

import functools
import importlib
import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from raypipe.errors import ConfigError, WeightsError
from raypipe.models.crops import Crops
from raypipe.models.staging import Staging

logger = logging.getLogger(__name__)

# fmt: off
BACKBONES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
    "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn",
)
# fmt: on

# One thread is as fast on 4 as on 32 frames, whose activations leave the caches and cost memory for nothing.
CPU_BATCH_SIZE = 8

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What the pretrained weights of a backbone were trained on: sizes in pixels, colours of RGB in 0 to 1."""

    resize_size: int  # of the shorter side
    crop_size: int  # of the square cut from its centre
    mean: tuple[float, ...]
    std: tuple[float, ...]


def embedding_dim(name: str) -> int:
    """Length of an embedding; raises ConfigError for an unknown name."""
    _check_name(name)
    if name.startswith("vgg"):
        return 4096
    return 512 if name in {"resnet18", "resnet34"} else 2048


def preprocessing(name: str) -> Preprocessing:
    """What torchvision declares beside the default weights; raises ConfigError for an unknown name."""
    transforms = _default_weights(name).transforms()
    return Preprocessing(
        resize_size=transforms.resize_size[0],
        crop_size=transforms.crop_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def pretrained_url(name: str) -> str:
    """Where torchvision publishes the default weights; raises ConfigError for an unknown name."""
    return str(_default_weights(name).url)


def resolve_dtype(dtype: Literal["auto"] | Dtype, device: str) -> Dtype:
    """Turn ``auto`` into bfloat16 where the processor computes in it natively, else float32, which is faster there."""
    if dtype != "auto":
        return dtype
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        # A driver on a node without a GPU cannot know; older GPUs are many times slower in bfloat16.
        logger.warning("No GPU is seen here: dtype auto is float32. Set backbone.dtype=bfloat16 if workers' have it.")
        native = False
    elif torch.device(device).type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = not _cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})  # the last is what aarch64 says
    return "bfloat16" if native else "float32"


class Backbone:
    """A network that turns frames into embeddings.

    ``state_dict`` holds float32 arrays under torchvision's names, the head left out. ``batch_size`` is the most frames
    in one pass: on a CPU never more than ``CPU_BATCH_SIZE``, and halved for good whenever memory runs out.
    ``compile="auto"`` compiles on a GPU only, because on a CPU every actor would spend 10 to 40 s to gain 1 to 20 %.

    Raises:
        ConfigError: the name is unknown.
        WeightsError: ``state_dict`` is not what ``resolve_weights`` makes for this name.
    """

    def __init__(
        self,
        state_dict: Mapping[str, npt.NDArray[np.float32]],
        *,
        name: str,
        device: str = "cpu",
        dtype: Dtype = "float32",
        batch_size: int = 256,
        compile: Literal["auto"] | bool = "auto",  # noqa: A002 - the key of the configuration
    ) -> None:
        facts = preprocessing(name)
        self.embedding_dim = embedding_dim(name)
        self._device = torch.device(device)
        on_gpu = self._device.type == "cuda"
        self.batch_size = batch_size if on_gpu else min(batch_size, CPU_BATCH_SIZE)
        network = _load_network(name, state_dict)
        _fold_batch_norms(network)
        network = network.to(dtype=getattr(torch, dtype)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        embedder = _Embedder(network, mean=facts.mean, std=facts.std).to(self._device).eval().requires_grad_(False)  # noqa: FBT003
        # A compiled network is made for one shape: shorter batches are filled up.
        self._compiled = compile is True or (compile == "auto" and on_gpu)
        self._staging: Staging | None = None
        self._embedder: nn.Module = _compile(embedder, on_gpu=on_gpu) if self._compiled else embedder

    def embed(self, frames: npt.NDArray[np.uint8] | Crops) -> npt.NDArray[np.float32]:
        """Embed RGB frames: ``[N, H, W, 3]`` to ``[N, embedding_dim]``, N ≥ 0; all of one size, cropped before.

        Raises:
            ValueError: the array has another shape or type.
            torch.OutOfMemoryError: not even one frame fits; MemoryError where it was raised instead.
        """
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:  # noqa: PLR2004 - N, H, W, RGB
            msg = f"Frames are {frames.dtype}{list(frames.shape)}; give uint8[N, H, W, 3]."
            raise ValueError(msg)
        on_gpu = self._device.type == "cuda"
        # Pinned, so that a batch's embeddings leave the device while the next is computed.
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
                self._halve_batch_size(len(batch))  # here, where the exception no longer holds the batch's tensors
        if on_gpu:  # the only wait for the device: until here batches are queued while it computes
            torch.cuda.current_stream(self._device).synchronize()
        return cast("npt.NDArray[np.float32]", embeddings.numpy())

    def _embed_batch(self, batch: npt.NDArray[np.uint8]) -> torch.Tensor:
        size = self.batch_size if self._compiled else len(batch)
        if self._device.type == "cuda":
            frames = self._on_gpu(batch)[:size]
        else:
            frames = torch.zeros((size, *batch.shape[1:]), dtype=torch.uint8)
            frames.numpy()[: len(batch)] = batch
        return cast("torch.Tensor", self._embedder(frames))[: len(batch)]

    def _on_gpu(self, batch: npt.NDArray[np.uint8]) -> torch.Tensor:
        shape = (self.batch_size, *batch.shape[1:])
        if self._staging is None or self._staging.shape != shape:
            self._staging = Staging(shape, self._device)
        return self._staging.put(batch)

    def _halve_batch_size(self, num_frames: int) -> None:
        tried = self.batch_size if self._compiled else num_frames
        self.batch_size = max(1, tried // 2)
        logger.warning("Out of memory with %d frames: batch_size is now %d.", tried, self.batch_size)
        if self._device.type == "cuda":
            self._staging = None
            torch.cuda.empty_cache()


class _Embedder(nn.Module):
    """Normalise on the device, then the network: uint8 ``[N, H, W, 3]`` to float32 ``[N, D]``."""

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


@functools.cache
def prepare_torchvision() -> torch.library.Library | None:
    """Make torchvision, and transformers which imports it, importable beside a CPU-only torch; call it before either.

    torchvision's Linux wheel is a CUDA build: its operators cannot load beside a CPU torch, and its import then fails
    on the missing schemas. They are declared only where the real ones are missing; no network here calls them.
    """
    if hasattr(torch.ops.torchvision, "nms"):
        return None
    package = importlib.util.find_spec("torchvision")
    folders = package.submodule_search_locations if package is not None else None
    extension = importlib.machinery.PathFinder.find_spec("_C", folders) if folders else None
    if extension is not None and extension.origin is not None:
        try:
            torch.ops.load_library(extension.origin)  # type: ignore[no-untyped-call]
        except OSError:
            pass
        else:
            return None
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    return library  # the cache keeps it: a dropped library takes its schemas with it


def _models() -> Any:  # noqa: ANN401 - torchvision ships no types
    prepare_torchvision()
    with _compiler_deferred():
        return importlib.import_module("torchvision.models")


@contextmanager
def _compiler_deferred() -> Iterator[None]:
    """Let an import do without torch's compiler, whose own takes some two seconds of every process.

    ``torchvision.ops`` imports it for one question of a function that no network here calls; who calls it gets the
    compiler's answer.
    """
    name = "torch._dynamo.utils"
    if name in sys.modules:
        yield
        return
    stand_in: Any = ModuleType(name)
    stand_in.is_compile_supported = lambda kind: importlib.import_module(name).is_compile_supported(kind)
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


def _default_weights(name: str) -> Any:  # noqa: ANN401 - torchvision ships no types
    _check_name(name)
    return _models().get_model_weights(name).DEFAULT


def _check_name(name: str) -> None:
    if name not in BACKBONES:
        msg = f"Unknown backbone {name!r}. Choose one of {', '.join(BACKBONES)}."
        raise ConfigError(msg)


def head_name(name: str) -> str:
    """Name of the layer behind the embedding, which is left out."""
    return "classifier.6" if name.startswith("vgg") else "fc"


def build_network(name: str) -> nn.Module:
    """Build the network without its head and without memory for its tensors (on the ``meta`` device)."""
    _check_name(name)
    with torch.device("meta"), _Undrawn():
        network = cast("nn.Module", _models().get_model(name, weights=None))
    network.set_submodule(head_name(name), nn.Identity())
    return network.eval()


class _Undrawn(TorchFunctionMode):
    """Draws no random numbers: for tensors without memory that is nothing but an import of torch's compiler."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - torch's own signature
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Call ``func``, unless it draws."""
        return args[0] if func in {torch.Tensor.normal_, torch.Tensor.uniform_} else func(*args, **(kwargs or {}))


def _load_network(name: str, state_dict: Mapping[str, npt.NDArray[np.float32]]) -> nn.Module:
    network = build_network(name)
    # Copied because arrays from an object store are read-only, which torch cannot express.
    tensors = {key: torch.tensor(array) for key, array in state_dict.items()}
    try:
        keys = network.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        msg = f"state_dict does not fit {name}: {' '.join(str(error).split())}"
        raise WeightsError(msg) from None
    # Folding removes the counters, which weights need not hold.
    wrong = [key for key in keys.missing_keys + keys.unexpected_keys if not key.endswith(".num_batches_tracked")]
    if wrong:
        msg = f"state_dict does not fit {name}: {wrong[0]!r} is missing or not the backbone's."
        raise WeightsError(msg)
    return network


def _fold_batch_norms(module: nn.Module) -> None:
    """Fold each batch norm into the convolution before it: the same function in one pass less over the activations."""
    previous: tuple[str, nn.Module] = ("", module)
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and isinstance(previous[1], nn.Conv2d):
            setattr(module, previous[0], fuse_conv_bn_eval(previous[1], child))
            setattr(module, name, nn.Identity())
        _fold_batch_norms(child)
        previous = (name, child)


def _compile(module: nn.Module, *, on_gpu: bool) -> nn.Module:
    if on_gpu:
        return cast("nn.Module", torch.compile(module, dynamic=False))
    # Freezing lays the weights out for oneDNN once instead of in every pass.
    return cast("nn.Module", torch.compile(module, dynamic=False, options={"freezing": True}))


def _is_out_of_memory(error: BaseException) -> bool:
    # torch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _cpu_flags() -> frozenset[str]:
    """Feature names of this processor; empty where the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split())
