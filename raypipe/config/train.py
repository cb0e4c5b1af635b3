"""The configuration of ``raypipe train``."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from raypipe.config.load import Count, Section, Uri
from raypipe.text import iso_seconds

Head = Literal["auto", "probe", "gpt2"]
Objective = Literal["classify", "self_train", "masked_frame", "frame_order", "next_video"]
SelectBy = Literal["loss", "accuracy", "macro_f1", "ndcg", "hr"]
Holdout = Literal["leave_one_out", "time", "given", "none"]
_NEXT_VIDEO: Mapping[
    str, Any
] = {  # the values of the optimizer's keys that are auto; the defaults are for other objectives
    "batch_size": 128,
    "weight_decay": 0.01,
    "warmup_fraction": 0.01,
    "max_grad_norm": 5.0,
    "early_stop_epochs": 10,
    "select_by": "ndcg",
}
_WITHOUT_PROBE: Mapping[str, Any] = {"frame_dropout": 0.3, "select_by": "accuracy"}
_NEEDS: Mapping[str, tuple[str, ...]] = {
    "classify": ("embeddings",),
    "self_train": ("embeddings",),
    "masked_frame": ("embeddings",),
    "frame_order": ("embeddings",),
    "next_video": ("index", "history"),
}
_PRETRAINING = {"masked_frame", "frame_order"}  # without labels
_RANKING_SCORES, _LABEL_SCORES = {"ndcg", "hr"}, {"accuracy", "macro_f1"}


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

    head: Head = "auto"
    compare: Literal["auto", "all", "simple", "none"] = "auto"
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


class SelfTrainConfig(Section):
    """Which videos without a label a self-training learns from."""

    min_probability: float = Field(default=0.8, gt=0, lt=1)
    max_videos: int = Field(default=20_000, ge=1)


class DataConfig(Section):
    """The choice of the videos to train on and of the videos to hold out for validation."""

    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    split_column: str = "split"
    max_unknown_fraction: float = Field(default=0.01, ge=0, le=1)
    cache_bytes: int = Field(default=4_294_967_296, ge=1)


def _or_auto(schema: dict[str, Any]) -> None:
    """Let the JSON Schema of a key also accept ``auto``, which ``TrainConfig`` replaces."""
    number = {name: value for name, value in schema.items() if name not in {"title", "default"}}
    for name in number:
        del schema[name]
    schema.update({"anyOf": [{"const": "auto", "type": "string"}, number], "default": "auto"})


class OptimizerConfig(Section):
    """The optimization: AdamW with a linear warm-up, then a cosine decay of the learning rate.

    Keys that are ``auto`` in a file get the value for the objective.
    """

    epochs: int = Field(default=60, ge=1)
    batch_size: int = Field(default=16, ge=1, json_schema_extra=_or_auto)
    accumulate: int = Field(default=1, ge=1)
    learning_rate: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    weight_decay: float = Field(default=0.05, ge=0, json_schema_extra=_or_auto)
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1, json_schema_extra=_or_auto)
    max_grad_norm: float = Field(default=1.0, gt=0, json_schema_extra=_or_auto)
    frame_dropout: float = Field(default=0.1, ge=0, lt=1, json_schema_extra=_or_auto)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = "none"
    masked_fraction: float = Field(default=0.3, gt=0, lt=1)
    early_stop_epochs: int = Field(default=30, ge=0, json_schema_extra=_or_auto)
    select_by: SelectBy = Field(default="loss", json_schema_extra=_or_auto)
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


class RankerConfig(Section):
    """The model that predicts the next video of a history, and the events that its training must not see."""

    n_embd: Count = "auto"
    n_layer: Count = "auto"
    n_head: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.3, ge=0, lt=1)
    id_dropout: float = Field(default=0.15, ge=0, lt=1)
    max_events: int = Field(default=50, ge=1, le=65_536)
    min_events: int = Field(default=5, ge=1)
    max_ids: int = Field(default=1_000_000, ge=0)
    num_negatives: int = Field(default=1024, ge=1)
    full_softmax_below: int = Field(default=5000, ge=0)
    content: bool = True
    loss: Literal["softmax", "bce"] = "softmax"
    holdout: Holdout = "leave_one_out"
    cut: str | None = None
    history_ordered: bool = True
    index_version: str | None = None

    @field_validator("cut")
    @classmethod
    def _cut_is_a_time(cls, cut: str | None) -> str | None:
        if cut is not None:
            iso_seconds(cut)
        return cut

    @model_validator(mode="after")
    def _cut_belongs_to_time(self) -> Self:
        if self.cut is not None and self.holdout != "time":
            msg = f"cut is for holdout time, not {self.holdout}"
            raise ValueError(msg)
        return self

    @property
    def cut_seconds(self) -> float | None:
        """The cut as Unix time. A time without a zone is UTC."""
        return None if self.cut is None else iso_seconds(self.cut)


class TrainConfig(Section):
    """The whole configuration of ``raypipe train``."""

    embeddings: Uri | None = None
    output: Uri
    labels: Uri | None = None
    labels_from: Literal["folder"] | None = None
    index: Uri | None = None
    history: Uri | None = None
    cache: str | None = None
    objective: Objective = "classify"
    init_from: Uri | None = None
    problem_type: Literal["auto", "single_label", "multi_label"] = "auto"
    model: ClassifierConfig = ClassifierConfig()
    ranker: RankerConfig = RankerConfig()
    self_train: SelfTrainConfig = SelfTrainConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    resources: TrainResourcesConfig = TrainResourcesConfig()
    seed: int = Field(default=0, ge=0)
    search: dict[str, list[Any]] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _auto_depends_on_the_objective(cls, tree: Any) -> Any:  # noqa: ANN401 - anything
        if not isinstance(tree, Mapping):
            return tree
        given, model = tree.get("optimizer", {}), tree.get("model", {})
        given = given.model_dump(exclude_unset=True) if isinstance(given, OptimizerConfig) else given
        if not isinstance(given, Mapping):
            return tree
        head = model.get("head", "auto") if isinstance(model, Mapping) else getattr(model, "head", "auto")
        objective = tree.get("objective", "classify")
        values = _NEXT_VIDEO if objective == "next_video" else {}
        if objective in _PRETRAINING or head == "gpt2":
            values = {**_WITHOUT_PROBE, **values}
        keys = {*_NEXT_VIDEO, *_WITHOUT_PROBE}
        settled = {key: value for key, value in given.items() if key not in keys or value != "auto"}
        return {**tree, "optimizer": {**values, **settled}}

    @model_validator(mode="after")
    def _objective_has_its_inputs(self) -> Self:
        needed = _NEEDS[self.objective]
        others = {name for names in _NEEDS.values() for name in names} - {*needed}
        if self.objective == "next_video":
            others |= {"labels", "labels_from", "init_from", "problem_type", "model"}
        else:
            others.add("ranker")
        if self.objective != "self_train":
            others.add("self_train")
        missing = [name for name in needed if getattr(self, name) is None]
        fields = type(self).model_fields
        unused = [name for name in fields if name in others and getattr(self, name) != fields[name].default]
        if missing or unused:
            what = f"needs {' and '.join(missing)}" if missing else f"does not use {' and '.join(unused)}"
            msg = f"objective {self.objective} {what}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _score_fits_the_objective(self) -> Self:
        chosen, is_ranking = self.optimizer.select_by, self.objective == "next_video"
        if chosen in _RANKING_SCORES if not is_ranking else chosen not in _RANKING_SCORES:
            choices = sorted(_RANKING_SCORES if is_ranking else {*_LABEL_SCORES, "loss"})
            what = f"optimizer.select_by {chosen} is not a score of objective {self.objective}"
            msg = f"{what}; choose {', '.join(choices)}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _labels_come_from_one_place(self) -> Self:
        given = [name for name in ("labels", "labels_from") if getattr(self, name) is not None]
        if self.classifies and len(given) != 1:
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
            if key.partition(".")[0] not in {"model", "optimizer", "ranker", "seed"}:
                msg = f"{key!r} cannot be searched; choose keys of model, optimizer, ranker, or seed"
                raise ValueError(msg)
        return search

    @property
    def classifies(self) -> bool:
        """Whether the model gives videos labels."""
        return self.objective in {"classify", "self_train"}

    @property
    def is_pretraining(self) -> bool:
        """Whether the model learns from the videos alone, without labels."""
        return self.objective in _PRETRAINING

    @property
    def embeddings_uri(self) -> str:
        """The embeddings. Every objective except next_video has them."""
        return self.embeddings or ""

    @property
    def index_uri(self) -> str:
        """The index of objective next_video."""
        return self.index or ""

    @property
    def history_uri(self) -> str:
        """The watch history of objective next_video."""
        return self.history or ""
