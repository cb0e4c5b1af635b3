"""What ``raypipe classify`` reads."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from raypipe.config.load import Section


class PredictionShardConfig(Section):
    """The largest a shard may be: the unit of work, of commit and of loss when a worker dies."""

    max_videos: int = Field(default=1024, ge=1)
    max_frames: int = Field(default=65_536, ge=1)


class ClassifyResourcesConfig(Section):
    """How many actors there are, and what each takes of the cluster's GPUs."""

    gpus: Literal["auto"] | float = "auto"
    concurrency: Literal["auto"] | int = "auto"

    @model_validator(mode="after")
    def _counts_are_positive(self) -> Self:
        if self.concurrency != "auto" and self.concurrency < 1:
            msg = f"concurrency {self.concurrency} must be auto or at least 1"
            raise ValueError(msg)
        if self.gpus != "auto" and self.gpus < 0:
            msg = f"gpus {self.gpus} must be auto, 0 (no GPU) or more"
            raise ValueError(msg)
        return self


class ClassifyConfig(Section):
    """Everything ``raypipe classify`` reads."""

    embeddings: str
    model: str
    output: str
    top_k: int = Field(default=5, ge=1)
    frame_scores: bool = False
    batch_size: int = Field(default=64, ge=1)
    shard: PredictionShardConfig = PredictionShardConfig()
    resources: ClassifyResourcesConfig = ClassifyResourcesConfig()

    @field_validator("embeddings", "model", "output")
    @classmethod
    def _is_utf8(cls, uri: str) -> str:
        if uri != uri.encode(errors="replace").decode():
            msg = "should be UTF-8, as every URI in a Parquet file is; rename that folder"
            raise ValueError(msg)
        return uri
