"""The command anomalies on a real Ray: scores in two actors, findings, and verify."""

import json
from pathlib import Path

import pytest

from raypipe import cli
from raypipe.storage import Folder
from support.anomaly_outputs import configured, put_catalogue, save_masked_frame_model
from support.embed_outputs import make_output


@pytest.mark.slow
@pytest.mark.usefixtures("ray_address")
def test_new_videos_are_scored_and_the_output_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embeddings = make_output(Folder(str(tmp_path)))
    config = configured(embeddings, model=str(save_masked_frame_model(tmp_path / "model")))
    put_catalogue(Folder(config.index), known=("1.mp4",))
    options = [f"--{name}={getattr(config, name)}" for name in ("index", "embeddings", "output", "model")]
    for _ in range(2):
        with pytest.raises(SystemExit, match="0"):
            cli.app(["anomalies", *options])
    with pytest.raises(SystemExit, match="0"):
        cli.app(["verify", config.output])
    assert "6 rows (4 ok" in capsys.readouterr().out
    found = json.loads(Folder(config.output).read("anomalies.json"))
    assert (found["num_videos"], found["num_already_in_index"], found["num_unscored"]) == (5, 1, 1)
    summary = json.loads(Folder(config.output).read("reports/00000/summary.json"))
    assert set(summary["stage_seconds"]) == {"read", "score", "put"}
    assert summary["machine"]["already_in_the_index"] == 1
