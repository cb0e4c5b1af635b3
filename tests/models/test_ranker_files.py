"""A ranker is read only if all of its files are those that were saved."""

import json
from pathlib import Path

import numpy as np
import pytest

from raypipe.config import TrainConfig
from raypipe.errors import CommitError, WeightsError
from raypipe.jobs.train.checkpoints import put_model
from raypipe.jobs.train.ranker.histories import find_histories
from raypipe.models.ranker_files import OTHER_FILES, RankerFiles, read_ranker
from raypipe.search.projection import Projection
from raypipe.storage import Folder
from support.ranker_runs import put_inputs, put_ranker, ranker_config
from support.tiny_models import tiny_classifier


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    place = Folder(str(tmp_path / "inputs"))
    put_inputs(place)
    return ranker_config(place, Folder(str(tmp_path / "model")))


def test_a_ranker_has_what_its_training_knew(config: TrainConfig, tmp_path: Path) -> None:
    output = put_ranker(config)
    ranker, samples = read_ranker(output), find_histories(config)
    assert ranker.digest == read_ranker(Folder(output.child("model"))).digest
    assert ranker.config["metrics"] == {"ndcg_at_10": 0.5}
    watched = np.bincount(samples.events.items)
    counts = [watched[samples.items.position(video_id)] for video_id in ranker.video_ids]
    assert counts == sorted(counts, reverse=True)
    assert len(counts) == (watched > 0).sum() == ranker.config["num_ids"]
    assert ranker.fitted_events.tolist() == samples.event_hashes.tolist()
    assert ranker.facts == samples.facts
    assert (ranker.facts["holdout"], ranker.facts["own_vectors"]) == ("leave_one_out", False)
    (tmp_path / "projection").write_bytes(ranker.projection)
    assert Projection.load(tmp_path / "projection").dim == ranker.config["content_dim"]


def test_two_drivers_write_the_same_bytes_and_another_training_is_refused(config: TrainConfig) -> None:
    output = put_ranker(config)
    before = {stored.key: stored.etag for stored in output.list()}
    assert put_ranker(config) == output
    assert {stored.key: stored.etag for stored in output.list()} == before
    with pytest.raises(CommitError):
        put_ranker(config, seed=1)
    with pytest.raises(CommitError):
        put_ranker(config.model_copy(update={"ranker": config.ranker.model_copy(update={"min_events": 9})}))


def problem(output: Folder) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        read_ranker(output)
    assert str(caught.value).isprintable()
    return caught.value


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", *OTHER_FILES])
def test_a_file_that_is_missing_or_altered_is_named(config: TrainConfig, name: str) -> None:
    output = put_ranker(config)
    key = f"model/{name}"
    whole = output.read(key)
    output.put(key, whole[:-1] + bytes([whole[-1] ^ 1]) if name != "config.json" else whole + b" ")
    assert problem(output).key == output.child(key)
    output.delete(key)
    assert problem(output).key in {output.uri, output.child(key)}
    output.put(key, whole)
    assert isinstance(read_ranker(output), RankerFiles)


def test_a_file_without_a_digest_is_refused(config: TrainConfig) -> None:
    output = put_ranker(config)
    said = json.loads(output.read("model/complete.json"))
    del said["sha256"]["fitted_events.npy"]
    output.put("model/complete.json", json.dumps(said).encode())
    assert problem(output).key == output.child("model/fitted_events.npy")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"null", b'{"sha256": 1}'])
def test_an_invalid_list_of_files_is_refused(config: TrainConfig, data: bytes) -> None:
    output = put_ranker(config)
    output.put("model/complete.json", data)
    assert problem(output).key == output.uri


def test_a_classifier_is_not_a_ranker(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    assert problem(output).key == output.uri
    put_model(output, tiny_classifier(), metrics={})
    error = problem(output)
    assert (error.key, error.expected) == ("model_type", "raypipe_next_video")
