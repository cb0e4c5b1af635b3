"""The training of a ranker reproduces a published result on a public set."""

import subprocess
import sys
from pathlib import Path

import pytest

from support import TESTS

TOYS = Path(TESTS).parent.parent / "shared" / "assets" / "interactions" / "Toys_and_Games.txt"


@pytest.mark.nightly
@pytest.mark.timeout(3_600)  # 150 epochs on two cores
@pytest.mark.skipif(not TOYS.exists(), reason="the public sets of interactions are not part of a clone")
def test_sasrec_is_as_good_as_published() -> None:
    script = Path(TESTS).parent / "benchmarks" / "ranker.py"
    done = subprocess.run([sys.executable, script, "--sasrec"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
