"""The documented YAML configuration file of each command, and a JSON Schema of it for editors."""

import json
import textwrap
from pathlib import Path

from pydantic import BaseModel

from raypipe.config import (
    AnomaliesConfig,
    ClassifyConfig,
    CompressConfig,
    EmbedConfig,
    EvaluateConfig,
    IndexConfig,
    RecommendConfig,
    ServeConfig,
    SuggestConfig,
    TrainConfig,
)

MODELS: dict[str, type[BaseModel]] = {
    "embed": EmbedConfig,
    "train": TrainConfig,
    "classify": ClassifyConfig,
    "compress": CompressConfig,
    "index": IndexConfig,
    "recommend": RecommendConfig,
    "evaluate": EvaluateConfig,
    "anomalies": AnomaliesConfig,
    "suggest": SuggestConfig,
    "serve": ServeConfig,
}
_ARGS = "    args:\n"


def template(command: str) -> str:
    """Return the text of a YAML file with every configuration key of a command, its default and a comment."""
    text = _file(command).read_text(encoding="utf-8")
    if command != "serve":
        return text
    # serve.yaml is a file for `serve deploy`. `raypipe serve` reads only the keys below `args` in it.
    return f"# Every key of `raypipe serve` with its default.\n{textwrap.dedent(text.partition(_ARGS)[2])}"


def json_schema(command: str) -> str:
    """Return a JSON Schema of a command's configuration file, as text."""
    model = MODELS[command]
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    return json.dumps({**schema, "title": f"raypipe {command}"}, indent=2) + "\n"


def _file(command: str) -> Path:
    """Return the path of a command's YAML file: in the installed package or, in a checkout, in ``jobs/``."""
    packaged = Path(__file__).with_name("yaml") / f"{command}.yaml"
    return packaged if packaged.exists() else Path(__file__).parents[2] / "jobs" / f"{command}.yaml"
