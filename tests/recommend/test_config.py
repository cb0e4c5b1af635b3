"""The example of recommend has every key with its default; filters look like those of a request."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from raypipe.config import RecommendConfig, load_config
from raypipe.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "jobs" / "recommend.yaml"
GIVEN = {"index": "i", "history": "h.csv", "output": "o"}


def test_the_example_holds_every_key_with_its_default() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    tree = yaml.safe_load(text)
    defaults = RecommendConfig(**{key: tree[key] for key in GIVEN})
    assert tree == defaults.model_dump()
    assert load_config(RecommendConfig, EXAMPLE) == defaults
    leaves = sum(len(value) if isinstance(value, dict) and value else 1 for value in tree.values())
    assert len(re.findall(r"^ *\w+: \S", text, re.MULTILINE)) == leaves


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ("{language: [en, fr], year: {gte: 2000}}", {"language": ["en", "fr"], "year": {"gte": 2000}}),
        ("{published_at: {gte: 2024-05-31}}", {"published_at": {"gte": "2024-05-31"}}),
        ("{published_at: 2024-05-31 12:00:00}", {"published_at": "2024-05-31T12:00:00"}),
    ],
)
def test_filters_are_as_a_request_has_them(filters: str, expected: dict[str, Any]) -> None:
    config = load_config(RecommendConfig, values=GIVEN, overrides=[f"ranking.filters={filters}"])
    assert config.ranking.filters == expected


@pytest.mark.parametrize(
    "key",
    [
        *("ranking.top_k=0", "ranking.top_k=201", "ranking.diversity=1.1", "ranking.max_per_category=0"),
        *(
            "users_per_shard=0",
            "concurrency=0",
            "max_unknown_fraction=2",
            "ranking.filters={a: .nan}",
            "ranking.filters=3",
            "ranking.history=[]",
        ),
    ],
)
def test_what_recommend_cannot_do_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=key.partition("=")[0].rpartition(".")[2]) as caught:
        load_config(RecommendConfig, values=GIVEN, overrides=[key])
    assert str(caught.value).isprintable()
