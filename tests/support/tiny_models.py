"""Models of a few thousand parameters, and videos of random embeddings for them."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from raypipe.models.classifier import VideoClassifier, VideoClassifierConfig, VideoEncoder
from raypipe.models.frame_probe import FrameProbe
from raypipe.models.gpt2 import VideoModel
from raypipe.models.pretraining import MaskedFrameModel

Half = npt.NDArray[np.float16]
DIM = 8
NAMES = ("cat", "dog", "fish")
GPT2 = {"n_layer": 2, "n_head": 2, "n_embd": 16}


def tiny_config(
    *,
    names: Sequence[str] = NAMES,
    max_frames: int = 16,
    multi_label: bool = False,
    dropout: float = 0.0,
    **more: object,
) -> VideoClassifierConfig:
    """Return the configuration of a tiny model; ``more`` are keys of ``VideoClassifierConfig``."""
    drops = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), dropout)
    keys: dict[str, Any] = {
        "embedding_dim": DIM,
        "gpt2": {**GPT2, **drops},
        "max_frames": max_frames,
        "dropout": dropout,
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": "multi_label_classification" if multi_label else "single_label_classification",
    }
    return VideoClassifierConfig(**{**keys, **more})


def shake(model: VideoModel, *, seed: int = 0) -> None:
    """Give every parameter of a model a random value, even those that start at 0 or 1."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=random))
    for module in model.modules():
        if isinstance(module, VideoEncoder | FrameProbe):
            module.std.abs_().add_(0.5)
    model.eval()


def tiny_classifier(*, seed: int = 0, **config: Any) -> VideoClassifier:  # noqa: ANN401 - passed on
    """Return a classifier with random weights."""
    torch.manual_seed(seed)
    model = VideoClassifier(tiny_config(**config))
    shake(model, seed=seed)
    return model


def tiny_masked_frame(*, seed: int = 0, **config: Any) -> MaskedFrameModel:  # noqa: ANN401 - passed on
    """Return a masked-frame model with random weights."""
    torch.manual_seed(seed)
    model = MaskedFrameModel(tiny_config(**config))
    shake(model, seed=seed)
    return model


def random_videos(lengths: Iterable[int], *, dim: int = DIM, seed: int = 0) -> list[Half]:
    """Return a random video ``[T, D]`` of each length."""
    random = np.random.default_rng(seed)
    return [random.standard_normal((length, dim)).astype(np.float16) for length in lengths]
