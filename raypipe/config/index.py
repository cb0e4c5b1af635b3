"""The configuration of ``raypipe index``."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from raypipe.config.evaluate import check_requirement
from raypipe.config.load import Section, Uri
from raypipe.text import iso_seconds


class IndexSettings(Section):
    """The settings that decide how an index is built from embeddings."""

    dim: int = Field(default=256, ge=1, le=4096)
    whitening: float = Field(default=0.5, ge=0, le=1)
    compact: bool = False
    target_recall: float = Field(default=0.95, gt=0, lt=1)
    min_recall: float = Field(default=0.9, ge=0, le=1)
    flat_below: int = Field(default=50_000, ge=1)
    duplicate_cosine: float = Field(default=0.98, gt=0, le=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _the_target_is_higher(self) -> Self:
        if self.min_recall >= self.target_recall:
            msg = f"min_recall {self.min_recall} must be less than target_recall {self.target_recall}"
            raise ValueError(msg)
        return self


class HistorySettings(Section):
    """How watch events are counted. With a ranker, its own holdout, cut and counts are used."""

    holdout: Literal["leave_one_out", "time", "given", "none"] = "none"
    cut: str | None = None
    counts: Literal["auto", "transitions", "item_knn", "ease"] = "auto"
    popular_days: float = Field(default=7.0, gt=0)
    ordered: bool = True
    in_process: int = Field(default=5_000_000, ge=0)

    @field_validator("cut")
    @classmethod
    def _is_a_time(cls, cut: str | None) -> str | None:
        if cut is not None:
            iso_seconds(cut)
        return cut


class IndexConfig(Section):
    """The whole configuration of ``raypipe index``."""

    embeddings: Uri
    output: Uri
    catalogue: Uri | None = None
    labels: Uri | None = None
    history: Uri | None = None
    ranker: Uri | None = None
    evaluate: Uri | None = None
    require: str | None = None
    append: bool = False
    index: IndexSettings = IndexSettings()
    events: HistorySettings = HistorySettings()

    @model_validator(mode="after")
    def _a_ranker_needs_a_history(self) -> Self:
        if self.ranker is not None and self.history is None:
            msg = "ranker needs history: what users watched is counted, too"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _a_requirement_needs_events(self) -> Self:
        if self.evaluate is not None and self.history is None:
            msg = "evaluate needs history: its events are predicted from what users watched before"
            raise ValueError(msg)
        if self.require is not None:
            if self.evaluate is None:
                msg = "require needs evaluate, a file with events to predict"
                raise ValueError(msg)
            check_requirement(self.require, ks=(5, 10, 20))
        return self
