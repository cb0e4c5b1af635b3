"""The command reports how many ids of the histories are unknown, and exits with 3 if there are too many."""

from pathlib import Path

import pytest

from raypipe import cli
from raypipe.config import IndexConfig
from raypipe.dataset.commit import read_manifest
from raypipe.jobs.index.job import run_index
from raypipe.jobs.recommend.job import RecommendOutput
from raypipe.storage import Folder
from support.executors import InlineExecutor
from support.train_runs import embed_all, video_ids

HISTORIES = """user_id,history
known,cat/000.mp4
commas,"cat/000.mp4,dog/001.mp4"
half,cat/000.mp4|gone 1.mp4
unknown,gone 2.mp4
nothing,
"""


def test_the_exit_code_and_the_summary_report_unknown_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("raypipe.runs.job.LocalExecutor", InlineExecutor)
    monkeypatch.setattr("raypipe.runs.job._ray", InlineExecutor)
    place = Folder(str(tmp_path))
    embeddings = embed_all(Folder(place.child("embeddings")), video_ids(24))
    run_index(IndexConfig(embeddings=embeddings.uri, output=place.child("index")))
    place.put("history.csv", HISTORIES.encode())
    files = ("--index", place.child("index"), "--history", place.child("history.csv"))

    def run(output: str, *more: str) -> int:
        with pytest.raises(SystemExit) as left:
            cli.app(["recommend", *files, "--output", place.child(output), "--set", "users_per_shard=2", *more])
        return int(left.value.code or 0)

    assert run("output") == 0
    said = capsys.readouterr()
    assert all(token in said.out for token in ("unknown ids", "3 ", " 7", "'gone 1.mp4'"))
    assert said.err == ""
    for _ in range(2):  # also when there is nothing to do
        assert run("strict", "--set", "max_unknown_fraction=0.25") == 3
        assert "0.25" in capsys.readouterr().err
        assert read_manifest(Folder(place.child("strict")), 0)["statuses"] == {"ok": 3, "popular": 2}
    assert run("output", "--set", "max_unknown_fraction=0.5") == 0
    held = RecommendOutput.read(Folder(place.child("output")))
    assert (held.num_users, held.unknown.counts["num_unknown_ids"]) == (5, 3)
