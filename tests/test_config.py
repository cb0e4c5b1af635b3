"""A configuration says exactly what it means, and an error in it is one line that says how to mend it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raypipe.config import ClassifyConfig, EmbedConfig, Gpt2Size, SamplingConfig, TrainConfig, load_config
from raypipe.errors import ConfigError

EXAMPLE = Path(__file__).parents[1] / "jobs" / "embed.yaml"
TRAIN_EXAMPLE = EXAMPLE.with_name("train.yaml")
REQUIRED = {"input": "videos", "output": "embeddings"}


def load(*overrides: str, path: Path | None = None, **values: object) -> EmbedConfig:
    return load_config(EmbedConfig, path, values=REQUIRED | values, overrides=overrides)


def problem(*overrides: str, path: Path | None = None, **values: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*overrides, path=path, **values)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "resnet18"))
    return message


def as_yaml(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").rstrip("\n")


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "job.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_the_example_holds_every_key_with_its_default() -> None:
    tree = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    defaults = EmbedConfig(input=tree["input"], output=tree["output"])
    assert tree == defaults.model_dump()
    assert load_config(EmbedConfig, EXAMPLE) == defaults


def test_the_example_of_classify_holds_every_key_with_its_default_and_explains_it() -> None:
    text = EXAMPLE.with_name("classify.yaml").read_text(encoding="utf-8")
    tree = yaml.safe_load(text)
    defaults = ClassifyConfig(**{key: tree[key] for key in ("embeddings", "model", "output")})
    assert tree == defaults.model_dump()
    leaves = sum(len(value) if isinstance(value, dict) else 1 for value in tree.values())
    assert len(re.findall(r"^ *\w+: \S", text, re.MULTILINE)) == leaves


def leaves_of(tree: dict[str, Any]) -> int:
    return sum(leaves_of(value) if isinstance(value, dict) and value else 1 for value in tree.values())


def test_the_example_of_train_holds_every_key_with_its_default() -> None:
    tree = yaml.safe_load(TRAIN_EXAMPLE.read_text(encoding="utf-8"))
    defaults = TrainConfig(**{key: tree[key] for key in ("embeddings", "output", "labels")})
    assert tree == defaults.model_dump()
    assert load_config(TrainConfig, TRAIN_EXAMPLE) == defaults


def test_every_key_of_the_example_of_train_has_a_line_of_its_own() -> None:
    text = TRAIN_EXAMPLE.read_text(encoding="utf-8")
    assert len(re.findall(r"^ *\w+: \S", text, re.MULTILINE)) == leaves_of(yaml.safe_load(text))


def train_problem(*overrides: str, **values: object) -> str:
    required = {"embeddings": "e", "output": "o", "labels": "l.csv"}
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, values=required | values, overrides=overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "optimizer.epoch=3",
            "Unknown key 'optimizer.epoch'. Did you mean 'epochs'? Choose one of epochs, batch_size, ",
        ),
        ("model.lora.rnk=3", "Unknown key 'model.lora.rnk'. Did you mean 'rank'? Choose one of rank, alpha, dropout."),
        (
            "model.gpt2.n_head=3",
            "model.gpt2={'n_head': 3}: input should be a valid string or n_embd 128 is no multiple of n_head 3.",
        ),
        ("model.gpt2=7", "model.gpt2=7: "),
        (
            "model.freeze=most",
            "model.freeze='most': choose one of none, gpt2, all_but_last_K (all of GPT-2 but its last K ",
        ),
        ("model.freeze=all_but_last_0", "model.freeze='all_but_last_0': choose one of none, gpt2, all_but_last_K "),
        ("model.lora.rank=-1", "model.lora.rank=-1: input should be greater than or equal to 0."),
        ("model.dropout=1", "model.dropout=1: input should be less than 1."),
        ("model.max_frames=0", "model.max_frames=0: input should be greater than or equal to 1."),
        ("data.validation_fraction=1", "data.validation_fraction=1: input should be less than 1."),
        ("data.max_unknown_fraction=2", "data.max_unknown_fraction=2: input should be less than or equal to 1."),
        ("optimizer.learning_rate=0", "optimizer.learning_rate=0: should be auto or more than 0."),
        ("optimizer.learning_rate=-0.1", "optimizer.learning_rate=-0.1: should be auto or more than 0."),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate='fast': input should be 'auto' or a valid number."),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate=inf: input should be 'auto' or a finite number."),
        ("optimizer.epochs=0", "optimizer.epochs=0: input should be greater than or equal to 1."),
        ("optimizer.epochs=1.5", "optimizer.epochs=1.5: input should be a valid integer."),
        ("optimizer.accumulate=0", "optimizer.accumulate=0: input should be greater than or equal to 1."),
        ("optimizer.warmup_fraction=1", "optimizer.warmup_fraction=1: input should be less than 1."),
        ("optimizer.masked_fraction=0", "optimizer.masked_fraction=0: input should be greater than 0."),
        ("optimizer.max_grad_norm=0", "optimizer.max_grad_norm=0: input should be greater than 0."),
        ("optimizer.select_by=f1", "optimizer.select_by='f1': input should be 'loss', 'accuracy' or 'macro_f1'."),
        ("optimizer.precision=half", "optimizer.precision='half': input should be 'auto', 'float32' or 'bfloat16'."),
        ("optimizer.class_weights=on", "optimizer.class_weights=True: input should be 'none' or 'balanced'."),
        ("checkpoint.minutes=0", "checkpoint.minutes=0: input should be greater than 0."),
        ("checkpoint.keep=0", "checkpoint.keep=0: input should be greater than or equal to 1."),
        ("resources.num_workers=0", "resources.num_workers=0: input should be greater than or equal to 1."),
        ("resources.use_gpu=maybe", "resources.use_gpu='maybe': input should be 'auto' or a valid boolean."),
        ("objective=masked", "objective='masked': input should be 'classify' or 'masked_frame'."),
        ("seed=-1", "seed=-1: input should be greater than or equal to 0."),
        ("search={optimizer.epochs: []}", "search: 'optimizer.epochs' has no choices; give "),
        ("search={labels: [a]}", "search: 'labels' cannot be searched; choose keys of model, "),
    ],
)
def test_what_train_cannot_do_is_refused_in_one_line(override: str, expected: str) -> None:
    assert train_problem(override).startswith(expected)


def test_labels_come_from_one_place() -> None:
    both = "The configuration: give one of --labels FILE and --labels-from folder; there is "
    assert train_problem(labels_from="folder") == f"{both}labels and labels_from."
    assert train_problem("labels=null") == f"{both}neither."
    unlabelled = {"embeddings": "e", "output": "o", "objective": "masked_frame"}
    assert load_config(TrainConfig, values=unlabelled).labels is None


@pytest.mark.parametrize("gpt2", ["gpt2-medium", "~/my gpt2", "{n_layer: 3, n_head: 3, n_embd: 48}"])
def test_a_gpt2_is_a_name_or_sizes(gpt2: str) -> None:
    values = {"embeddings": "e", "output": "o", "labels": "l.csv"}
    found = load_config(TrainConfig, values=values, overrides=[f"model.gpt2={gpt2}"]).model.gpt2
    assert found == (gpt2 if isinstance(found, str) else Gpt2Size(n_layer=3, n_head=3, n_embd=48))


@pytest.mark.parametrize("key", ["resources.gpus=-1", "resources.concurrency=0", "top_k=0", "shard.max_videos=0"])
def test_what_classify_cannot_do_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=key.partition("=")[0].split(".")[-1]):
        load_config(ClassifyConfig, values={"embeddings": "e", "model": "m", "output": "o"}, overrides=[key])


def test_every_key_of_the_example_is_explained() -> None:
    lines = [line for line in EXAMPLE.read_text(encoding="utf-8").splitlines() if re.match(r"\s*\w+: \S", line)]
    leaves = sum(len(section) if isinstance(section, dict) else 1 for section in load().model_dump().values())
    assert len(lines) == leaves


def test_overrides_win_over_values_and_values_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "input: file\nretry: all\nsampling: {fps: 3.0, num_frames: 5}\n")
    config = load("sampling.fps=4", "output=override", path=path, retry=None)
    assert (config.input, config.output, config.retry) == ("videos", "override", "all")
    assert config.sampling == SamplingConfig(fps=4.0, num_frames=5)
    assert load("retry=none", path=path, retry="transient").retry == "none"
    assert load("retry=all", "retry=transient").retry == "transient"


def test_values_are_not_changed_by_an_override() -> None:
    values = {**REQUIRED, "sampling": {"fps": 1.0}}
    load_config(EmbedConfig, values=values, overrides=["sampling.fps=2"])
    assert values["sampling"] == {"fps": 1.0}


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load().retry = "all"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("sampling.fps=2", 2.0),
        ("sampling.fps=1e-1", 0.1),
        ("sampling.fps=.5", 0.5),
        ("resources.embed_gpus=auto", "auto"),
        ("resources.embed_gpus=0.5", 0.5),
        ("resources.embed_gpus=0", 0.0),
        ("resources.concurrency=3", 3),
        ("backbone.compile=false", False),
        ("backbone.compile=auto", "auto"),
        ("backbone.weights=/w/a=b.pth", "/w/a=b.pth"),
        ("input=s3://bucket/a b/*.mp4", "s3://bucket/a b/*.mp4"),
        ("input=~/videos", "~/videos"),
        (" retry = all", "all"),
        ("input='007'", "007"),
        ("input=2024-13-45", "2024-13-45"),
        (f"input={'[' * 50_000}", "[" * 50_000),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_override_is_read_as_yaml(override: str, value: object) -> None:
    found: Any = load(override)
    for part in override.partition("=")[0].strip().split("."):
        found = getattr(found, part)
    assert (found, type(found)) == (value, type(value))


def test_an_override_fills_a_section_that_the_file_leaves_empty(tmp_path: Path) -> None:
    assert load("sampling.fps=2", path=written(tmp_path, "sampling:\n")).sampling.fps == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("samplng.mode=all", "Unknown key 'samplng'. Did you mean 'sampling'? Choose one of input, output, sampling, "),
        ("nothing_like_it=1", "Unknown key 'nothing_like_it'. Choose one of input, output, "),
        ("sampling.num_frame=1", "Unknown key 'sampling.num_frame'. Did you mean 'num_frames'? Choose one of mode, "),
        ("sampling.mode=unform", "sampling.mode='unform': input should be 'uniform', 'fps', 'keyframes' or 'all'."),
        ("sampling.num_frames=true", "sampling.num_frames=True: input should be a valid integer."),
        ("sampling.num_frames=1.0", "sampling.num_frames=1.0: input should be a valid integer."),
        ("sampling.num_frames='1'", "sampling.num_frames='1': input should be a valid integer."),
        ("sampling.num_frames=0", "sampling.num_frames=0: input should be greater than or equal to 1."),
        ("sampling.fps=true", "sampling.fps=True: input should be a valid number."),
        ("sampling.fps=0", "sampling.fps=0: input should be greater than 0."),
        ("sampling.fps=.nan", "sampling.fps=nan: input should be a finite number."),
        ("decode.timeout_seconds=.inf", "decode.timeout_seconds=inf: input should be a finite number."),
        ("resources.embed_gpus=.nan", "resources.embed_gpus=nan: input should be 'auto' or a finite number."),
        ("resources.concurrency=true", "resources.concurrency=True: input should be 'auto' or a valid integer."),
        ("backbone.compile=maybe", "backbone.compile='maybe': input should be 'auto' or a valid boolean."),
        ("backbone.batch_size=", "backbone.batch_size=None: input should be a valid integer."),
        ("max_failed_fraction=2", "max_failed_fraction=2: input should be less than or equal to 1."),
        ("retry=some", "retry='some': input should be 'none', 'transient' or 'all'."),
        ("input=7", "input=7: input should be a valid string."),
        ("input={1: 2}", "input={1: 2}: input should be a valid string."),
        ("sampling={1: 2}", "sampling.1=1: keys should be strings."),
        (
            "sampling=3",
            "sampling=3: it should hold keys: mode, num_frames, fps, max_frames, nearest_keyframe, loop_filter.",
        ),
        ("shard=", "shard=None: it should hold keys: max_videos, max_frames."),
        ("sampling.mode.x=1", "sampling.mode={'x': 1}: input should be 'uniform', 'fps', 'keyframes' or 'all'."),
        ("sampling.num_frames=300", "sampling: num_frames 300 is more than max_frames 256; raise max_frames."),
        ("resources.concurrency=0", "resources: concurrency 0 must be auto or at least 1."),
        ("resources.embed_gpus=-1", "resources: embed_gpus -1.0 must be auto, 0 (no GPU) or more."),
        ("input.x=all", "--set 'input.x=all': 'input' holds 'videos', which has no key below it."),
        ("sampling.fps", "--set 'sampling.fps' is not key=value. Example: --set backbone.name=resnet18"),
        (" =1", "--set ' =1' is not key=value. Example: --set backbone.name=resnet18"),
    ],
)
def test_an_error_is_one_line_with_the_value_and_the_choices(override: str, expected: str) -> None:
    if expected.endswith(", "):
        assert problem(override).startswith(expected)
    else:
        assert problem(override) == expected


def test_a_long_value_is_shortened() -> None:
    assert len(problem(f"retry={'x' * 10_000}")) < 400


@pytest.mark.parametrize("key", ["input", "output"])
def test_what_is_missing_is_named(key: str) -> None:
    expected = f"'{key}' is missing: give --{key} or the key '{key}' in the YAML file."
    assert problem(**{key: None}) == problem(**{key: None}, path=None)
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        load_config(EmbedConfig, values={name: value for name, value in REQUIRED.items() if name != key})


def test_a_uri_that_is_not_utf8_is_refused() -> None:
    name = b"caf\xe9".decode(errors="surrogateescape")  # as a command line hands it over
    assert problem(input=name).startswith(r"input='caf\udce9': should be UTF-8")
    assert problem(output=name).startswith(r"output='caf\udce9': should be UTF-8")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", r"'.*job\.yaml' is not YAML: .*line 1"),
        ("a: 2024-13-45", r"'.*job\.yaml' is not YAML: month must be in 1..12"),
        (b"a: \xff", r"'.*job\.yaml' is not YAML: .*0xff"),
        ("[" * 50_000, r"'.*job\.yaml' is not YAML: maximum recursion"),
        ("- a\n- b\n", r"'.*job\.yaml' holds a list; a configuration is a mapping of keys to values\."),
        ("hello", r"'.*job\.yaml' holds a str; a configuration"),
        ("sampling:\n", r"sampling=None: it should hold keys: mode, "),
        ("retry: none\nretry: all\n", r"'.*job\.yaml' is not YAML: .*'retry' stands there twice.*line 1"),
        ("sampling: {fps: 1, fps: 2}\n", r"'fps' stands there twice"),
        ("on: 1\n", r"Unknown key 'True'|keys should be strings"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_file_that_is_wrong_is_named(tmp_path: Path, text: str | bytes, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        load(path=written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(
            ConfigError, match=rf"^Cannot read the configuration '{path}': .*Give the path of a YAML file\.$"
        ):
            load(path=path)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load(path=written(tmp_path, "# nothing\n")) == EmbedConfig.model_validate(REQUIRED)


FINITE = st.floats(min_value=1e-6, max_value=1e12)
VALID: dict[str, st.SearchStrategy[Any]] = {
    "input": st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    "retry": st.sampled_from(["none", "transient", "all"]),
    "max_failed_fraction": st.floats(0, 1),
    "sampling.mode": st.sampled_from(["uniform", "fps", "keyframes", "all"]),
    "sampling.num_frames": st.integers(1, 256),
    "sampling.fps": FINITE | st.integers(1, 100),
    "sampling.nearest_keyframe": st.booleans(),
    "sampling.loop_filter": st.booleans(),
    "decode.timeout_seconds": FINITE,
    "decode.max_size_bytes": st.integers(1, 2**63),
    "backbone.name": st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    "backbone.compile": st.sampled_from(["auto", True, False]),
    "resources.embed_gpus": st.just("auto") | st.floats(0, 8),
    "resources.concurrency": st.just("auto") | st.integers(1, 1000),
}


@settings(max_examples=200, deadline=None, database=None)
@given(chosen=st.fixed_dictionaries({}, optional=VALID))
def test_any_valid_value_survives_an_override(chosen: dict[str, Any]) -> None:
    config: Any = load(*(f"{key}={as_yaml(value)}" for key, value in chosen.items()))
    for key, value in chosen.items():
        found = config
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value
        assert isinstance(found, bool) == isinstance(value, bool)


@settings(max_examples=200, deadline=None, database=None)
@given(override=st.text(max_size=40) | st.builds("{}={}".format, st.sampled_from(sorted(VALID)), st.text(max_size=40)))
def test_any_text_is_taken_or_refused_in_one_line(override: str) -> None:
    try:
        load(override)
    except ConfigError as error:
        assert str(error).isprintable()  # noqa: PT017 - either end is right
