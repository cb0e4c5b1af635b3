"""The Python API: lazy, complete and documented; its arguments are the keys of the configuration."""

import ast
import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import raypipe
from raypipe.config.load import command_line
from raypipe.config.templates import MODELS, json_schema, template
from raypipe.errors import offer
from raypipe.results import JobResult
from support import TESTS

GUIDE = (TESTS.parent / "docs" / "python.md").read_text(encoding="utf-8")
HEAVY = {"ray", "torch", "pyarrow", "numpy", "pydantic", "faiss", "av"}


def run(code: str) -> str:
    """Run Python code in a process of its own, and return what it prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, raypipe; dir(raypipe); raypipe.Client; print(sorted({HEAVY} & set(sys.modules)))"
    assert run(code).strip() == "[]"


def test_reading_and_searching_load_no_ray() -> None:
    used = "raypipe.open_dataset, raypipe.VideoIndex, raypipe.embed_video, raypipe.EmbeddedVideo"
    assert run(f"import sys, raypipe; {used}; print('ray' in sys.modules)").strip() == "False"


def test_every_public_name_is_exported_documented_and_in_the_guide() -> None:
    exported = run("from raypipe import *; print(*[name for name in dir() if not name.startswith('_')])").split()
    assert sorted(exported) == raypipe.__all__
    for name in exported:
        public = getattr(raypipe, name)
        assert inspect.getdoc(public), name
        assert re.search(rf"\b{name}\b", GUIDE), name
    for code in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL):
        used = {node.attr for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)}
        assert set(re.findall(r"raypipe\.(\w+)", code)) <= used


def test_every_exception_that_is_raised_on_purpose_is_public() -> None:
    from raypipe import errors  # noqa: PLC0415 - its names are compared

    classes = {name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, Exception)}
    assert classes - {"VerifyError"} <= set(raypipe.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError):
        _ = raypipe.embedd


def test_settings_override_the_configuration_key_by_key(tmp_path: Path) -> None:
    path = tmp_path / "embed.yaml"
    path.write_text("input: videos\noutput: out\nsampling: {num_frames: 8, mode: fps}\nbackbone: {dtype: float32}\n")
    values = {"sampling": {"num_frames": 4}, "backbone": "resnet18", "input": Path("~/clips")}
    config = raypipe.load_config(raypipe.EmbedConfig, path, values=values)
    assert (config.sampling.num_frames, config.sampling.mode) == (4, "fps")
    assert (config.backbone.name, config.backbone.dtype) == ("resnet18", "float32")
    assert config.input == "~/clips"
    again = raypipe.load_config(raypipe.EmbedConfig, config, values={"output": "other"})
    assert again == config.model_copy(update={"output": "other"})


def test_a_misspelled_setting_is_named_with_its_neighbors() -> None:
    with pytest.raises(raypipe.ConfigError) as caught:
        raypipe.embed("videos", "out", backbon="resnet18")
    assert (caught.value.key, "backbone" in caught.value.choices) == ("backbon", True)
    assert offer("backbon", caught.value.choices) in str(caught.value)


def test_other_systems_than_linux_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(raypipe.SetupError) as caught:
        raypipe.embed("videos", "out")
    assert caught.value.value == "darwin"


def test_a_result_shows_its_counts_and_escapes_them() -> None:
    result = JobResult("embed", "out", {"videos": 2, "ok": 1, "<b>": 1}, seconds=1.26, report="r.html")
    assert repr(result) == "JobResult(job='embed', videos=2, ok=1, <b>=1, seconds=1.3, report='r.html')"
    assert result.ok == 1
    assert "<b>" not in result._repr_html_()
    with pytest.raises(AttributeError):
        _ = result.failed
    assert repr(JobResult("embed", "out", {"videos": 0}, is_new=False)) == (
        "JobResult(job='embed', is_new=False, output='out')"
    )


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1)


@given(
    input_uri=TEXT,
    weights=TEXT,
    labels=st.dictionaries(st.sampled_from(["pool", "ray.io/zone"]), st.sampled_from(["a", "true", "1.0", "null"])),
    num_frames=st.integers(1, 256),
    retry=st.sampled_from(["none", "all"]),
)
def test_the_command_of_a_record_makes_the_same_configuration(
    input_uri: str, weights: str, labels: dict[str, str], num_frames: int, retry: str
) -> None:
    config = raypipe.load_config(
        raypipe.EmbedConfig,
        {"input": input_uri, "output": "o", "retry": retry, "resources": {"decode_on": labels}},
        values={"backbone": {"weights": weights}, "sampling": {"num_frames": num_frames}},
    )
    program, job, *words = shlex.split(command_line("embed", config))
    assert (program, job) == ("raypipe", "embed")
    options = list(zip(words[::2], words[1::2], strict=True))
    values = {name.removeprefix("--"): value for name, value in options if name != "--set"}
    overrides = [value for name, value in options if name == "--set"]
    assert raypipe.load_config(raypipe.EmbedConfig, values=values, overrides=overrides) == config


@pytest.mark.parametrize("command", MODELS)
def test_a_template_is_valid_by_its_schema(command: str) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="comes with schemathesis")
    schema: dict[str, Any] = json.loads(json_schema(command))
    tree = yaml.safe_load(template(command))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(tree, schema)
    assert raypipe.load_config(MODELS[command], tree)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**tree, "unknown": 1}, schema)
