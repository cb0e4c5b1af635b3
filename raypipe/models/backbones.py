"""Names, sizes, dtypes, engines and pooling of backbones. This module avoids torch, whose import takes seconds."""

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from raypipe.errors import ConfigError

logger = logging.getLogger(__name__)

# fmt: off
BACKBONES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
    "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn",
)
# fmt: on

FloatDtype = Literal["float32", "bfloat16"]
Dtype = FloatDtype | Literal["int8"]
Engine = Literal["torch", "openvino"]
Pixels = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last one is aarch64's


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How frames are prepared for a backbone's pretrained weights. Sizes are in pixels, RGB colours from 0 to 1."""

    resize_size: int  # the shorter side after scaling
    crop_size: int  # the side of the square cut from the centre
    mean: tuple[float, ...]
    std: tuple[float, ...]


_FLOAT16_MAX = 65_504.0


def check_name(name: str) -> None:
    """Raise ConfigError unless this is the name of a backbone."""
    if name not in BACKBONES:
        msg = f"Unknown backbone {name!r}."
        raise ConfigError(msg, key="backbone.name", value=name, choices=BACKBONES)


def head_name(name: str) -> str:
    """Return the name of a backbone's head, the layer after the embedding. raypipe leaves the head out."""
    return "classifier.6" if name.startswith("vgg") else "fc"


def embedding_dim(name: str) -> int:
    """Return the length of a backbone's embeddings.

    Raises:
        ConfigError: the name is unknown.
    """
    check_name(name)
    if name.startswith("vgg"):
        return 4096
    return 512 if name in {"resnet18", "resnet34"} else 2048


def resolve_dtype(dtype: Literal["auto"] | Dtype, device: str) -> Dtype:
    """Return ``dtype``, with ``auto`` replaced by the faster dtype on this device.

    This is bfloat16 if the device supports it natively, otherwise float32.
    """
    if dtype != "auto":
        return dtype
    if device == "cpu":
        return "float32" if cpu_flags().isdisjoint(_BFLOAT16_FLAGS) else "bfloat16"
    import torch  # noqa: PLC0415 - not needed on a CPU

    if torch.cuda.is_available():
        # Older GPUs are many times slower in bfloat16.
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    # A driver on a node without a GPU cannot know what the workers' GPUs support.
    logger.warning("No GPU on this node: dtype auto is float32. Set backbone.dtype=bfloat16 if the workers support it.")
    return "float32"


def resolve_engine(engine: Literal["auto"] | Engine, device: str, dtype: Dtype) -> Engine:
    """Return ``engine``, with ``auto`` replaced by the faster engine on this machine.

    This is OpenVINO on a CPU if it is installed and runs ``dtype`` natively there, otherwise PyTorch. Both compute the
    same vectors, up to the rounding of ``dtype``.

    Raises:
        ConfigError: ``engine`` or ``dtype`` needs OpenVINO, which is not installed or cannot run on this device with
            this dtype.
    """
    if engine == "torch" and dtype != "int8":
        return "torch"
    if device != "cpu":
        problem = f"OpenVINO runs on CPUs, not on {device}."
        remedy = "Set resources.embed_gpus=0, or model_replicas.num_gpus=0 for raypipe serve."
    elif importlib.util.find_spec("openvino") is None:
        problem, remedy = "OpenVINO is not installed.", "Install raypipe[openvino]."
    elif dtype == "bfloat16" and cpu_flags().isdisjoint(_BFLOAT16_FLAGS):
        problem, remedy = "This processor has no bfloat16, for which OpenVINO would use float32.", "Set dtype=float32."
    else:
        return "openvino"
    if dtype == "int8":
        msg = f"int8 needs OpenVINO. {problem}"
        raise ConfigError(msg, key="backbone.dtype", value=dtype, remedy=remedy)
    if engine == "auto":
        return "torch"
    raise ConfigError(problem, key="backbone.engine", value=engine, remedy=remedy)


def cpu_flags() -> frozenset[str]:
    """Return the feature names of this machine's processor. The set is empty if the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split())


class Crops:
    """RGB frames of several videos, which can be sliced like one uint8 array [N, H, W, 3].

    A slice inside one video is a view. A slice across videos is a copy.
    """

    ndim = 4
    dtype = np.dtype(np.uint8)

    def __init__(self, videos: Sequence[Pixels], *, crop_size: int) -> None:
        self._videos = [video for video in videos if len(video)]
        self._stops = list(accumulate(map(len, self._videos)))
        self.shape = (self._stops[-1] if self._stops else 0, crop_size, crop_size, 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, span: slice) -> Pixels:
        start, stop, _ = span.indices(len(self))
        parts = []
        for video, end in zip(self._videos, self._stops, strict=True):
            begin = end - len(video)
            if begin < stop and start < end:
                parts.append(video[max(0, start - begin) : stop - begin])
        if not parts:
            return np.empty((0, *self.shape[1:]), np.uint8)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def check_frames(frames: Pixels | Crops) -> None:
    """Raise ValueError unless these are uint8 RGB frames [N, H, W, 3]."""
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:  # noqa: PLR2004 - N, H, W, RGB
        msg = f"Frames are {frames.dtype}{list(frames.shape)}; give uint8[N, H, W, 3]."
        raise ValueError(msg)


def clip_to_float16(vectors: Vectors) -> Vectors:
    """Return the vectors with their values clipped to the range of float16. NaN is kept."""
    clipped: Vectors = np.clip(vectors, -_FLOAT16_MAX, _FLOAT16_MAX)
    return clipped


def mean_embedding(vectors: Vectors) -> Vectors:
    """Return the L2-normalised mean [D] of a video's frame embeddings [T, D], T ≥ 1."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    normal: Vectors = (mean / max(float(np.linalg.norm(mean)), np.finfo(np.float32).tiny)).astype(np.float32)
    return normal
