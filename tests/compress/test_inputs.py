"""Students learn from all videos except those for validation and for testing, with the labels of the model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from raypipe.config import CompressConfig, TrainConfig
from raypipe.errors import ConfigError, FingerprintError
from raypipe.jobs.compress.inputs import find_videos, unseen_probe
from raypipe.jobs.train.checkpoints import saved_files
from raypipe.jobs.train.classifier.probing import TrainedProbe
from raypipe.jobs.train.inputs import TARGETS, find_samples
from raypipe.models.model_files import ModelFiles
from raypipe.schema import VIDEO_ID
from raypipe.storage import Folder
from support.tiny_models import tiny_classifier
from support.train_runs import DIM, LABELS, embed_all, video_ids

IDS = video_ids(48)


@pytest.fixture
def embeddings(tmp_path: Path) -> Folder:
    return embed_all(Folder(str(tmp_path / "embeddings")), IDS)


def files_of(**config: Any) -> ModelFiles:  # noqa: ANN401 - keys of the configuration
    names = list(reversed(LABELS))  # another order than that of the labels file
    model = tiny_classifier(**{"names": names, "embedding_dim": DIM, **config})
    return ModelFiles(saved_files(model, metrics={}), "digest", "here")


def config_of(embeddings: Folder, **more: Any) -> CompressConfig:  # noqa: ANN401 - of any type
    given = {"model": "m", "output": "o", "embeddings": embeddings.uri, "data": {"validation_fraction": 0.25}}
    return CompressConfig.model_validate({**given, **more})


def write_labels(path: Path, ids: list[str], *, split: dict[str, str] | None = None) -> str:
    rows = [f"{one},{one.partition('/')[0]}" + (f",{split.get(one, 'train')}" if split else "") for one in ids]
    path.write_text("\n".join(["video_id,label" + (",split" if split else ""), *rows]))
    return str(path)


def test_the_split_is_that_of_the_training(embeddings: Folder, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.csv", IDS[:24])
    found = find_videos(config_of(embeddings, labels=labels), files_of())
    keys = {"embeddings": embeddings.uri, "output": "o", "labels": labels, "data": {"validation_fraction": 0.25}}
    trained = find_samples(TrainConfig.model_validate(keys))
    assert found.validation[VIDEO_ID].to_pylist() == trained.validation[VIDEO_ID].to_pylist()
    learned = found.train[VIDEO_ID].to_pylist()
    assert sorted(learned) == sorted({*trained.train[VIDEO_ID].to_pylist(), *IDS[24:]})
    assert found.num_labelled == 24
    assert found.train["index"].to_pylist() == list(range(len(learned)))
    names = list(reversed(LABELS))
    for video_id, targets in zip(learned, found.train[TARGETS].to_pylist(), strict=True):
        assert targets == ([names.index(video_id.partition("/")[0])] if video_id in IDS[:24] else [])


def test_test_videos_are_never_learned_from(embeddings: Folder, tmp_path: Path) -> None:
    split = dict.fromkeys(IDS[:8], "test") | dict.fromkeys(IDS[8:16], "validation")
    labels = write_labels(tmp_path / "labels.csv", IDS[:24], split=split)
    found = find_videos(config_of(embeddings, labels=labels), files_of())
    assert sorted(found.validation[VIDEO_ID].to_pylist()) == sorted(IDS[8:16])
    assert sorted(found.train[VIDEO_ID].to_pylist()) == sorted(IDS[16:])


def test_without_labels_some_videos_are_held_out(embeddings: Folder) -> None:
    found = find_videos(config_of(embeddings, distill={"max_videos": 10}), files_of())
    assert (found.train.num_rows, found.validation.num_rows, found.num_labelled) == (10, 12, 0)
    assert not {*found.train[VIDEO_ID].to_pylist()} & {*found.validation[VIDEO_ID].to_pylist()}
    assert find_videos(config_of(embeddings, labels_from="folder"), files_of()).num_labelled == 48


def test_what_does_not_fit_is_refused(embeddings: Folder, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.csv", IDS)
    with pytest.raises(ConfigError) as caught:
        find_videos(config_of(embeddings, labels=labels), files_of(names=LABELS[:3]))
    assert (caught.value.key, caught.value.value) == ("label", LABELS[3])
    with pytest.raises(ConfigError) as caught:
        find_videos(config_of(embeddings, labels=labels, data={"validation_fraction": 0.0}), files_of())
    assert caught.value.key == "data.validation_fraction"
    with pytest.raises(FingerprintError):
        find_videos(config_of(embeddings), files_of(embedding_dim=DIM + 1))


def test_the_probe_from_before_its_last_fit_is_found(tmp_path: Path) -> None:
    model, output = tiny_classifier(probe="mean", gpt2_reads="changes"), Folder(str(tmp_path))
    weights = {name: tensor.clone() for name, tensor in model.probe.state_dict().items()}
    files = ModelFiles(saved_files(model, metrics={}), "digest", "here")
    assert unseen_probe(output, files) is None
    before = {name: tensor + 1 for name, tensor in weights.items()}
    for refitted, expected in (
        (weights, before),
        (None, None),
        ({name: tensor.clone() for name, tensor in before.items()}, None),
    ):
        probe = TrainedProbe("mean", before, torch.zeros(2, 3), loss=0.0, stride=1, refitted=refitted)
        output.put("probe.safetensors", probe.to_bytes())
        found = unseen_probe(output, files)
        assert (found is None) == (expected is None)
        assert found is None or all(torch.equal(found[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"index": "i"},
        {"index": "i", "history": "h", "labels": "l"},
        {"embeddings": "e", "index": "i", "history": "h"},
        {"embeddings": "e", "labels": "l", "labels_from": "folder"},
    ],
)
def test_the_inputs_are_of_one_kind(keys: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        CompressConfig(model="m", output="o", **keys)
