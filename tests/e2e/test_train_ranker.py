"""The train job with objective next_video on a real Ray: its output, its refit, and a killed driver."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from raypipe.config import TrainConfig
from raypipe.jobs.train.job import run_train
from raypipe.jobs.train.run_spec import SELECTION
from raypipe.models.next_video import NextVideoModel
from raypipe.models.ranker_files import read_ranker
from raypipe.search.projection import PROJECTION
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from support.folders import keys
from support.processes import Driver, StartDriver, wait_until
from support.ranker_loops import NUM_VIDEOS, walks
from support.ranker_runs import put_inputs, ranker_config
from support.train_runs import history

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # each training starts Ray Train
_FILES = (
    "README.md",
    "blend.json",
    "complete.json",
    "config.json",
    "fitted_events.npy",
    "model.safetensors",
    "projection.safetensors",
    "training.json",
    "videos.parquet",
)


def test_a_ranker_is_trained_and_loads(bucket: str, ray_address: str, tmp_path: Path) -> None:
    assert ray_address
    place, output = Folder(bucket), Folder(f"{bucket}/model")
    put_inputs(place)
    config = ranker_config(place, output, cache=str(tmp_path / "cache"))
    run = run_train(config)
    assert keys(output, "model/") == [f"model/{name}" for name in _FILES]
    epochs = history(output)
    assert len(epochs) == 4
    assert epochs[-1]["hr_at_10"] > epochs[0]["hr_at_10"]
    best = max(epochs, key=lambda epoch: epoch["ndcg_at_10"])
    assert (run.record.best_epoch, run.record.selected_by) == (best["epoch"], "ndcg_at_10")
    summary = json.loads(output.read("summary.json"))
    assert summary["metrics"]["coverage_at_10"] == pytest.approx(best["coverage_at_10"])
    assert summary["history_facts"]["num_events"] == len(walks(96)) - 2 * 96
    assert b"<html" in output.read("report.html")
    assert b"NextVideoModel.from_pretrained" in output.read("model/README.md")

    ranker = read_ranker(output)
    version = Versions(Folder(place.child("index"))).current()
    assert ranker.facts["index_version"] == version
    assert ranker.projection == Folder(place.child("index")).read(f"versions/{version}/{PROJECTION}")
    assert len(ranker.fitted_events) == ranker.facts["num_events"]
    for name in _FILES:
        (tmp_path / name).write_bytes(output.read(f"model/{name}"))
    model = NextVideoModel.from_pretrained(tmp_path)
    assert model.ids.weight.shape == (len(ranker.video_ids) + 1, 16)
    assert model.config.metrics["ndcg_at_10"] == best["ndcg_at_10"]
    assert not run_train(config).is_new


def refitted_config(place: Folder, output: Folder, cache: Path) -> TrainConfig:
    return ranker_config(place, output, ranker={"holdout": "none"}, cache=str(cache), checkpoint={"minutes": 1e-6})


def test_a_ranker_is_refitted_on_all_events(bucket: str, ray_address: str, tmp_path: Path) -> None:
    assert ray_address
    place, first = Folder(bucket), Folder(f"{bucket}/first")
    put_inputs(place)
    record = run_train(refitted_config(place, first, tmp_path)).record
    assert record.is_refitted
    assert record.kept is not None
    assert record.kept.ndcg_at_10 is not None
    chosen = history(Folder(first.child(SELECTION)))
    assert [epoch.epoch for epoch in record.epochs] == [epoch["epoch"] for epoch in chosen]
    refitted = history(first)
    assert len(refitted) == record.best_epoch
    assert refitted[0]["ndcg_at_10"] is None
    ranker = read_ranker(first)
    assert len(ranker.fitted_events) == len(walks(96))
    assert ranker.config["metrics"]["ndcg_at_10"] == record.kept.ndcg_at_10
    assert len(read_ranker(Folder(first.child(SELECTION))).fitted_events) < len(ranker.fitted_events)


@pytest.mark.nightly  # two trainings, and one that is killed twice
def test_a_refitted_ranker_resumes(bucket: str, ray_address: str, start_driver: StartDriver, tmp_path: Path) -> None:
    assert ray_address
    place, first, cut = Folder(bucket), Folder(f"{bucket}/first"), Folder(f"{bucket}/cut")
    put_inputs(place)
    run_train(refitted_config(place, first, tmp_path))
    config = refitted_config(place, cut, tmp_path)
    for part in (SELECTION, ""):  # kill the driver in the first training, then in the second
        driver = start_driver(config, job="train")
        wait_for_checkpoint(driver, Folder(cut.child(part)) if part else cut, 4)
        driver.kill()
    driver = start_driver(config, job="train")
    assert driver.wait() == 0, driver.log.read_text()
    whole, resumed = (safetensors.torch.load(output.read("model/model.safetensors")) for output in (first, cut))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    for name in ("complete.json", "blend.json"):
        assert cut.read(f"model/{name}") == first.read(f"model/{name}")


def wait_for_checkpoint(driver: Driver, output: Folder, number: int) -> None:
    """Wait for a checkpoint with at least this number, while the driver runs."""

    def is_there() -> bool:
        assert driver.process.poll() is None, driver.log.read_text()
        return any(int(key.split("/")[1]) >= number for key in keys(output, "checkpoints/"))

    wait_until(is_there, timeout_seconds=240, what=f"checkpoint {number}")


@pytest.mark.nightly
def test_two_workers_and_a_grid(bucket: str, ray_address: str, tmp_path: Path) -> None:
    assert ray_address
    place, output = Folder(bucket), Folder(f"{bucket}/grid")
    put_inputs(place)
    config = ranker_config(
        place,
        output,
        cache=str(tmp_path / "cache"),
        search={"ranker.dropout": [0.0, 0.5]},
        resources={"num_workers": 2},
        optimizer={"epochs": 2},
    )
    record = run_train(config).record
    assert record.best_trial is not None
    trials = [trial.metrics for trial in record.trials]
    assert all(metrics is not None and metrics.ndcg_at_10 is not None for metrics in trials)
    assert read_ranker(output).fitted_events.dtype == np.uint64
    assert len(read_ranker(output).video_ids) <= NUM_VIDEOS
