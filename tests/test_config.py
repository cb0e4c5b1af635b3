"""A configuration is taken literally, and an error in it is one line that names the key and the value."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from raypipe.config import ClassifyConfig, EmbedConfig, Gpt2Size, SamplingConfig, TrainConfig, load_config
from raypipe.config.embed import ShardConfig
from raypipe.errors import ConfigError
from support.properties import examples

EXAMPLE = Path(__file__).parents[1] / "jobs" / "embed.yaml"
AUTO = {  # for classify, and for next_video
    "batch_size": (16, 128),
    "weight_decay": (0.05, 0.01),
    "warmup_fraction": (0.1, 0.01),
    "max_grad_norm": (1.0, 5.0),
    "early_stop_epochs": (30, 10),
    "frame_dropout": (0.1, 0.1),
    "select_by": ("loss", "ndcg"),
}
TRAIN_EXAMPLE = EXAMPLE.with_name("train.yaml")
REQUIRED = {"input": "videos", "output": "embeddings"}


def load(*overrides: str, path: Path | None = None, **values: object) -> EmbedConfig:
    return load_config(EmbedConfig, path, values=REQUIRED | values, overrides=overrides)


def problem(*overrides: str, path: Path | None = None, **values: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(*overrides, path=path, **values)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    return caught.value


def assert_names(error: ConfigError, key: str, value: object, *said: str) -> None:
    """Check the key and the value of an error, and the texts that it must show or offer as choices."""
    assert error.key == key
    assert repr(error.value) == repr(value)  # nan is not equal to itself, and 1 is equal to True
    assert [one for one in said if one not in str(error)] == []


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
    assert load_config(TrainConfig, TRAIN_EXAMPLE) == defaults
    settled = defaults.model_dump()
    assert tree["optimizer"].keys() == settled["optimizer"].keys()
    for key in AUTO:
        assert tree["optimizer"].pop(key) == "auto"
        del settled["optimizer"][key]
    assert tree == settled


def test_every_key_of_the_example_of_train_is_on_a_separate_line() -> None:
    text = TRAIN_EXAMPLE.read_text(encoding="utf-8")
    assert len(re.findall(r"^ *\w+: \S", text, re.MULTILINE)) == leaves_of(yaml.safe_load(text))


def train_problem(*overrides: str, **values: object) -> ConfigError:
    required = {"embeddings": "e", "output": "o", "labels": "l.csv"}
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, values=required | values, overrides=overrides)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("override", "value", "said"),
    [
        ("model.gpt2.n_head=3", {"n_head": 3}, ("n_embd 128", "n_head 3")),
        ("model.gpt2=7", 7, ("string", "Gpt2Size")),
        ("model.freeze=most", "most", ("'most'", "none", "gpt2", "all_but_last_K")),
        ("model.freeze=all_but_last_0", "all_but_last_0", ("'all_but_last_0'", "all_but_last_K")),
        ("model.lora.rank=-1", -1, ("-1", " 0.")),
        ("model.dropout=1", 1, ("less than 1.",)),
        ("model.max_frames=0", 0, (" 1.",)),
        ("data.validation_fraction=1", 1, ("less than 1.",)),
        ("data.max_unknown_fraction=2", 2, (" 1.",)),
        ("optimizer.learning_rate=0", 0, ("'auto'", "greater than 0.")),
        ("optimizer.learning_rate=-0.1", -0.1, ("'auto'", "greater than 0.")),
        ("optimizer.learning_rate=fast", "fast", ("'fast'", "'auto'", "number")),
        ("optimizer.learning_rate=.inf", float("inf"), ("'auto'", "finite")),
        ("optimizer.epochs=0", 0, (" 1.",)),
        ("optimizer.epochs=1.5", 1.5, ("integer",)),
        ("optimizer.accumulate=0", 0, (" 1.",)),
        ("optimizer.warmup_fraction=1", 1, ("less than 1.",)),
        ("optimizer.masked_fraction=0", 0, ("greater than 0.",)),
        ("optimizer.max_grad_norm=0", 0, ("greater than 0.",)),
        ("checkpoint.minutes=0", 0, ("greater than 0.",)),
        ("checkpoint.keep=0", 0, (" 1.",)),
        ("resources.num_workers=0", 0, (" 1.",)),
        ("resources.use_gpu=maybe", "maybe", ("'auto'", "boolean")),
        ("seed=-1", -1, (" 0.",)),
        ("search={optimizer.epochs: []}", {"optimizer.epochs": []}, ("'optimizer.epochs'",)),
        ("search={labels: [a]}", {"labels": ["a"]}, ("'labels'", "model", "optimizer", "seed")),
    ],
)
def test_what_train_cannot_do_is_refused_in_one_line(override: str, value: object, said: tuple[str, ...]) -> None:
    """The text after a value is pydantic's own, or holds the numbers that do not fit together."""
    key = "model.gpt2" if "gpt2" in override else override.partition("=")[0]
    assert_names(train_problem(override), key, value, *said)


