"""Shared code of the benchmarks: options, scratch folder, machine description and tables.

Scripts run as ``python benchmarks/NAME.py``, which puts the parent of this folder on the import path.
"""

import argparse
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from raypipe.models.backbones import cpu_flags

_FEATURES = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"}
NUM_CPUS = len(os.sched_getaffinity(0))


def make_parser(description: str | None, *, quick: str, videos: bool = False) -> argparse.ArgumentParser:
    """Return a parser with ``--quick``, described by ``quick``, and with ``--videos-folder`` if ``videos``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    if videos:
        folder = Path(tempfile.gettempdir()) / "raypipe-benchmark-videos"
        parser.add_argument("--videos-folder", type=Path, default=folder, help="keeps generated videos for later runs")
    return parser


@contextmanager
def scratch_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="raypipe-benchmark-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def describe_machine() -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("ray", "torch", "openvino", "av"))
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    model = models[0] if models else platform.machine()
    features = " ".join(sorted(cpu_features())) or "without AVX2"
    return f"{model} ({features}), {NUM_CPUS} processors; Python {platform.python_version()}, {versions}"


def cpu_features() -> set[str]:
    """Return those features of this machine's processor that decide the speed of a backbone."""
    return set(_FEATURES & cpu_flags())


def unit_rows(rows: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Scale each row to length one, so that products are cosines."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Format the median, followed by (minimum to maximum) if there are several values."""
    middle, least, most = (f"{value:.{digits}f}" for value in (median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({least} to {most})"


def verdict(*, met: bool) -> str:
    return "met" if met else "MISSED"


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table with aligned columns."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    for number, line in enumerate(lines):
        edge = "-" if number == 1 else " "
        cells = f"{edge}|{edge}".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        print(f"|{edge}{cells}{edge}|")
