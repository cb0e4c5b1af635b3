"""The configuration of ``raypipe serve``, which ``serve deploy`` reads as well."""

from typing import Literal, Self

from pydantic import Field, model_validator

from raypipe.config.embed import DecodeConfig
from raypipe.config.load import Section, Uri


class LimitsConfig(Section):
    """The limits for requests. A request that exceeds a limit gets an error immediately."""

    max_body_bytes: int = Field(default=67_108_864, ge=1)
    max_json_bytes: int = Field(default=4_194_304, ge=1)
    max_history: int = Field(default=200, ge=1, le=10_000)
    max_batch: int = Field(default=64, ge=1, le=1_000)
    max_in_flight: int = Field(default=64, ge=1)
    max_videos_in_flight: int = Field(default=8, ge=1)
    max_streams: int = Field(default=32, ge=1)
    deadline_seconds: float = Field(default=10.0, gt=0)
    video_deadline_seconds: float = Field(default=60.0, gt=0)


class ReplicasConfig(Section):
    """The number of replicas of a deployment, and the resources of each replica.

    The number is scaled by load, between ``min`` and ``max``.
    """

    min: int = Field(default=1, ge=1)
    max: int = Field(default=1, ge=1)
    max_per_node: int | None = Field(default=None, ge=1, le=100)
    num_cpus: float = Field(default=0.5, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> Self:
        if self.min > self.max:
            msg = f"min {self.min} is more than max {self.max}; raise max"
            raise ValueError(msg)
        return self


class EmbedderConfig(Section):
    """The settings for embedding videos that are not in the catalogue.

    The sampling and the backbone are not configured here: they are those of the embeddings in the index.
    """

    enabled: Literal["auto"] | bool = "auto"
    weights: str = "default"
    allowed_prefixes: list[Uri] = Field(default_factory=list)
    decode: DecodeConfig = DecodeConfig(timeout_seconds=30.0, max_size_bytes=1_073_741_824)


class ServeConfig(Section):
    """The whole configuration of ``raypipe serve``."""

    index: Uri
    model: Uri | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65_535)
    cache: str | None = None
    reload_seconds: float = Field(default=10.0, gt=0)
    embedder: EmbedderConfig = EmbedderConfig()
    limits: LimitsConfig = LimitsConfig()
    replicas: ReplicasConfig = ReplicasConfig()
    model_replicas: ReplicasConfig = ReplicasConfig()
