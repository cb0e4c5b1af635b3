"""Processes that tests start, wait for and kill."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import yaml
from pydantic import BaseModel

from raypipe.config import EmbedConfig
from raypipe.free_ports import free_ports

Configure = Callable[..., EmbedConfig]


class Driver:
    """A job in a separate process, on the tests' Ray."""

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
        """Wait for the end and return the exit code; the output is in ``log``."""
        return self.process.wait(timeout_seconds)

    def kill(self) -> None:
        """SIGKILL the process."""
        self.process.kill()
        self.process.wait()


StartDriver = Callable[..., Driver]


def free_port() -> int:
    """Return a port of 127.0.0.1 with no listener."""
    return free_ports(1)[0]


def wait_until(condition: Callable[[], object], *, timeout_seconds: float = 120, what: str) -> None:
    """Poll a condition until it holds."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_seconds} s: {what}"
        time.sleep(0.01)


def pids_of(*words: str, below: int | None = None) -> list[int]:
    """Return the descendants of this process, or of ``below``, whose command line has all the words."""
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
    """SIGKILL one process whose command line has all the words; return False if there is none."""
    for pid in pids_of(*words):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
    return False
