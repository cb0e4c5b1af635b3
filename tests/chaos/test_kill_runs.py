"""The short form of the killers."""

from pathlib import Path

import pytest
from chaos.kill_runs import Tally, ground

from raypipe.storage import Folder

pytestmark = pytest.mark.long


def test_whatever_is_killed_nothing_is_lost(bucket: str, tmp_path: Path) -> None:
    tally = Tally()
    with ground(Folder(bucket), tmp_path, seed=1, num_videos=24) as here:
        here.run(tally, max_blows=12)
    assert tally.problems == []
    assert tally.blows.total() >= 4
