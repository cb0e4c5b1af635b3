"""The short form of the random killer."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pytest

from chaos.kill_cluster import DRIVER, VICTIMS
from chaos.kill_runs import Tally, ground
from raypipe.storage import Folder

pytestmark = pytest.mark.nightly


def test_whatever_is_killed_nothing_is_lost(bucket: str, tmp_path: Path) -> None:
    tally = Tally()
    with another_ray() as other, ground(Folder(bucket), tmp_path, seed=1, num_videos=24) as here:
        here.run(tally, max_blows=12)
    assert tally.problems == []
    assert tally.blows.total() >= 4
    assert other.returncode == 0, "the killers took a process of another cluster"


@contextmanager
def another_ray() -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that has the command line of every victim but belongs to no cluster."""
    words = chain.from_iterable(words for victim, words in VICTIMS.items() if victim != DRIVER)
    with subprocess.Popen([sys.executable, "-c", "input()", *words], stdin=subprocess.PIPE) as process:
        yield process
        process.communicate(b"\n")
