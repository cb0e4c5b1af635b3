"""A compressed ranker is read like any other, and the network in numpy gives the states of the one in torch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from raypipe.config import CompressConfig, TrainConfig
from raypipe.errors import ConfigError, FingerprintError, WeightsError
from raypipe.jobs.compress import compressing
from raypipe.jobs.compress.candidates import ORIGINAL, Candidate, measure
from raypipe.jobs.compress.inputs import find_users
from raypipe.jobs.compress.job import CompressionRun, run_compress
from raypipe.jobs.compress.ranker_students import build_ranker_model, ranker_candidates
from raypipe.models.ranker_files import RankerFiles, read_ranker
from raypipe.storage import Folder
from support.folders import keys
from support.ranker_runs import put_inputs, put_ranker, ranker_config


@pytest.fixture
def trained(tmp_path: Path) -> TrainConfig:
    """Return the configuration of a ranker with two blocks, which exists."""
    place = Folder(str(tmp_path / "inputs"))
    put_inputs(place)
    config = ranker_config(place, Folder(str(tmp_path / "ranker")), ranker={"n_layer": 2})
    put_ranker(config)
    return config


def compress_config(trained: TrainConfig, output: Path, **more: Any) -> CompressConfig:  # noqa: ANN401 - of any type
    given: dict[str, Any] = {"model": trained.output, "index": trained.index, "history": trained.history}
    return CompressConfig.model_validate({**given, "output": str(output), "max_accuracy_loss": 0.9, **more})


def test_every_candidate_has_the_states_of_its_network(trained: TrainConfig, tmp_path: Path) -> None:
    config, files = compress_config(trained, tmp_path / "out"), read_ranker(Folder(trained.output))
    found = ranker_candidates(files, find_users(config, files), config)
    assert found[0].name == ORIGINAL
    assert [(len(one.heads), one.int8) for one in found] == [(2, False), (2, False), (2, True), (1, False), (1, True)]
    ids = pa.array(files.video_ids)
    for one in found:
        stored = RankerFiles(one.files, "", one.name)
        model, given = build_ranker_model(stored), stored.tower(ids)
        rows = torch.arange(1, 5)
        content = torch.randn(4, given.weights.content_dim, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            vectors = model.vectors(rows, content)
            state = model.states(vectors[None], torch.ones(1, 4, dtype=torch.long))[0, -1].numpy()
        np.testing.assert_allclose(given.id_vectors[1:5], model.ids(rows).detach().numpy(), rtol=1e-6)
        np.testing.assert_allclose(given.weights.state(vectors.numpy()), state, atol=1e-5)
    sizes = [len(one.files["model.safetensors"]) for one in found]
    assert sizes[2] < sizes[1] <= sizes[0]


def compress(trained: TrainConfig, output: Path, **more: Any) -> CompressionRun:  # noqa: ANN401 - of any type
    return run_compress(compress_config(trained, output, **more))


def test_the_output_is_a_ranker_and_a_second_run_does_nothing(trained: TrainConfig, tmp_path: Path) -> None:
    before, output = read_ranker(Folder(trained.output)), tmp_path / "out"
    record = compress(trained, output, min_speedup=1.0).record
    assert (record.kind, record.score_name, record.num_labelled) == ("ranker", "NDCG@10", 0)
    after = read_ranker(Folder(str(output)))
    assert after.config["n_layer"] == record.kept_candidate.num_blocks
    assert (after.video_ids, after.facts) == (before.video_ids, before.facts)
    assert after.fitted_events.tolist() == before.fitted_events.tolist()
    assert keys(Folder(str(output)))[-2:] == ["report.html", "summary.json"]
    summary = json.loads((output / "summary.json").read_text())
    assert [one["name"] for one in summary["candidates"]] == [one.name for one in record.candidates]
    again = compress(trained, output, min_speedup=1.0)
    assert (again.is_new, again.record) == (False, record)
    with pytest.raises(FingerprintError):
        compress(trained, output, min_speedup=2.0)


def test_a_ranker_that_is_not_worth_it_stays_unchanged(trained: TrainConfig, tmp_path: Path) -> None:
    record = compress(trained, tmp_path / "out", min_speedup=1e6).record
    assert (record.chosen, record.pays_off) == (ORIGINAL, False)
    files = [read_ranker(Folder(str(place))).files for place in (trained.output, tmp_path / "out")]
    assert files[0] == files[1]


@pytest.mark.parametrize(("score", "is_chosen"), [(0.0498, True), (0.049, False)])
def test_the_loss_of_a_ranker_is_a_share_of_its_score(
    trained: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: float, *, is_chosen: bool
) -> None:
    made = [
        Candidate(name, [1], False, 1, {"model.safetensors": b"1"}, np.zeros(8), np.full(8, value), work=lambda: 1)  # noqa: FBT003 - int8
        for name, value in ((ORIGINAL, 0.05), ("small", score))
    ]
    monkeypatch.setattr(compressing, "ranker_candidates", lambda *_: made)
    monkeypatch.setattr(compressing, "measure", lambda found: [replace(one, speedup=2.0) for one in measure(found)])
    files, config = read_ranker(Folder(trained.output)), compress_config(trained, tmp_path, max_accuracy_loss=0.01)
    found = compressing.compress_ranker(config, files, find_users(config, files))
    assert found.chosen == ("small" if is_chosen else ORIGINAL)


def test_the_inputs_must_be_those_of_a_ranker(trained: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run_compress(CompressConfig(model=trained.output, output=str(tmp_path / "out"), embeddings=str(tmp_path)))
    assert caught.value.key == "index"
    with pytest.raises(ConfigError) as caught:
        run_compress(compress_config(trained, Path(trained.output)))
    assert caught.value.key == "output"
    files = read_ranker(Folder(trained.output))
    wrong = {**files.files, "config.json": json.dumps({**files.config, "n_embd": 8}).encode()}
    with pytest.raises(WeightsError):
        build_ranker_model(RankerFiles(wrong, "", "here"))