@pytest.mark.parametrize(
    ("override", "value", "choices"),
    [
        ("optimizer.select_by=f1", "f1", ("loss", "accuracy", "macro_f1", "ndcg", "hr")),
        ("optimizer.precision=half", "half", ("auto", "float32", "bfloat16")),
        ("optimizer.class_weights=on", True, ("none", "balanced")),
        ("objective=masked", "masked", ("classify", "self_train", "masked_frame", "frame_order", "next_video")),
        ("labels_from=csv", "csv", ("folder",)),
    ],
)
def test_an_invalid_choice_of_train_is_reported_with_the_choices(
    override: str, value: object, choices: tuple[str, ...]
) -> None:
    error = train_problem(override)
    assert_names(error, override.partition("=")[0], value, repr(value))
    assert error.choices == choices


@pytest.mark.parametrize(
    ("override", "choices", "near"),
    [
        ("optimizer.epoch=3", {"epochs", "batch_size"}, "epochs"),
        ("model.lora.rnk=3", {"rank", "alpha", "dropout"}, "rank"),
    ],
)
def test_an_unknown_key_of_train_is_reported_with_the_keys_of_its_section(
    override: str, choices: set[str], near: str
) -> None:
    error = train_problem(override)
    assert_names(error, override.partition("=")[0], override.partition("=")[0], repr(near))
    assert choices <= set(error.choices)


def test_labels_come_from_one_place() -> None:
    both, neither = train_problem(labels_from="folder"), train_problem("labels=null")
    for error in (both, neither):
        assert error.key == ""  # two keys are affected
        assert "--labels FILE" in str(error)
        assert "--labels-from folder" in str(error)
    assert "labels_from" in str(both)
    assert "labels_from" not in str(neither)
    unlabelled = {"embeddings": "e", "output": "o", "objective": "masked_frame"}
    assert load_config(TrainConfig, values=unlabelled).labels is None


NEXT_VIDEO = {"objective": "next_video", "index": "i", "history": "h", "output": "o"}


def test_auto_is_a_value_for_the_objective() -> None:
    classify = load_config(TrainConfig, values={"embeddings": "e", "labels": "l", "output": "o"})
    ranker = load_config(TrainConfig, values=NEXT_VIDEO, overrides=[f"optimizer.{key}=auto" for key in AUTO])
    for key, expected in AUTO.items():
        assert (getattr(classify.optimizer, key), getattr(ranker.optimizer, key)) == expected
    assert load_config(TrainConfig, ranker) == ranker
    given = load_config(TrainConfig, values=NEXT_VIDEO, overrides=["optimizer.batch_size=7"]).optimizer
    assert (given.batch_size, given.weight_decay) == (7, 0.01)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.head=auto"], "loss"),
        (["model.head=probe"], "loss"),
        (["model.head=gpt2"], "accuracy"),
        (["model.head=gpt2", "optimizer.select_by=loss"], "loss"),
        (["model.head=probe", "optimizer.select_by=macro_f1"], "macro_f1"),
        (["objective=masked_frame", "labels=null"], "accuracy"),  # is not measured, so the loss decides
    ],
)
def test_a_probe_is_selected_by_loss(overrides: list[str], expected: str) -> None:
    values = {"embeddings": "e", "labels": "l", "output": "o", "optimizer": {"select_by": "auto"}}
    config = load_config(TrainConfig, values=values, overrides=overrides)
    assert config.optimizer.select_by == expected
    assert load_config(TrainConfig, config) == config == TrainConfig.model_validate_json(config.model_dump_json())
    assert TrainConfig(**{key: getattr(config, key) for key in config.model_fields_set}) == config


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({**NEXT_VIDEO, "history": None}, "history"),
        ({**NEXT_VIDEO, "index": None}, "index"),
        ({**NEXT_VIDEO, "embeddings": "e"}, "embeddings"),
        ({**NEXT_VIDEO, "labels": "l"}, "labels"),
        ({**NEXT_VIDEO, "init_from": "m"}, "init_from"),
        ({**NEXT_VIDEO, "model": {"dropout": 0.2}}, "model"),
        ({**NEXT_VIDEO, "optimizer": {"select_by": "accuracy"}}, "accuracy"),
        ({**NEXT_VIDEO, "optimizer": {"select_by": "loss"}}, "loss"),
        ({**NEXT_VIDEO, "ranker": {"cut": "2026-05-31"}}, "cut"),
        ({**NEXT_VIDEO, "ranker": {"holdout": "time", "cut": "yesterday"}}, "ranker.cut"),
        ({"embeddings": "e", "labels": "l", "output": "o", "history": "h"}, "history"),
        ({"embeddings": "e", "labels": "l", "output": "o", "ranker": {"n_head": 4}}, "ranker"),
        ({"embeddings": "e", "labels": "l", "output": "o", "optimizer": {"select_by": "ndcg"}}, "ndcg"),
        ({"labels": "l", "output": "o"}, "embeddings"),
    ],
)
def test_an_objective_has_its_inputs_and_no_others(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, values=values)
    assert named in f"{caught.value.key} {caught.value}"


