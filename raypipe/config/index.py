"""The configuration of ``raypipe index``."""

from pydantic import Field

from raypipe.config.load import Section, Uri


class IndexSettings(Section):
    """The settings that decide how an index is built from embeddings."""

    dim: int = Field(default=256, ge=1, le=4096)
    whitening: float = Field(default=0.5, ge=0, le=1)
    compact: bool = False
    min_recall: float = Field(default=0.95, ge=0, le=1)
    flat_below: int = Field(default=50_000, ge=1)
    duplicate_cosine: float = Field(default=0.98, gt=0, le=1)
    seed: int = Field(default=0, ge=0)


class IndexConfig(Section):
    """The whole configuration of ``raypipe index``."""

    embeddings: Uri
    output: Uri
    catalogue: Uri | None = None
    labels: Uri | None = None
    append: bool = False
    index: IndexSettings = IndexSettings()
