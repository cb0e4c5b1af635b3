"""The sequence that all batch jobs share, shown by a job that counts the frames of videos."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from raypipe import schema
from raypipe.dataset import plan as plans
from raypipe.dataset.plan import StoredPlans
from raypipe.dataset.read import read_rows
from raypipe.dataset.verify import verify
from raypipe.errors import SetupError
from raypipe.runs.actors import RayExecutor, connect
from raypipe.runs.executor import Needs
from raypipe.runs.job import run_job, waves
from raypipe.storage import Folder
from support import TESTS
from support.count_frames.job import CountFramesConfig, CountFramesJob
from support.count_frames.verify import CHECKS
from support.executors import InlineExecutor
from support.videos import make_video, upload

QUIET = Console(quiet=True)


def job_of(tmp_path: Path) -> CountFramesJob:
    return CountFramesJob(CountFramesConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out")))


def test_a_job_in_one_small_folder(tmp_path: Path) -> None:
    """It is planned, resumed, sealed, verified and reported like raypipe's own jobs."""
    lines = [len(path.read_text().splitlines()) for path in (TESTS / "support" / "count_frames").glob("*.py")]
    assert sum(lines) <= 80
    source = Folder(str(tmp_path / "in"))
    ids = upload(source, 3)
    assert source.put_new("bad.mp4", b"no video")
    job = job_of(tmp_path)
    run = run_job(job, executor=InlineExecutor(), console=QUIET)
    rows = {row[schema.VIDEO_ID]: row for table in read_rows(job.output) for row in table.to_pylist()}
    assert {name: row[schema.STATUS] for name, row in rows.items()} == {
        **dict.fromkeys(ids, "ok"),
        "bad.mp4": "forbidden_format",
    }
    assert all(rows[name][schema.NUM_FRAMES] > 1 for name in ids)
    assert verify(job.output, CHECKS).violations == []
    assert run.record.num_failed_videos == 1
    assert Path(run.report_uri).exists()
    assert source.put_new("new.mp4", make_video(shade=9))
    assert run_job(job, executor=InlineExecutor(), console=QUIET).record.num_videos == 1
    assert not run_job(job, executor=InlineExecutor(), console=QUIET).record.plans


def test_the_documentation_shows_this_job() -> None:
    text = (TESTS.parent / "docs" / "new_job.md").read_text()
    for name in ("job.py", "shard.py", "verify.py"):
        assert (TESTS / "support" / "count_frames" / name).read_text() in text, name


def test_an_unsealed_plan_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(Folder(str(tmp_path / "in")), 3)
    job = job_of(tmp_path)
    job.plan(StoredPlans(job.output), num_slots=1)  # like a driver that was killed right afterwards
    reads: Counter[int] = Counter()
    read_plan = plans.read_plan

    def counted(output: Folder, number: int) -> plans.Plan:
        reads[number] += 1
        return read_plan(output, number)

    monkeypatch.setattr(plans, "read_plan", counted)
    assert run_job(job, executor=InlineExecutor(), console=QUIET).record.num_videos == 3
    assert reads == {0: 1}


def test_only_the_last_plans_are_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_PLANS_KEPT", 2)
    folder = Folder(str(tmp_path))
    stored = StoredPlans(folder)
    for number in range(3):
        rows = plans.range_table(4, rows_per_shard=2, num_shards=2)
        assert stored.put(plans.Plan(number, rows, "mark", {"a": 1}, "in"))
    assert stored.read(1) is stored.read(1)
    assert stored.read(0) is not stored.read(2)
    assert [stored.read(number).number for number in stored.numbers()] == [0, 1, 2]
    assert not stored.put(stored.read(0))


def test_waves_end_by_number_and_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raypipe.runs.job._WAVE_SHARDS", 3)
    small, large = pa.table({"a": [1]}), pa.table({"a": range(100)})
    monkeypatch.setattr("raypipe.runs.job._WAVE_BYTES", 200)
    assert [len(wave) for wave in waves([small] * 7)] == [3, 3, 1]
    assert [len(wave) for wave in waves([small, large, small])] == [2, 1]
    assert list(waves([])) == []


@pytest.mark.parametrize(
    ("needs", "has", "expected"),
    [
        (Needs(), {"CPU": 8, "GPU": 2}, (8, 0, 0.0, "cpu", 8)),
        (Needs(num_cpus=3), {"CPU": 8, "GPU": 0}, (2, 0, 0.0, "cpu", 2)),
        (Needs(num_gpus="auto"), {"CPU": 8, "GPU": 0}, (8, 0, 0.0, "cpu", 8)),
        (Needs(num_gpus="auto"), {"CPU": 8, "GPU": 2}, (2, 2, 1.0, "cuda", 2)),
        (Needs(num_gpus="auto", joined=False), {"CPU": 8, "GPU": 2}, (8, 2, 1.0, "cuda", 10)),
        (Needs(num_gpus=0.25, joined=False, concurrency=3), {"CPU": 8, "GPU": 2}, (3, 8, 0.25, "cuda", 11)),
    ],
)
def test_actors_that_fit(
    monkeypatch: pytest.MonkeyPatch, needs: Needs, has: dict[str, float], expected: tuple[object, ...]
) -> None:
    monkeypatch.setattr("raypipe.runs.actors.await_resources", lambda *_, **__: has)
    placement = RayExecutor().place(needs)
    found = (placement.num_actors, placement.num_gpu_actors, placement.num_gpus, placement.device, placement.num_slots)
    assert found == expected


@pytest.mark.parametrize("needs", [Needs(num_cpus=9), Needs(num_gpus=3), Needs(num_gpus=3, joined=False)])
def test_a_cluster_that_is_too_small_is_an_error(monkeypatch: pytest.MonkeyPatch, needs: Needs) -> None:
    monkeypatch.setattr("raypipe.runs.actors.await_resources", lambda *_, **__: {"CPU": 8.0, "GPU": 2.0})
    with pytest.raises(SetupError) as caught:
        RayExecutor().place(needs)
    assert caught.value.value == {"GPU": 2.0, "CPU": 8.0}


def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        msg = "The current node timed out\nduring startup."
        raise Exception(msg)  # noqa: TRY002 - as Ray does

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    with pytest.raises(SetupError) as caught:
        connect()
    assert "node timed out during startup" in str(caught.value)