def test_a_cut_without_a_zone_is_utc() -> None:
    for cut in ("1970-01-02", "1970-01-02T01:00:00+01:00"):
        config = load_config(TrainConfig, values={**NEXT_VIDEO, "ranker": {"holdout": "time", "cut": cut}})
        assert config.ranker.cut_seconds == 86_400


@pytest.mark.parametrize("gpt2", ["gpt2-medium", "~/my gpt2", "{n_layer: 3, n_head: 3, n_embd: 48}"])
def test_a_gpt2_is_a_name_or_sizes(gpt2: str) -> None:
    values = {"embeddings": "e", "output": "o", "labels": "l.csv"}
    found = load_config(TrainConfig, values=values, overrides=[f"model.gpt2={gpt2}"]).model.gpt2
    assert found == (gpt2 if isinstance(found, str) else Gpt2Size(n_layer=3, n_head=3, n_embd=48))


@pytest.mark.parametrize("key", ["resources.gpus=-1", "resources.concurrency=0", "top_k=0", "shard.max_videos=0"])
def test_what_classify_cannot_do_is_refused(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(ClassifyConfig, values={"embeddings": "e", "model": "m", "output": "o"}, overrides=[key])
    assert f"{caught.value.key}={caught.value.value}" == key


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
    ("override", "value", "said"),
    [
        ("sampling.num_frames=true", True, ("integer",)),
        ("sampling.num_frames=1.0", 1.0, ("integer",)),
        ("sampling.num_frames='1'", "1", ("integer",)),
        ("sampling.num_frames=0", 0, (" 1.",)),
        ("sampling.fps=true", True, ("number",)),
        ("sampling.fps=0", 0, ("greater than 0.",)),
        ("sampling.fps=.nan", float("nan"), ("finite",)),
        ("decode.timeout_seconds=.inf", float("inf"), ("finite",)),
        ("resources.embed_gpus=.nan", float("nan"), ("'auto'", "finite")),
        ("resources.embed_gpus=-1", -1, ("'auto'", "equal to 0.")),
        ("resources.concurrency=true", True, ("'auto'", "integer")),
        ("resources.concurrency=0", 0, ("'auto'", "equal to 1.")),
        ("backbone.compile=maybe", "maybe", ("'auto'", "boolean")),
        ("backbone.batch_size=", None, ("integer",)),
        ("max_failed_fraction=2", 2, (" 1.",)),
        ("input=7", 7, ("string",)),
        ("input={1: 2}", {1: 2}, ("string",)),
    ],
)
def test_an_error_is_one_line_with_the_value_and_what_it_should_be(
    override: str, value: object, said: tuple[str, ...]
) -> None:
    """The text after the value is pydantic's own."""
    assert_names(problem(override), override.partition("=")[0], value, repr(value), *said)


@pytest.mark.parametrize(
    ("override", "key", "value", "choices", "near"),
    [
        ("samplng.mode=all", "samplng", "samplng", EmbedConfig, "sampling"),
        ("nothing_like_it=1", "nothing_like_it", "nothing_like_it", EmbedConfig, None),
        ("sampling.num_frame=1", "sampling.num_frame", "sampling.num_frame", SamplingConfig, "num_frames"),
        ("sampling=3", "sampling", 3, SamplingConfig, None),
        ("shard=", "shard", None, ShardConfig, None),
        ("sampling.mode=unform", "sampling.mode", "unform", ("uniform", "fps", "keyframes", "all"), "uniform"),
        ("sampling.mode.x=1", "sampling.mode", {"x": 1}, ("uniform", "fps", "keyframes", "all"), None),
        ("retry=some", "retry", "some", ("none", "transient", "all"), None),
    ],
)
def test_an_error_offers_the_choices_and_the_nearest(
    override: str, key: str, value: object, choices: type[BaseModel] | tuple[str, ...], near: str | None
) -> None:
    error = problem(override)
    assert_names(error, key, value, repr(value))
    assert error.choices == (choices if isinstance(choices, tuple) else tuple(choices.model_fields))
    suggested = [choice for choice in error.choices if repr(choice) in str(error)]
    assert suggested == ([] if near is None else [near])


