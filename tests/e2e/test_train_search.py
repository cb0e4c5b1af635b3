"""A small grid on a real Ray Tune: the best trial is kept, a failed one is reported, a finished one is not redone."""

import json

import pytest

from raypipe.jobs.train.job import run_train
from raypipe.storage import Folder
from support.folders import keys
from support.train_runs import Trained, train_config

pytestmark = pytest.mark.nightly


@pytest.mark.timeout(600)  # three trainings and their starts
def test_a_grid_keeps_the_best_and_resumes(trained: Trained, bucket: str) -> None:
    output = Folder(f"{bucket}/grid")
    search = {"optimizer.learning_rate": [1e30, 1e-2]}
    config = train_config(trained.embeddings, output, search=search, optimizer={"epochs": 2})
    run = run_train(config)
    outcomes = {trial.settings["optimizer.learning_rate"]: trial.outcome for trial in run.record.trials}
    assert outcomes == {1e30: "failed", 1e-2: "finished"}
    assert run.record.best_trial is not None
    assert run.record.best_trial.settings == {"optimizer.learning_rate": 1e-2}
    assert output.read("model/model.safetensors") == output.read("trials/001/model/model.safetensors")
    assert keys(output, "trials/000/model/") == []
    summary = json.loads(output.read("summary.json"))
    assert [trial["is_best"] for trial in summary["trials"]] == [False, True]
    assert summary["metrics"] == summary["trials"][1]["metrics"]

    assert not run_train(config).is_new
    # As if the driver had died before the end: finished trials are read, not trained again.
    output.delete("summary.json")
    before = {stored.key: stored.etag for stored in output.list("trials/") if "/model/" in stored.key}
    again = run_train(config)
    assert again.record.best_trial is not None
    assert again.record.best_trial.settings == run.record.best_trial.settings
    assert again.record.confusion == run.record.confusion
    assert {stored.key: stored.etag for stored in output.list("trials/") if "/model/" in stored.key} == before
