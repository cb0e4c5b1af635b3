"""The configuration of ``raypipe classify``."""

from pydantic import Field

from raypipe.config.load import BatchConfig, Count, Gpus, Section, Uri


class EmbeddedShardConfig(Section):
    """The maximum size of a shard. A shard is the unit of work and of commit, and is redone if its worker dies."""

    max_videos: int = Field(default=1024, ge=1)
    max_frames: int = Field(default=65_536, ge=1)


class ClassifyResourcesConfig(Section):
    """The number of actors, and the number of GPUs (possibly a fraction) that each reserves."""

    gpus: Gpus = "auto"
    concurrency: Count = "auto"
    wait_seconds: float = Field(default=0, ge=0)


class ClassifyConfig(BatchConfig):
    """The whole configuration of ``raypipe classify``."""

    embeddings: Uri
    model: Uri
    output: Uri
    top_k: int = Field(default=5, ge=1)
    frame_scores: bool = False
    batch_size: int = Field(default=64, ge=1)
    shard: EmbeddedShardConfig = EmbeddedShardConfig()
    resources: ClassifyResourcesConfig = ClassifyResourcesConfig()
