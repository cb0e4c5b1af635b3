"""Check that tests fail when a promise is broken: ``python -m mutations.run`` in ``tests/``.

Each ``*.patch`` in this folder breaks one promise. Its header names the promise and the tests that must fail:

    Promise: a commit never replaces an object that exists
    Tier: test
    Killed by: tests/storage/test_folder.py::test_put_new_never_overwrites

The named tests run in a copy of the working tree: first unchanged, where they must pass, then with the patch applied,
where each of them must fail. The exit code is 1 if a mutation survives.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from support import TESTS

ROOT = TESTS.parent
TIERS = ("test", "slow")


@dataclass(frozen=True, slots=True)
class Mutation:
    """A patch and its header."""

    path: Path
    promise: str
    tier: str
    tests: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> "Mutation":
        """Read a patch file."""
        head = path.read_text(encoding="utf-8").partition("\n--- ")[0].splitlines()
        fields = [line.partition(": ") for line in head]
        promise, tier = (next(text for key, _, text in fields if key == name) for name in ("Promise", "Tier"))
        assert tier in TIERS, f"{path.name}: the tier is {tier!r}; choose one of {', '.join(TIERS)}"
        return cls(path, promise, tier, tuple(text for key, _, text in fields if key == "Killed by"))


def copy_tree(folder: Path) -> None:
    """Copy every file that git tracks or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def apply(mutation: Mutation, folder: Path, *options: str) -> None:
    """Apply a patch in the copy."""
    command = ["git", "apply", *options, str(mutation.path)]
    applied = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if applied.returncode:
        sys.exit(f"{mutation.path.name} does not apply: {applied.stderr}")


def run_tests(tests: Sequence[str], folder: Path) -> dict[str, set[str]]:
    """Run tests in the copy; return the outcomes of each test's cases: passed, failed, error, skipped."""
    results = folder / "results.xml"
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "--tb=no", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, f"--junitxml={results}"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode not in {0, 1}:  # a test does not exist, or a module cannot be imported
        sys.exit(f"pytest ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    found = outcomes(results)
    return {test: {found[one] for one in found if one.partition("[")[0] == test} for test in tests}


def outcomes(results: Path) -> dict[str, str]:
    """Return the outcome of each test by its id, from a result file of pytest."""
    found = {}
    for case in ET.parse(results).iter("testcase"):  # noqa: S314 - pytest wrote it
        test = f"{case.attrib['classname'].replace('.', '/')}.py::{case.attrib['name']}"
        kinds = {"failure": "failed", "error": "error", "skipped": "skipped"}
        outcome = next((outcome for tag, outcome in kinds.items() if case.find(tag) is not None), "passed")
        found[test] = "failed" if found.get(test) == "failed" else outcome  # the teardown has an entry too
    return found


def main() -> int:
    """Run every selected mutation."""
    parser = argparse.ArgumentParser(prog="mutations.run", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", default=[], help="names of patches, without .patch")
    parser.add_argument("--tier", nargs="+", choices=TIERS, default=TIERS)
    options = parser.parse_args()
    mutations = [Mutation.read(path) for path in sorted(Path(__file__).parent.glob("*.patch"))]
    mutations = [
        one for one in mutations if one.tier in options.tier and (not options.only or one.path.stem in options.only)
    ]
    table = Table("mutation", "promise", "tier", "result", "seconds", title="mutations")
    console = Console(width=None if sys.stdout.isatty() else 160)
    survivors = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_tree(folder)
        named = sorted({test for one in mutations for test in one.tests})
        before = run_tests(named, folder)
        if broken := [test for test, found in before.items() if found & {"failed", "error"}]:
            sys.exit(f"Without any mutation, these tests fail: {', '.join(broken)}")
        for one in mutations:
            began = time.monotonic()
            apply(one, folder)
            after = run_tests(one.tests, folder)
            apply(one, folder, "--reverse")
            ran = [test for test in one.tests if "passed" in before[test]]  # the others are skipped on this machine
            left = [test for test in ran if "failed" not in after[test]]
            survivors += bool(left) or not one.tests
            result = f"SURVIVED {', '.join(left)}" if left else "killed" if ran else "skipped: its tests are"
            table.add_row(one.path.stem, one.promise, one.tier, result, f"{time.monotonic() - began:.0f}")
            console.print(f"{one.path.stem}: {result}", highlight=False)
    console.print(table)
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
