"""What several test files make or wait for."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import yaml
from pydantic import BaseModel

from raypipe.config import EmbedConfig
from raypipe.storage import Folder

Configure = Callable[..., EmbedConfig]


def fill(folder: Folder, *names: str) -> Folder:
    """Put objects of these names into a folder, each with content of its own."""
    for name in names:
        assert folder.put_new(name, f"content of {name}".encode())
    return folder


def keys(folder: Folder, prefix: str = "") -> list[str]:
    """The keys of a listing, sorted."""
    return sorted(stored.key for stored in folder.list(prefix))


def make_noise(path: Path, *, num_frames: int) -> bytes:
    """A video of noise, 12 frames a second, a key frame each, its tables first: some 12 kB a frame; and its bytes."""
    random = np.random.default_rng(0)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=12, options={"g": "1", "qmin": "2", "qmax": "3"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for _ in range(num_frames):
            image = random.integers(0, 256, (120, 160, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


def make_video(*, shade: int, num_frames: int = 10, size: int = 64) -> bytes:
    """A small H.264 video of one shade that brightens; another shade gives other bytes."""
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, options={"threads": "1", "preset": "ultrafast", "g": "5"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(num_frames):
            picture = np.full((size, size, 3), (shade % 200) + number, dtype=np.uint8)
            picture[: 1 + shade % size, : 1 + number] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return data.getvalue()


def upload(folder: Folder, count: int, *, start: int = 0) -> list[str]:
    """Put so many different videos into a folder, and give their ids."""
    names = [f"part-{number % 3}/video-{number:04d}.mp4" for number in range(start, start + count)]
    for number, name in enumerate(names, start=start):
        assert folder.put_new(name, make_video(shade=number))
    return names


class Driver:
    """A job in a process of its own, on the tests' Ray."""

    def __init__(self, job: str, config: BaseModel, address: str, log: Path) -> None:
        file = log.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(config.model_dump()))
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "raypipe", job, str(file)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "RAY_ADDRESS": address, "COLUMNS": "200"},
            )

    def wait(self, timeout_seconds: float = 240) -> int:
        """The exit code; what it printed is in ``log``."""
        return self.process.wait(timeout_seconds)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()


StartDriver = Callable[..., Driver]


def wait_until(condition: Callable[[], object], *, timeout_seconds: float = 120, what: str) -> None:
    """Poll a condition of other processes until it holds."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_seconds} s: {what}"
        time.sleep(0.01)


def num_committed(output: Folder) -> int:
    """How many shards are committed."""
    return sum(1 for _ in output.list("data/"))


def pids_of(*words: str, below: int | None = None) -> list[int]:
    """Processes that descend from this one, or from ``below``, and whose command line holds all the words."""
    ancestor = os.getpid() if below is None else below
    parents: dict[int, int] = {}
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            if all(word in command for word in words):
                found.append(int(entry.name))
    return [pid for pid in found if ancestor in _line_of(pid, parents)]


def _line_of(pid: int, parents: Mapping[int, int]) -> set[int]:
    line: set[int] = set()
    while pid in parents and pid not in line:
        line.add(pid)
        pid = parents[pid]
    return line


def kill_one(*words: str) -> bool:
    """SIGKILL one process whose command line holds all the words; False when there is none."""
    for pid in pids_of(*words):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
    return False
