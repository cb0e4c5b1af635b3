"""What the benchmarks share: generated videos, the machine's description, a table."""

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

import av
import numpy as np


def make_videos(folder: Path, count: int, *, seconds: float = 20.0, width: int = 640, height: int = 360) -> int:
    """Write H.264 videos of moving noise, 30 frames a second, a key frame every 2 s; give their size in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"video-{number:04d}.mp4"
        if not path.exists():
            _write(path, number, num_frames=int(seconds * 30), width=width, height=height)
    return sum(path.stat().st_size for path in folder.iterdir())


def _write(path: Path, seed: int, *, num_frames: int, width: int, height: int) -> None:
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (height // 8, width // 4, 3), dtype=np.uint8)
    picture = np.kron(small, np.ones((8, 8, 1), dtype=np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast", "g": "60", "crf": "26"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(num_frames):
            left = (number * 3) % width
            frame = np.ascontiguousarray(picture[:, left : left + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


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
