"""A training is fully specified before it starts, and compared with the run in its output."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn
from transformers import GPT2Model

from raypipe.config import TrainConfig, load_config
from raypipe.errors import CommitError, ConfigError, FingerprintError, RaypipeError, WeightsError
from raypipe.jobs.train.checkpoints import put_model
from raypipe.jobs.train.inputs import INDEX, TARGETS, TrainingSamples
from raypipe.jobs.train.run_spec import (
    RunSpec,
    auto_learning_rate,
    build,
    check_same_run,
    classifier_config,
    prepare,
    run_facts,
)
from raypipe.models.gpt2 import Gpt2
from raypipe.storage import Folder
from support.embed_outputs import replace_object
from support.tiny_models import GPT2, tiny_classifier, tiny_masked_frame

SMALL = ("model.gpt2.n_layer=2", "model.gpt2.n_head=2", "model.gpt2.n_embd=16")
MARK = "f" * 16


def configure(*overrides: str, **values: object) -> TrainConfig:
    required = {"embeddings": "e", "output": "o", "labels": "l.csv"}
    gpt2 = () if any(one.startswith("model.gpt2=") for one in overrides) else SMALL
    return load_config(TrainConfig, values={**required, **values}, overrides=(*gpt2, *overrides))


def samples(targets: list[list[int]] | None = None, **keys: Any) -> TrainingSamples:  # noqa: ANN401 - passed on
    targets = [[0], [1], [0]] if targets is None else targets
    names = [str(at) for at in range(len(targets))]
    numbers = np.arange(len(targets))
    table = pa.table(
        {"file": names, "video_id": names, TARGETS: pa.array(targets, pa.list_(pa.int32())), INDEX: numbers}
    )
    given: dict[str, Any] = {
        "train": table,
        "validation": table.slice(0, 1),
        "label_names": ("cat", "dog"),
        "multi_label": False,
        "embedding_dim": 8,
        "fingerprint": MARK,
        "comparable_fingerprints": frozenset(),
        "num_unknown": 0,
        "num_without_frames": 0,
        "digest": "d",
    }
    return TrainingSamples(**{**given, **keys})


def spec(*overrides: str, **keys: Any) -> RunSpec:  # noqa: ANN401 - passed on
    return prepare(configure(*overrides), samples(**keys))


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    GPT2Model(tiny_classifier(gpt2={**GPT2, "n_positions": 16}).config.gpt2).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def test_a_configuration_matches_the_samples() -> None:
    config = spec("model.max_frames=32", "model.dropout=0.25").network.config
    assert (config.embedding_dim, config.embedding_fingerprint, config.label_names) == (8, MARK, ["cat", "dog"])
    assert (config.max_frames, config.gpt2.n_positions, config.dropout, config.gpt2.attn_pdrop) == (32, 32, 0.25, 0.25)
    assert config.problem_type == "single_label_classification"
    assert spec(multi_label=True).network.config.problem_type == "multi_label_classification"


def test_dropout_is_in_every_part_of_the_model() -> None:
    model = build(spec("model.dropout=0.35").network, seed=0)
    rates = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    rates |= {block.attn.config.attn_pdrop for block in model.encoder.gpt2.h}
    assert rates == {0.35}


def test_a_pretrained_gpt2_limits_the_positions(gpt2: Path) -> None:
    network = spec(f"model.gpt2={gpt2}").network
    assert network.config.max_frames == 16
    assert network.gpt2.weights
    assert spec(f"model.gpt2={gpt2}", "model.max_frames=9").network.config.max_frames == 9


@pytest.mark.parametrize(
    ("overrides", "pretrained", "expected"),
    [
        ((), False, 6e-3 * 128 / 16),
        (("model.head=gpt2",), False, 3e-3 * 128 / 16),
        (("objective=masked_frame", "labels=null"), False, 3e-3 * 128 / 16),
        ((), True, 1e-4),
        (("model.lora.rank=2",), True, 1e-3),
        (("optimizer.learning_rate=0.5",), False, 0.5),
        (("optimizer.learning_rate=0.5", "model.lora.rank=2"), True, 0.5),
    ],
)
def test_auto_is_a_rate_for_what_is_trained(
    gpt2: Path, overrides: tuple[str, ...], *, pretrained: bool, expected: float
) -> None:
    given = (f"model.gpt2={gpt2}", *overrides) if pretrained else overrides
    assert spec(*given).learning_rate == pytest.approx(expected)


def test_auto_is_a_rate_for_each_way_to_begin() -> None:
    assert auto_learning_rate(n_embd=128, pretrained=False, lora=False) == 3e-3
    assert auto_learning_rate(n_embd=256, pretrained=False, lora=False) == 1.5e-3
    assert auto_learning_rate(n_embd=256, pretrained=False, lora=False, reads_changes=True) == 3e-3
    assert auto_learning_rate(n_embd=768, pretrained=True, lora=False) == 1e-4
    assert auto_learning_rate(n_embd=768, pretrained=True, lora=True) == 1e-3


def test_weights_of_labels_have_a_mean_of_1_over_the_training_videos() -> None:
    targets = [[0]] * 6 + [[1]] * 2
    assert spec("optimizer.class_weights=none", targets=targets).class_weights is None
    weights = spec("optimizer.class_weights=balanced", targets=targets).class_weights
    assert weights == pytest.approx([8 / 12, 8 / 4])
    assert weights is not None
    assert np.mean([weights[target] for (target,) in targets]) == pytest.approx(1)


def test_of_several_labels_the_ones_are_weighed_by_the_zeros() -> None:
    targets = [[0]] * 6 + [[0, 1]] * 2
    weights = spec("optimizer.class_weights=balanced", targets=targets, multi_label=True).class_weights
    assert weights == pytest.approx([0.1, 6 / 2])


def test_a_label_that_is_only_held_out_does_not_divide_by_zero() -> None:
    weights = spec("optimizer.class_weights=balanced", targets=[[0]] * 4).class_weights
    assert weights is not None
    assert np.isfinite(weights).all()


def problem(*overrides: str, kind: type[RaypipeError] = ConfigError, **keys: Any) -> RaypipeError:  # noqa: ANN401 - passed on
    with pytest.raises(kind) as caught:
        spec(*overrides, **keys)
    assert str(caught.value).isprintable()
    return caught.value


def test_more_blocks_than_there_are_cannot_be_trained() -> None:
    spec("model.freeze=all_but_last_2")
    error = problem("model.freeze=all_but_last_3")
    assert (error.key, error.value) == ("model.freeze", "all_but_last_3")
    assert "all_but_last_2" in error.remedy


@pytest.mark.parametrize("what", ["gpt2", "all_but_last_1"])
def test_adapters_freeze_by_themselves(what: str) -> None:
    error = problem(f"model.freeze={what}", "model.lora.rank=2")
    assert (error.key, error.value) == ("model.freeze", what)
    assert "model.lora.rank" in error.remedy


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\b3\b") as caught:
        classifier_config(configure(), samples(), Gpt2({**GPT2, "n_head": 3}), max_frames=4)
    assert (caught.value.key, caught.value.value) == ("model.gpt2.n_embd", 16)


def test_a_training_begins_with_a_model_of_the_same_embeddings(tmp_path: Path) -> None:
    put_model(Folder(str(tmp_path)), tiny_masked_frame(embedding_fingerprint=MARK), metrics={})
    found = spec(f"init_from={tmp_path}")
    assert found.network.init_from is not None
    assert (found.network.config.gpt2.n_layer, found.network.config.max_frames) == (2, 16)
    error = problem(f"init_from={tmp_path}", kind=FingerprintError, fingerprint="0" * 16)
    assert (error.key, error.value, error.expected) == ("embedding_fingerprint", "0" * 16, MARK)
    error = problem(f"init_from={tmp_path}", kind=FingerprintError, embedding_dim=9)
    assert (error.key, error.value, error.expected) == ("embedding_dim", 9, 8)
    assert problem(f"init_from={tmp_path}/none", kind=WeightsError).key == f"{tmp_path}/none"


def test_a_training_cannot_begin_with_a_probe_alone(tmp_path: Path) -> None:
    probe = tiny_classifier(embedding_fingerprint=MARK, probe="mean", has_gpt2=False)
    put_model(Folder(str(tmp_path)), probe, metrics={})
    for objective in (["objective=classify"], ["objective=masked_frame", "labels=null"]):
        error = problem(f"init_from={tmp_path}", *objective, kind=WeightsError)
        assert (error.key, error.value) == ("init_from", f"{tmp_path}/model")
        assert "model.head=gpt2" in error.remedy
    both = tiny_classifier(embedding_fingerprint=MARK, probe="mean")
    put_model(Folder(str(tmp_path / "both")), both, metrics={})
    built = build(spec(f"init_from={tmp_path}/both").network, seed=0)
    assert torch.equal(built.encoder.projection.weight, both.encoder.projection.weight)


@pytest.mark.parametrize(
    ("overrides", "num_validation", "has_probe", "stop_epoch"),
    [
        (["model.head=auto"], 2, True, None),
        (["model.head=auto"], 1, True, 0),  # with one video, there is no standard error
        (["model.head=auto"], 0, True, 0),
        (["model.head=probe"], 2, True, 0),
        (["model.head=gpt2"], 0, False, None),
        (["objective=masked_frame", "labels=null"], 0, False, None),
    ],
)
def test_gpt2_is_trained_if_videos_can_show_that_it_helps(
    overrides: list[str], num_validation: int, stop_epoch: int | None, *, has_probe: bool
) -> None:
    videos = samples()
    found = prepare(configure(*overrides), replace(videos, validation=videos.train.slice(0, num_validation)))
    assert (found.has_probe, found.stop_epoch) == (has_probe, stop_epoch)


def facts_of(*overrides: str, **keys: Any) -> dict[str, Any]:  # noqa: ANN401 - passed on
    return run_facts(spec(*overrides, **keys))


def test_the_same_run_is_the_same(folder: Folder) -> None:
    check_same_run(folder, facts_of())
    check_same_run(folder, facts_of())


@pytest.mark.parametrize(
    "override",
    ["output=x", "checkpoint.minutes=3", "checkpoint.keep=9", "resources.num_workers=2", "data.cache_bytes=7"],
)
def test_keys_that_change_no_outcome_may_change(tmp_path: Path, override: str) -> None:
    folder = Folder(str(tmp_path))
    check_same_run(folder, facts_of())
    check_same_run(folder, facts_of(override))


@pytest.mark.parametrize(
    ("key", "before", "now"),
    [
        ("optimizer.epochs", 60, 7),
        ("optimizer.learning_rate", "auto", 0.5),
        ("model.gpt2.n_layer", 2, 1),
        ("model.head", "auto", "probe"),
        ("seed", 0, 1),
        ("data.validation_fraction", 0.1, 0.2),
        ("problem_type", "auto", "multi_label"),
    ],
)
def test_another_run_is_refused_with_the_keys_that_differ(
    folder: Folder, key: str, before: object, now: object
) -> None:
    check_same_run(folder, facts_of())
    with pytest.raises(FingerprintError) as caught:
        check_same_run(folder, facts_of(f"{key}={now}"))
    error = caught.value
    assert (error.key, error.expected, error.value) == (key, before, now)
    assert all(token in str(error) for token in (folder.uri, key, repr(before), repr(now)))


def test_a_head_of_an_older_version_is_gpt2(tmp_path: Path) -> None:
    older = facts_of("model.head=gpt2")
    assert "head" not in older["settings"]["model"]
    check_same_run(Folder(str(tmp_path)), older)
    with pytest.raises(FingerprintError) as caught:
        check_same_run(Folder(str(tmp_path)), facts_of("optimizer.select_by=accuracy"))
    assert (caught.value.key, caught.value.expected, caught.value.value) == ("model.head", "gpt2", "auto")


def test_the_head_makes_no_difference_without_labels() -> None:
    masked = ("objective=masked_frame", "labels=null")
    assert facts_of(*masked) == facts_of(*masked, "model.head=probe")


def test_of_many_keys_three_are_named(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    check_same_run(folder, facts_of())
    with pytest.raises(FingerprintError) as caught:
        check_same_run(
            folder,
            facts_of(
                *(f"optimizer.{key}=9" for key in ("epochs", "batch_size", "accumulate")), "seed=4", "model.dropout=0"
            ),
        )
    said = str(caught.value)
    assert all(key in said for key in ("model.dropout", "optimizer.accumulate", "optimizer.batch_size"))
    assert not any(key in said for key in ("optimizer.epochs", "seed"))
    assert "2" in said.split()  # how many are not named


@pytest.mark.parametrize(
    ("key", "value", "told"), [("digest", "e", "samples"), ("fingerprint", "0" * 16, "embeddings")]
)
def test_other_samples_are_another_run(tmp_path: Path, key: str, value: str, told: str) -> None:
    folder = Folder(str(tmp_path))
    check_same_run(folder, facts_of())
    with pytest.raises(FingerprintError) as caught:
        check_same_run(folder, facts_of(**{key: value}))
    assert (caught.value.key, caught.value.value) == (told, value)


def test_other_weights_are_another_run(tmp_path: Path, gpt2: Path) -> None:
    before = facts_of(f"model.gpt2={gpt2}")
    assert before == facts_of(f"model.gpt2={gpt2}")
    torch.manual_seed(1)
    model = GPT2Model.from_pretrained(gpt2)
    with torch.no_grad():
        model.h[1].mlp.c_fc.weight[0, 0] += 1
    model.save_pretrained(gpt2)
    after = facts_of(f"model.gpt2={gpt2}")
    assert (before["settings"], before["data"]) == (after["settings"], after["data"])
    assert before["weights"] != after["weights"]
    folders = [str(tmp_path / name) for name in "ab"]
    for seed, folder in enumerate(folders):
        put_model(Folder(folder), tiny_masked_frame(seed=seed, embedding_fingerprint=MARK), metrics={})
    first, other = (facts_of(f"init_from={folder}")["weights"] for folder in folders)
    assert first != other


@pytest.mark.parametrize("data", [b"", b"[]", b"7", b"\xff"])
def test_an_invalid_run_file_is_named(tmp_path: Path, data: bytes) -> None:
    folder = Folder(str(tmp_path))
    check_same_run(folder, facts_of())
    replace_object(folder, "run.json", data)
    with pytest.raises(CommitError) as caught:
        check_same_run(folder, facts_of())
    assert caught.value.key == folder.child("run.json")
    assert str(caught.value).isprintable()
