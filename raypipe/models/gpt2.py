"""Where the GPT-2 of a model comes from: sizes for random weights, a local folder, or the Hugging Face hub by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2Model

from raypipe.config import Gpt2Size
from raypipe.errors import ConfigError, WeightsError

HUB_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
_VOCABULARY = "wte."  # frames come in as embeddings: the words' table is never read


@dataclass(frozen=True, slots=True)
class Gpt2:
    """Sizes, and the weights under the names of ``GPT2Model`` where they are pretrained."""

    config: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def max_frames(self) -> int | None:
        """The positions that pretrained weights have."""
        return int(self.config["n_positions"]) if self.weights else None


def resolve_gpt2(gpt2: str | Gpt2Size) -> Gpt2:
    """Find a GPT-2.

    Raises:
        ConfigError: there is no folder and no published model of this name.
        WeightsError: it cannot be downloaded or read.
    """
    if isinstance(gpt2, Gpt2Size):
        return Gpt2(gpt2.model_dump())
    folder = Path(gpt2).expanduser()
    if folder.is_dir():
        return _load(str(folder), "Give a folder of save_pretrained: config.json and model.safetensors.")
    if gpt2 not in HUB_NAMES:
        msg = (
            f"model.gpt2={gpt2!r} is no folder. Choose a folder, one of {', '.join(HUB_NAMES)}, or sizes (n_layer: 2)."
        )
        raise ConfigError(msg)
    return _load(gpt2, "Download that folder elsewhere and set model.gpt2 to its path, or give sizes (n_layer: 2).")


def _load(source: str, advice: str) -> Gpt2:
    try:
        config = GPT2Config.from_pretrained(source)
        model = GPT2Model.from_pretrained(source, config=config, use_safetensors=True, dtype=torch.float32)
    except Exception as error:  # the hub's client raises nearly anything
        reason = " ".join(str(error).split())[:300].rstrip(".")
        msg = f"Cannot load GPT-2 {source!r}: {reason}. {advice}"
        raise WeightsError(msg) from error
    weights = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(_VOCABULARY)}
    return Gpt2(config.to_dict(), weights)
