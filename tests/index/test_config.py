"""The example of index has every key with its default, and explains it."""

import re
from pathlib import Path

import pytest
import yaml

from raypipe.config import IndexConfig, load_config
from raypipe.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "jobs" / "index.yaml"


def test_the_example_holds_every_key_with_its_default() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    tree = yaml.safe_load(text)
    defaults = IndexConfig(embeddings=tree["embeddings"], output=tree["output"])
    assert tree == defaults.model_dump()
    assert load_config(IndexConfig, EXAMPLE) == defaults
    leaves = sum(len(value) if isinstance(value, dict) else 1 for value in tree.values())
    assert len(re.findall(r"^ *\w+: \S", text, re.MULTILINE)) == leaves


@pytest.mark.parametrize(
    "key",
    [
        *(
            "index.dim=0",
            "index.min_recall=2",
            "index.target_recall=1",
            "index.flat_below=0",
            "index.duplicate_cosine=0",
            "index.seed=-1",
        ),
        *("append=maybe", "index.dims=3", "catalog=c.csv"),
    ],
)
def test_what_index_cannot_do_is_refused(key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(IndexConfig, values={"embeddings": "e", "output": "o"}, overrides=[key])
    assert raised.value.key == key.partition("=")[0]


def test_a_recall_that_every_version_misses_is_refused() -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(IndexConfig, values={"embeddings": "e", "output": "o"}, overrides=["index.target_recall=0.9"])
    assert raised.value.key == "index"
