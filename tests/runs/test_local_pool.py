"""Jobs in processes of this machine: the same rows, whatever ends a worker, and no process that outlives its driver."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from raypipe import schema
from raypipe.dataset.read import read_rows
from raypipe.dataset.verify import verify
from raypipe.errors import JobError, SetupError
from raypipe.records import ShardSummary
from raypipe.runs import job as jobs
from raypipe.runs.actors import RayExecutor
from raypipe.runs.executor import Needs
from raypipe.runs.job import run_job
from raypipe.runs.local_pool import LocalExecutor
from raypipe.runs.stages import Stage, summary_block
from raypipe.storage import Folder
from support.count_frames.job import CountFramesConfig, CountFramesJob
from support.count_frames.verify import CHECKS
from support.executors import InlineExecutor
from support.processes import pids_of, wait_until
from support.videos import upload

Chosen = Callable[..., object]
QUIET = Console(quiet=True)
SHARD = pa.table({schema.GENERATION: [0], schema.SHARD: [7]})


def rows_of(output: Folder) -> list[dict[str, Any]]:
    rows = [row for table in read_rows(output) for row in table.to_pylist()]
    return sorted(rows, key=lambda row: str(row[schema.VIDEO_ID]))


def test_the_rows_are_those_of_any_executor(tmp_path: Path) -> None:
    source = Folder(str(tmp_path / "in"))
    upload(source, 5)
    assert source.put_new("bad.mp4", b"no video")
    outputs = []
    for name, executor in (("inline", InlineExecutor()), ("local", LocalExecutor())):
        job = CountFramesJob(CountFramesConfig(input=source.uri, output=str(tmp_path / name)))
        run = run_job(job, executor=executor, console=QUIET)
        assert (run.record.num_videos, run.record.num_problems) == (6, 0)
        assert verify(job.output, CHECKS).violations == []
        outputs.append(rows_of(job.output))
    assert outputs[0] == outputs[1]


class DieOnce:
    """A step that kills its process unless the file exists, which it creates."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __call__(self, block: pa.Table) -> ShardSummary:
        if not self._file.exists():
            self._file.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return ShardSummary(block[schema.GENERATION][0].as_py(), block[schema.SHARD][0].as_py())


class DieAlways:
    """A step that kills its process."""

    def __init__(self, _: object) -> None:
        pass

    def __call__(self, block: pa.Table) -> ShardSummary:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError(block)


def test_a_worker_that_dies_costs_only_its_shard(tmp_path: Path) -> None:
    stage = Stage(((DieOnce, tmp_path / "died"),), num_actors=2)
    summaries = list(LocalExecutor().run([stage], [SHARD, SHARD, SHARD]))
    assert [(one.shard, one.problem) for one in summaries] == [(7, "")] * 3


class NotInstalled:
    """A step that cannot be constructed."""

    def __init__(self, _: object) -> None:
        msg = "The decoder is not installed."
        raise SetupError(msg)

    def __call__(self, block: pa.Table) -> pa.Table:
        return block


def test_the_reason_why_workers_cannot_start_is_told() -> None:
    with pytest.raises(JobError, match="decoder is not installed"):
        list(LocalExecutor().run([Stage(((NotInstalled, None),), num_actors=1)], [SHARD]))


def test_workers_that_always_die_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raypipe.runs.local_pool._MAX_RESTARTS", 1)
    with pytest.raises(JobError):
        list(LocalExecutor().run([Stage(((DieAlways, None),), num_actors=1)], [SHARD]))


SLEEPING_DRIVER = """
from runs.test_local_pool import SHARD, Sleep
from raypipe.runs.local_pool import LocalExecutor
from raypipe.runs.stages import Stage
list(LocalExecutor().run([Stage(((Sleep, None),), num_actors=2)], [SHARD] * 2))
"""


class Sleep:
    """A step that does not end."""

    def __init__(self, _: object) -> None:
        pass

    def __call__(self, block: pa.Table) -> dict[str, Any]:
        signal.pause()
        return summary_block(ShardSummary(0, block.num_rows))


def test_no_worker_outlives_its_driver() -> None:
    driver = subprocess.Popen([sys.executable, "-c", SLEEPING_DRIVER], cwd=Path(__file__).parents[1])
    wait_until(lambda: len(pids_of("loky", below=driver.pid)) >= 2, what="two workers")
    workers = pids_of("loky", below=driver.pid)
    driver.kill()
    driver.wait()
    wait_until(lambda: not any(_is_alive(pid) for pid in workers), what="the end of the workers")


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Recorder(InlineExecutor):
    """Stands for Ray."""

    def machine(self) -> dict[str, object]:
        return {"executor": "ray"}


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Chosen:
    """Return a function that runs a job of three videos without Ray, and returns the executor that it used."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(jobs, "_ray", Recorder)
    monkeypatch.setattr(LocalExecutor, "run", InlineExecutor().run)
    upload(Folder(str(tmp_path / "in")), 3)

    def run(executor: str = "auto", *, needs: Needs | None = None) -> object:
        config = CountFramesConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out"), executor=executor)
        job = CountFramesJob(config)
        if needs is not None:
            monkeypatch.setattr(job, "needs", lambda: needs)
        record = run_job(job, console=QUIET).record
        assert record.num_videos == 3
        return record.machine["executor"]

    return run


def test_a_small_run_needs_no_ray(chosen: Chosen) -> None:
    assert chosen() == "local"


def test_a_large_run_uses_ray(chosen: Chosen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountFramesJob, "max_local_rows", 2)
    assert chosen() == "ray"


def test_local_can_be_demanded(chosen: Chosen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountFramesJob, "max_local_rows", 2)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert chosen("local") == "local"


@pytest.mark.parametrize("variable", ["RAY_ADDRESS", ""])
def test_a_running_ray_is_used(chosen: Chosen, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str) -> None:
    if variable:
        monkeypatch.setenv(variable, "10.0.0.1:6379")
    else:
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray/ray_current_cluster").touch()
    assert chosen() == "ray"


def test_labels_of_nodes_need_ray(chosen: Chosen) -> None:
    assert chosen(needs=Needs(cpus_on={"pool": "decode"})) == "ray"


@pytest.mark.parametrize("needs", [Needs(num_cpus=1000), Needs(num_gpus=1)])
def test_a_machine_that_is_too_small_is_an_error(needs: Needs) -> None:
    with pytest.raises(SetupError, match="executor=ray"):
        LocalExecutor().place(needs)


def test_ray_is_the_real_other_executor() -> None:
    assert isinstance(jobs._ray(), RayExecutor)
