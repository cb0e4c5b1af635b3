"""Memory and processor time of raypipe's actors and their decode children while they work."""

import os
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from _processes import all_stats, below, read_proc

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
    return sum(os.times()[:4]) + sum(stat.cpu_seconds for stat in all_stats().values() if stat.parent == own)


def _actors(root: int) -> dict[int, list[int]]:
    """Below a process, those that have a decode child, and the children of each."""
    found: dict[int, list[int]] = {}
    for pid, stat in below(root, all_stats()).items():
        if _CHILD_MARK in read_proc(pid, "cmdline"):
            found.setdefault(stat.parent, []).append(pid)
    return found


def _pss_bytes(pid: int) -> int:
    for line in read_proc(pid, "smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0
