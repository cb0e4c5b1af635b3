"""Every mutation applies to the current tree and names tests that exist; ``make mutations`` runs them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from mutations.run import ROOT, Mutation
from support import TESTS

PATCHES = sorted((TESTS / "mutations").glob("*.patch"))


def test_there_are_enough_mutations() -> None:
    assert len(PATCHES) >= 20


@pytest.mark.skipif(shutil.which("git") is None, reason="patches are applied with git")
@pytest.mark.parametrize("path", PATCHES, ids=lambda path: path.stem)
def test_a_mutation_applies_and_names_tests(path: Path) -> None:
    mutation = Mutation.read(path)
    checked = subprocess.run(["git", "apply", "--check", path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert mutation.tests
    for test in mutation.tests:
        file, _, name = test.rpartition("::")
        file = file.partition("::")[0]
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")
