"""The configuration of ``raypipe suggest``."""

from typing import Literal, Self

from pydantic import Field, model_validator

from raypipe.config.load import Section, Uri


class LabelsConfig(Section):
    """How the labels file is read: as by ``raypipe train``."""

    split_column: str = "split"
    max_unknown_fraction: float = Field(default=0.01, ge=0, le=1)


class SuggestConfig(Section):
    """The whole configuration of ``raypipe suggest``."""

    embeddings: Uri
    output: Uri
    labels: Uri | None = None
    labels_from: Literal["folder"] | None = None
    num_videos: int = Field(default=50, ge=0, le=5_000)
    problem_type: Literal["auto", "single_label", "multi_label"] = "auto"
    data: LabelsConfig = LabelsConfig()
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _labels_come_from_at_most_one_place(self) -> Self:
        if self.labels is not None and self.labels_from is not None:
            msg = "give one of --labels FILE and --labels-from folder; got labels and labels_from"
            raise ValueError(msg)
        return self
