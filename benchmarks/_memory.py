"""Memory and processor time of raypipe's actors and their decode children while they work."""

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_EVERY_SECONDS = 1.0
_CHILD_MARK = b"raypipe.video"  # in the command line of every decode child


@dataclass
class Peak:
    """The most that one actor and its decode child held at one moment, in bytes of PSS."""

    together: int = 0
    actor: int = 0  # of these, at that moment
    child: int = 0


class MemoryWatch:
    """Samples every second the PSS (``smaps_rollup``) of each actor that decodes and of its child, and keeps the peak.

    PSS counts a page that several processes map, such as torch's libraries and blocks of the object store, by its
    share: the actors' sums can be added.
    """

    def __init__(self, root_pid: int) -> None:
        self.peak = Peak()
        self._root = root_pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_SECONDS):
            for actor, children in _actors(self._root).items():
                held = _pss_bytes(actor), sum(map(_pss_bytes, children))
                if sum(held) > self.peak.together:
                    self.peak = Peak(sum(held), *held)


def tree_cpu_seconds() -> float:
    """Processor time of this process, of its children, and of those that have ended."""
    own = os.getpid()
    spent = sum(os.times()[:4])
    ticks = sum(_cpu_ticks(pid) for pid, parent in _parents().items() if parent == own)
    return spent + ticks / os.sysconf("SC_CLK_TCK")


def _cpu_ticks(pid: int) -> int:
    fields = _fields(pid)
    return sum(map(int, fields[11:13])) if fields else 0


def _actors(root: int) -> dict[int, list[int]]:
    """Below a process, those that have a decode child, and the children of each."""
    parents = _parents()
    found: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        if _is_below(pid, root, parents) and _CHILD_MARK in _read(f"/proc/{pid}/cmdline"):
            found.setdefault(parent, []).append(pid)
    return found


def _parents() -> dict[int, int]:
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if fields := _fields(int(folder.name)):
            parents[int(folder.name)] = int(fields[1])
    return parents


def _fields(pid: int) -> list[bytes]:
    """Those of ``/proc/PID/stat`` from the state on."""
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def _is_below(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != root:
        pid = parents[pid]
    return pid == root


def _pss_bytes(pid: int) -> int:
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(path: str) -> bytes:
    """A file of /proc; empty where the process has gone meanwhile."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
