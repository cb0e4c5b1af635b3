"""The configuration of ``raypipe evaluate``."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raypipe.config.load import Section, Uri
from raypipe.config.recommend import RankingConfig

EvaluationProtocol = Literal["auto", "time", "leave_one_out", "last_k", "given"]
METRICS = ("hr", "recall", "ndcg")
REQUIREMENT = re.compile(r"\s*(\w+@\d+|mrr)\s*>=\s*(\w+)\s*")


def check_requirement(text: str, *, ks: Sequence[int]) -> None:
    """Raise ValueError unless a text is like ``ndcg@10 >= transitions``, with a metric at one of some k."""
    names = ["mrr", *(f"{metric}@{k}" for k in ks for metric in METRICS)]
    if (found := REQUIREMENT.fullmatch(text)) is None or found[1] not in names:
        msg = f"require={text!r} is not like 'ndcg@10 >= transitions'; metrics: {', '.join(names)}"
        raise ValueError(msg)


class EvaluateConfig(Section):
    """The whole configuration of ``raypipe evaluate``."""

    index: Uri
    history: Uri
    output: Uri
    protocol: EvaluationProtocol = "auto"
    cut: str | None = None
    num_targets: int = Field(default=1, ge=1)
    history_ordered: bool = True
    k: list[Annotated[int, Field(ge=1, le=200)]] = Field(default=[5, 10, 20], min_length=1)
    max_users: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    slices: list[str] = Field(default_factory=list)
    controls: bool = True
    require: str | None = None
    ranking: RankingConfig = RankingConfig(top_k=200)
    cache: str | None = None

    @model_validator(mode="after")
    def _requirement_names_a_metric(self) -> Self:
        if self.require is not None:
            check_requirement(self.require, ks=self.k)
        return self
