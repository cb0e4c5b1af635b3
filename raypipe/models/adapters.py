"""Choose what of a model is trained: all of it, the last blocks, or low-rank adapters on frozen weights."""

from typing import Any

from torch import nn

from raypipe.errors import SetupError
from raypipe.models.classifier import MaskedFrameModel, VideoClassifier

VideoModel = VideoClassifier | MaskedFrameModel


def freeze(model: VideoModel, what: str) -> None:
    """Freeze ``none``, ``gpt2``, or ``all_but_last_K`` of GPT-2's blocks and its position embeddings."""
    if what == "none":
        return
    gpt2 = model.encoder.gpt2
    gpt2.requires_grad_(False)  # noqa: FBT003 - torch's own signature
    if what != "gpt2":
        for block in list(gpt2.h)[-int(what.removeprefix("all_but_last_")) :]:
            block.requires_grad_(True)  # noqa: FBT003
        gpt2.ln_f.requires_grad_(True)  # noqa: FBT003


def add_lora(model: VideoModel, *, rank: int, alpha: int, dropout: float) -> None:
    """Add LoRA (arXiv:2106.09685) to every matrix of GPT-2, and freeze its own weights; SetupError without peft."""
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
    """Merge the adapters into the weights that they adapt, so that no layer of peft is left in the model."""
    for name, child in list(module.named_children()):
        layer: Any = child
        if hasattr(layer, "get_base_layer") and hasattr(layer, "merge"):
            layer.merge()
            setattr(module, name, layer.get_base_layer())
        else:
            merge_lora(child)
