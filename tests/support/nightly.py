"""Run the nightly tier part by part, and end with a summary table: ``python -m support.nightly`` in ``tests/``."""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from support import TESTS
from support.properties import THOROUGH

_RESULTS = TESTS.parent / "build" / "nightly"
_LONG = {"RAYPIPE_RANDOM_REQUESTS": "10000", "RAYPIPE_SCHEMA_EXAMPLES": "100"}


@dataclass(frozen=True, slots=True)
class Part:
    """A command of the tier; a pytest command also writes its results to a file."""

    command: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""  # a package that is not a dependency

    @property
    def is_pytest(self) -> bool:
        """Return whether the part writes test results."""
        return "pytest" in self.command


def chaos(part: str, *, needs: str = "") -> Part:
    """Return a part that runs ``chaos.run``."""
    return Part(("chaos.run", "--only", part), needs=needs)


PARTS = {
    "tests": Part(("pytest", "..", "-m", "nightly")),
    "properties": Part(("pytest", "..", "-m", "hypothesis"), {THOROUGH: "1"}),
    "requests": Part(("pytest", "e2e/test_serve_requests.py"), _LONG),
    "mutations": Part(("mutations.run",)),
    "reword": Part(("mutations.reword",)),
    "commit": chaos("commit"),
    "storage": chaos("storage"),
    "hostile": chaos("hostile"),
    "fuzz": chaos("fuzz", needs="atheris"),
    "kills": chaos("kills"),
}


def run(name: str, part: Part) -> tuple[str, ...]:
    """Run one part, and return its row of the table."""
    if part.needs and importlib.util.find_spec(part.needs) is None:
        return name, "skipped", f"pip install {part.needs}", "0"
    results = _RESULTS / f"{name}.xml"
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", *part.command, *([f"--junitxml={results}"] if part.is_pytest else [])]
    began = time.monotonic()
    done = subprocess.run(command, cwd=TESTS, env={**os.environ, **part.variables}, check=False)
    seconds = f"{time.monotonic() - began:.0f}"
    return name, "failed" if done.returncode else "passed", counts(results) if part.is_pytest else "", seconds


def counts(results: Path) -> str:
    """Return how many tests of a result file passed, failed and were skipped."""
    if not results.exists():
        return "no results"
    suite = next(ET.parse(results).iter("testsuite"))  # noqa: S314 - pytest wrote it
    failed, skipped = int(suite.attrib["failures"]) + int(suite.attrib["errors"]), int(suite.attrib["skipped"])
    return f"{int(suite.attrib['tests']) - failed - skipped} passed, {failed} failed, {skipped} skipped"


def main() -> int:
    """Run the parts; the exit code is 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="support.nightly", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    _RESULTS.mkdir(parents=True, exist_ok=True)
    rows = [run(name, PARTS[name]) for name in parser.parse_args().only]
    table = Table("part", "result", "tests", "seconds", title="nightly")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    return int(any(row[1] == "failed" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
