"""What is known of the backbones without torch: their names, sizes and dtypes."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raypipe.errors import ConfigError

logger = logging.getLogger(__name__)

# fmt: off
BACKBONES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
    "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn",
)
# fmt: on

Dtype = Literal["float32", "bfloat16"]


_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last is what aarch64 says


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What the pretrained weights of a backbone were trained on: sizes in pixels, colours of RGB in 0 to 1."""

    resize_size: int  # of the shorter side
    crop_size: int  # of the square cut from its centre
    mean: tuple[float, ...]
    std: tuple[float, ...]


def check_name(name: str) -> None:
    """Raise ConfigError unless this is the name of a backbone."""
    if name not in BACKBONES:
        msg = f"Unknown backbone {name!r}."
        raise ConfigError(msg, key="backbone.name", value=name, choices=BACKBONES)


def head_name(name: str) -> str:
    """Name of the layer behind the embedding, which is left out."""
    return "classifier.6" if name.startswith("vgg") else "fc"


def embedding_dim(name: str) -> int:
    """Length of an embedding; raises ConfigError for an unknown name."""
    check_name(name)
    if name.startswith("vgg"):
        return 4096
    return 512 if name in {"resnet18", "resnet34"} else 2048


def resolve_dtype(dtype: Literal["auto"] | Dtype, device: str) -> Dtype:
    """Turn ``auto`` into bfloat16 where the processor computes in it natively, else float32, which is faster there."""
    if dtype != "auto":
        return dtype
    if device == "cpu":
        return "float32" if _cpu_flags().isdisjoint(_BFLOAT16_FLAGS) else "bfloat16"
    import torch  # noqa: PLC0415 - seconds that who computes on a processor does without

    if not torch.cuda.is_available():
        # A driver on a node without a GPU cannot know; older GPUs are many times slower in bfloat16.
        logger.warning("No GPU is seen here: dtype auto is float32. Set backbone.dtype=bfloat16 if workers' have it.")
        native = False
    else:
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if native else "float32"


def _cpu_flags() -> frozenset[str]:
    """Feature names of this processor; empty where the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split())