@pytest.mark.parametrize(
    ("override", "key", "value", "said"),
    [
        ("sampling={1: 2}", "sampling.1", 1, ("'sampling.1'", "num_frames")),
        ("on=1", "on", "on", ("'on'",)),
        ("sampling.num_frames=300", "sampling", {"num_frames": 300}, ("num_frames 300", "max_frames 256")),
        ("input.x=all", "input", "videos", ("'input.x=all'", "'videos'")),
        ("sampling.fps", "--set", "sampling.fps", ("'sampling.fps'", "--set backbone.name=resnet18")),
        (" =1", "--set", " =1", ("' =1'", "--set backbone.name=resnet18")),
    ],
)
def test_an_error_of_another_kind_names_what_is_wrong(
    override: str, key: str, value: object, said: tuple[str, ...]
) -> None:
    assert_names(problem(override), key, value, *said)


def test_a_key_below_a_value_is_named_with_its_sections() -> None:
    error = problem("sampling.fps=3", "sampling.fps.x=1")
    assert_names(error, "sampling.fps", 3, "'sampling.fps'")


def test_a_long_value_is_shortened() -> None:
    assert len(str(problem(f"retry={'x' * 10_000}"))) < 400


@pytest.mark.parametrize("key", ["input", "output"])
def test_a_missing_key_is_named(key: str) -> None:
    without = {name: value for name, value in REQUIRED.items() if name != key}
    for values in (without, without | {key: None}):
        with pytest.raises(ConfigError) as caught:
            load_config(EmbedConfig, values=values)
        assert_names(caught.value, key, None, repr(key))
        assert f"--{key}" in caught.value.remedy


def test_a_uri_that_is_not_utf8_is_refused() -> None:
    name = b"caf\xe9".decode(errors="surrogateescape")  # as a command line passes it
    for key in ("input", "output"):
        assert_names(problem(**{key: name}), key, name, r"'caf\udce9'", "UTF-8")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", ("line 1",)),
        ("a: 2024-13-45", ("month must be in 1..12",)),
        (b"a: \xff", ("0xff",)),
        ("[" * 50_000, ("recursion",)),
        ("- a\n- b\n", ("list",)),
        ("hello", ("str",)),
        ("retry: none\nretry: all\n", ("'retry'", "line 1")),
        ("sampling: {fps: 1, fps: 2}\n", ("'fps'", "line 1")),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_file_that_is_not_a_mapping_in_yaml_is_named(
    tmp_path: Path, text: str | bytes, said: tuple[str, ...]
) -> None:
    """The message is PyYAML's or Python's own text, the type of the content, or the duplicate key."""
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path=path)
    error = caught.value
    assert error.key == str(path)
    assert "\n" not in str(error)
    assert str(error).startswith(repr(str(path)))
    assert [one for one in said if one not in str(error)] == []


@pytest.mark.parametrize(
    ("text", "key", "value"), [("sampling:\n", "sampling", None), ("on: 1\n", "True", True), ("2: a\n", "2", 2)]
)
def test_a_key_of_a_file_that_is_wrong_is_named(tmp_path: Path, text: str, key: str, value: object) -> None:
    assert_names(problem(path=written(tmp_path, text)), key, value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "Is a directory")):
        error = problem(path=path)
        assert_names(error, str(path), None, repr(str(path)), reason)
        assert "YAML" in error.remedy


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


@settings(max_examples=examples(200))
@given(chosen=st.fixed_dictionaries({}, optional=VALID))
def test_any_valid_value_survives_an_override(chosen: dict[str, Any]) -> None:
    config: Any = load(*(f"{key}={as_yaml(value)}" for key, value in chosen.items()))
    for key, value in chosen.items():
        found = config
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value
        assert isinstance(found, bool) == isinstance(value, bool)


@settings(max_examples=examples(200))
@given(override=st.text(max_size=40) | st.builds("{}={}".format, st.sampled_from(sorted(VALID)), st.text(max_size=40)))
def test_any_text_is_accepted_or_refused_in_one_line(override: str) -> None:
    try:
        load(override)
    except ConfigError as error:
        assert str(error).isprintable()  # noqa: PT017 - both outcomes are right
