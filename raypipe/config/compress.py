"""The configuration of ``raypipe compress``."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raypipe.config.load import Section, Uri
from raypipe.config.train import DataConfig


class DistillConfig(Section):
    """How a pruned classifier learns from the classifier that it was made of."""

    epochs: int = Field(default=20, ge=1)
    early_stop_epochs: int = Field(default=5, ge=0)
    batch_size: int = Field(default=16, ge=1)
    learning_rate: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    temperature: float = Field(default=2.0, gt=0)
    label_weight: float = Field(default=1.0, ge=0)
    max_videos: int = Field(default=20_000, ge=1)


class CompressConfig(Section):
    """The whole configuration of ``raypipe compress``."""

    model: Uri
    output: Uri
    embeddings: Uri | None = None
    labels: Uri | None = None
    labels_from: Literal["folder"] | None = None
    index: Uri | None = None
    history: Uri | None = None
    history_ordered: bool = True
    cache: str | None = None
    max_accuracy_loss: float = Field(default=0.01, ge=0, lt=1)
    min_speedup: float = Field(default=1.2, ge=1)
    blocks: Literal["auto"] | list[Annotated[int, Field(ge=1)]] = "auto"
    head_tolerance: float = Field(default=0.01, ge=0)
    int8: bool = True
    distill: DistillConfig = DistillConfig()
    data: DataConfig = DataConfig()
    use_gpu: Literal["auto"] | bool = "auto"
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _has_the_inputs_of_one_kind(self) -> Self:
        of_ranker, of_classifier = (self.index, self.history), (self.labels, self.labels_from)
        if self.embeddings is None and None in of_ranker:
            msg = "a classifier needs embeddings, and a ranker needs index and history"
            raise ValueError(msg)
        if self.embeddings is None and any(of_classifier):
            msg = "labels are for a classifier, which needs embeddings"
            raise ValueError(msg)
        if self.embeddings is not None and any(of_ranker):
            msg = "index and history are for a ranker, which does not read embeddings"
            raise ValueError(msg)
        if all(of_classifier):
            msg = "give one of labels and labels_from"
            raise ValueError(msg)
        return self
