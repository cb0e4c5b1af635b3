"""What the benchmarks share: the machine's description, medians, a table."""

import os
import platform
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path


def describe_machine() -> str:
    """One line for the head of a table."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("ray", "torch", "av"))
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return f"{model}, {len(os.sched_getaffinity(0))} processors; Python {platform.python_version()}, {versions}"


def videos_folder() -> Path:
    """Where generated videos stay for the next run, unless a script is told of another folder."""
    return Path(tempfile.gettempdir()) / "raypipe-benchmark-videos"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and in brackets the least and the most."""
    middle, least, most = (f"{value:.{digits}f}" for value in (median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({least} to {most})"


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A Markdown table, columns as wide as they must be."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for number, line in enumerate(lines):
        print(f"| {' | '.join(text.ljust(width) for text, width in zip(line, widths, strict=True))} |")
        if not number:
            print(f"|{'|'.join('-' * (width + 2) for width in widths)}|")
