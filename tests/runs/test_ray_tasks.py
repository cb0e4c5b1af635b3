"""Tasks on a real Ray: several results, shared values, errors, and a process that dies."""

import os
import signal
from pathlib import Path

import pytest

from raypipe.errors import ConfigError, JobError
from raypipe.runs.ray_tasks import RayTasks

pytestmark = pytest.mark.slow


def divide(numbers: list[int], by: int) -> list[int]:
    return [number // by for number in numbers]


def refuse(name: str) -> None:
    msg = f"{name} is wrong."
    raise ConfigError(msg, key=name, remedy="Correct it.")


def fail() -> None:
    msg = "a bug"
    raise ValueError(msg)


def die_once(mark: str) -> str:
    if not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def test_results_errors_and_retries(ray_address: str, tmp_path: Path) -> None:  # noqa: ARG001 - the tasks run there
    tasks = RayTasks()
    first, second = tasks.call_many(divide, tasks.share([8, 6]), 2, num_results=2)
    assert (tasks.get(first), tasks.get(second)) == (4, 3)
    assert tasks.get(tasks.call(divide, [9], 3)) == [3]
    with pytest.raises(ConfigError) as refused:
        tasks.get(tasks.call(refuse, "key"))
    assert (refused.value.key, refused.value.remedy) == ("key", "Correct it.")
    with pytest.raises(JobError, match="a bug") as failed:
        tasks.get(tasks.call(fail))
    assert failed.value.remedy
    assert tasks.get(tasks.call(die_once, str(tmp_path / "died"))) == "done"
