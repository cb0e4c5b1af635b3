"""The configuration of ``raypipe anomalies``."""

from pydantic import Field

from raypipe.config.classify import EmbeddedShardConfig
from raypipe.config.load import BatchConfig, Count, Uri


class AnomaliesConfig(BatchConfig):
    """The whole configuration of ``raypipe anomalies``."""

    index: Uri
    embeddings: Uri
    output: Uri
    model: Uri | None = None
    times: Uri | None = None
    neighbors: int = Field(default=1, ge=1, le=100)
    calibration_videos: int = Field(default=10_000, ge=20)
    false_discovery_rate: float = Field(default=0.05, gt=0, lt=1)
    false_alarm_rate: float = Field(default=0.05, gt=0, lt=1)
    frame_scores: bool = True
    cache: str | None = None
    concurrency: Count = "auto"
    shard: EmbeddedShardConfig = EmbeddedShardConfig()
