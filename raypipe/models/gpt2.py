"""Load the GPT-2 inside a model from sizes, a local folder or the hub, and select which weights are trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn

from raypipe.config import Gpt2Size
from raypipe.errors import ConfigError, SetupError, WeightsError
from raypipe.models.classifier import VideoClassifier
from raypipe.models.pretraining import FrameOrderModel, MaskedFrameModel
from raypipe.models.weights import prepare_torchvision
from raypipe.text import one_line

prepare_torchvision()  # transformers imports torchvision if it is installed

from transformers import GPT2Config, GPT2Model  # noqa: E402
from transformers.utils import logging  # noqa: E402

HUB_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
_CONFIG = "config.json"
_ADVICE = f"Give a folder of save_pretrained: {_CONFIG} and model.safetensors of a GPT-2."
_VOCABULARY = "wte."  # the inputs are embeddings, so token embeddings are never read
VideoModel = VideoClassifier | MaskedFrameModel | FrameOrderModel


@dataclass(frozen=True, slots=True)
class Gpt2:
    """The configuration of a GPT-2, and its pretrained weights if it has any.

    The weights have the names that ``GPT2Model`` uses.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def max_frames(self) -> int | None:
        """Return the maximum number of frames: the number of positions in the pretrained weights.

        Return None for random weights, which have no limit.
        """
        return int(self.config["n_positions"]) if self.weights else None


def resolve_gpt2(gpt2: str | Gpt2Size) -> Gpt2:
    """Return the GPT-2 for sizes, the path of a folder, or the name of a published model.

    Raises:
        ConfigError: there is no folder and no published model of this name.
        WeightsError: the model cannot be downloaded or read.
    """
    if isinstance(gpt2, Gpt2Size):
        return Gpt2(gpt2.model_dump())
    folder = Path(gpt2).expanduser()
    if folder.is_dir():
        return _load(folder)
    if gpt2 not in HUB_NAMES:
        msg = f"model.gpt2={gpt2!r} is neither a folder nor a published model."
        remedy = "Or give the path of a folder, or sizes (n_layer: 2)."
        raise ConfigError(msg, key="model.gpt2", value=gpt2, choices=HUB_NAMES, remedy=remedy)
    return _load(_download(gpt2))


def _download(name: str) -> Path:
    """Download a published model and return its folder. If the hub cannot be reached, use the cached files."""
    try:  # separate requests would retry each file for half a minute or more
        return Path(snapshot_download(name, allow_patterns=[_CONFIG, "model*.safetensors*"]))
    except Exception as error:  # the hub's client raises nearly anything
        msg = f"Cannot download GPT-2 {name!r}: {_reason(error)}."
        remedy = "Download the model on another machine and set model.gpt2 to its folder, or give sizes (n_layer: 2)."
        raise WeightsError(msg, key="model.gpt2", value=name, remedy=remedy) from error


def _load(folder: Path) -> Gpt2:
    try:
        with _quietly():
            config = GPT2Config.from_pretrained(folder)
            options: Any = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
            loaded: Any = GPT2Model.from_pretrained(folder, config=config, **options)
    except Exception as error:  # a corrupt file makes transformers raise nearly anything
        msg = f"Cannot load GPT-2 from {str(folder)!r}: {_reason(error)}."
        raise WeightsError(msg, key="model.gpt2", value=str(folder), remedy=_ADVICE) from error
    model, about = loaded
    # transformers initialises missing weights at random
    if missing := sorted(key for key in about["missing_keys"] if not key.startswith(_VOCABULARY)):
        msg = f"Cannot load GPT-2 from {str(folder)!r}: it lacks {len(missing)} weights, {missing[0]!r} first."
        raise WeightsError(msg, key="model.gpt2", value=str(folder), remedy=_ADVICE)
    weights = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(_VOCABULARY)}
    return Gpt2(config.to_dict(), weights)


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide transformers' progress bar and its table of unused weights."""
    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()


def _reason(error: Exception) -> str:
    return one_line(error)[:300].rstrip(".")


def freeze(model: VideoModel, what: str) -> None:
    """Freeze a part of a model's GPT-2.

    ``what`` is ``none``, ``gpt2`` or ``all_but_last_K``. ``all_but_last_K`` keeps only the last K blocks and the final
    layer norm trainable, so it also freezes the position embeddings.
    """
    if what == "none":
        return
    gpt2 = model.encoder.gpt2
    gpt2.requires_grad_(False)  # noqa: FBT003 - torch's own signature
    if what != "gpt2":
        for block in list(gpt2.h)[-int(what.removeprefix("all_but_last_")) :]:
            block.requires_grad_(True)  # noqa: FBT003
        gpt2.ln_f.requires_grad_(True)  # noqa: FBT003


def add_lora(model: VideoModel, *, rank: int, alpha: int, dropout: float) -> None:
    """Add LoRA (arXiv:2106.09685) to every matrix of GPT-2, and freeze GPT-2's own weights.

    Raises:
        SetupError: the package peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415 - an optional extra
    except ImportError:
        msg = "model.lora.rank needs the package peft. Install it with: pip install 'raypipe[lora]'"
        raise SetupError(msg) from None
    model.encoder.gpt2.requires_grad_(False)  # noqa: FBT003
    matrices = ["c_attn", "c_proj", "c_fc"]
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=matrices, fan_in_fan_out=True, bias="none"
    )
    inject_adapter_in_model(config, model.encoder.gpt2)


def merge_lora(module: nn.Module) -> None:
    """Merge LoRA adapters into the weights that they adapt, so that no peft layer stays in the model."""
    for name, child in list(module.named_children()):
        layer: Any = child
        if hasattr(layer, "get_base_layer") and hasattr(layer, "merge"):
            layer.merge()
            setattr(module, name, layer.get_base_layer())
        else:
            merge_lora(child)
