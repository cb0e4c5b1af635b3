"""Clocks that jump by days between any two readings: the output of a run does not depend on the time of day."""

import random
import time
from datetime import UTC, datetime, tzinfo

import pytest

from chaos.job import run_job, vectors_of
from raypipe.dataset import commit, plan
from raypipe.storage import Folder
from support.embed_outputs import content, upload

_DAY_SECONDS = 86_400.0


class _Jumping:
    """A clock that is up to ten years off, by a different time at every reading."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._time = time.time
        self.num_looks = 0

    def time(self) -> float:
        self.num_looks += 1
        return self._time() + self._random.uniform(-3650, 3650) * _DAY_SECONDS

    def now(self, zone: tzinfo = UTC) -> datetime:
        return datetime.fromtimestamp(self.time(), zone)


@pytest.mark.parametrize("seed", range(3))
def test_a_clock_that_jumps_changes_nothing(folder: Folder, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output, expected = (Folder(folder.child(name)) for name in ("in", "out", "expected"))
    upload(source, {f"{number}.mp4": content(seed=number) for number in range(7)})
    run_job(source, expected)
    clock = _Jumping(seed)
    monkeypatch.setattr(time, "time", clock.time)
    monkeypatch.setattr(plan, "datetime", clock)
    monkeypatch.setattr(commit, "datetime", clock)
    run_job(source, output)
    upload(source, {f"{number}.mp4": content(seed=number) for number in range(7, 9)})
    run_job(source, output)  # plans new videos, with a clock that may be years behind
    monkeypatch.undo()
    assert clock.num_looks >= 5
    run_job(source, expected)
    assert vectors_of(output) == vectors_of(expected)
    assert len(vectors_of(output)) == 9
