"""The configuration of ``raypipe recommend``."""

import datetime as dt
import json
from typing import Any, Literal

from pydantic import Field, field_validator

from raypipe.config.load import BatchConfig, Count, Section, Uri


def _iso(value: object) -> str:
    if isinstance(value, dt.date):
        return value.isoformat()
    msg = f"{value!r} is not JSON"
    raise TypeError(msg)


Strategy = Literal["auto", "ranker", "transitions", "content"]


class RankingConfig(Section):
    """The ranking options, which apply to every user. The endpoint has the same options under the same names."""

    strategy: Strategy = "auto"
    top_k: int = Field(default=20, ge=1, le=200)
    filters: dict[str, Any] = Field(default_factory=dict)
    exclude_history: bool = True
    diversity: float = Field(default=0.0, ge=0, le=1)
    max_per_category: int | None = Field(default=None, ge=1)
    category_column: str = "category"
    one_per_duplicate_group: bool = False
    freshness: float = Field(default=0.0, ge=0, le=1)
    popularity: float = Field(default=0.0, ge=0, le=1)

    @field_validator("filters")
    @classmethod
    def _is_json(cls, filters: dict[str, Any]) -> dict[str, Any]:
        """Return the filters with dates as text. YAML parses 2024-05-31 as a date, but a request contains text."""
        try:
            plain: dict[str, Any] = json.loads(json.dumps(filters, default=_iso, allow_nan=False))
        except (TypeError, ValueError) as error:
            msg = f"should contain strings, numbers, booleans, and lists or ranges of them: {error}"
            raise ValueError(msg) from None
        return plain


class RecommendConfig(BatchConfig):
    """The whole configuration of ``raypipe recommend``."""

    index: Uri
    history: Uri
    output: Uri
    ranking: RankingConfig = RankingConfig()
    users_per_shard: int = Field(default=1_000, ge=1)
    cache: str | None = None
    concurrency: Count = "auto"
    max_ranker_days: float = Field(default=30.0, gt=0)
    max_unknown_fraction: float = Field(default=1.0, ge=0, le=1)
