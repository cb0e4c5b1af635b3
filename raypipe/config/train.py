"""The configuration of ``raypipe train``."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from raypipe.config.load import Section, Uri

Objective = Literal["classify", "masked_frame"]
SelectBy = Literal["loss", "accuracy", "macro_f1"]


class Gpt2Size(Section):
    """The size of a GPT-2 that starts from random weights."""

    n_layer: int = Field(default=2, ge=1)
    n_head: int = Field(default=4, ge=1)
    n_embd: int = Field(default=128, ge=1)

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.n_embd % self.n_head:
            msg = f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}"
            raise ValueError(msg)
        return self


class LoraConfig(Section):
    """LoRA: low-rank adapters (from peft) in every block of GPT-2. A ``rank`` of 0 disables them."""

    rank: int = Field(default=0, ge=0)
    alpha: int = Field(default=16, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class ClassifierConfig(Section):
    """The network that reads the frame embeddings of a video."""

    gpt2: str | Gpt2Size = Gpt2Size()
    freeze: str = "none"
    lora: LoraConfig = LoraConfig()
    dropout: float = Field(default=0.1, ge=0, lt=1)
    max_frames: int = Field(default=256, ge=1, le=65_536)

    @field_validator("freeze")
    @classmethod
    def _freezes_something(cls, freeze: str) -> str:
        if freeze not in {"none", "gpt2"} and not re.fullmatch(r"all_but_last_[1-9][0-9]*", freeze):
            msg = "choose one of none, gpt2, all_but_last_K (all of GPT-2 but its last K blocks)"
            raise ValueError(msg)
        return freeze


class DataConfig(Section):
    """The choice of the videos to train on and of the videos to hold out for validation."""

    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    split_column: str = "split"
    max_unknown_fraction: float = Field(default=0.01, ge=0, le=1)
    cache_bytes: int = Field(default=4_294_967_296, ge=1)


class OptimizerConfig(Section):
    """The optimization: AdamW with a linear warm-up, then a cosine decay of the learning rate to zero."""

    epochs: int = Field(default=60, ge=1)
    batch_size: int = Field(default=16, ge=1)
    accumulate: int = Field(default=1, ge=1)
    learning_rate: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    weight_decay: float = Field(default=0.05, ge=0)
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    frame_dropout: float = Field(default=0.3, ge=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = "none"
    masked_fraction: float = Field(default=0.3, gt=0, lt=1)
    early_stop_epochs: int = Field(default=30, ge=0)
    select_by: SelectBy = "accuracy"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


class CheckpointConfig(Section):
    """When to store checkpoints, and how many to keep.

    A checkpoint is stored after every epoch and every ``minutes`` minutes. The best one and the last ``keep`` are kept.
    """

    minutes: float = Field(default=10.0, gt=0)
    keep: int = Field(default=3, ge=1)


class TrainResourcesConfig(Section):
    """The workers of Ray Train, and the resources that they reserve in the cluster."""

    num_workers: int = Field(default=1, ge=1)
    use_gpu: Literal["auto"] | bool = "auto"
    max_failures: int = Field(default=3, ge=0)
    wait_seconds: float = Field(default=0, ge=0)


class TrainConfig(Section):
    """The whole configuration of ``raypipe train``."""

    embeddings: Uri
    output: Uri
    labels: Uri | None = None
    labels_from: Literal["folder"] | None = None
    objective: Objective = "classify"
    init_from: Uri | None = None
    problem_type: Literal["auto", "single_label", "multi_label"] = "auto"
    model: ClassifierConfig = ClassifierConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    resources: TrainResourcesConfig = TrainResourcesConfig()
    seed: int = Field(default=0, ge=0)
    search: dict[str, list[Any]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _labels_come_from_one_place(self) -> Self:
        given = [name for name in ("labels", "labels_from") if getattr(self, name) is not None]
        if self.objective == "classify" and len(given) != 1:
            have = " and ".join(given) or "neither"
            msg = f"give one of --labels FILE and --labels-from folder; got {have}"
            raise ValueError(msg)
        return self

    @field_validator("search")
    @classmethod
    def _search_is_a_grid(cls, search: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, choices in search.items():
            if not choices:
                msg = f"{key!r} has no choices; give a list of values, as in optimizer.learning_rate: [1e-4, 1e-3]"
                raise ValueError(msg)
            if key.partition(".")[0] not in {"model", "optimizer", "seed"}:
                msg = f"{key!r} cannot be searched; choose keys of model, optimizer, or seed"
                raise ValueError(msg)
        return search
