"""CPU seconds of a command and of all that it starts: daemons that leave its process tree too, and what they start."""

import ctypes
import os
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.1  # what a process does after it was last seen is lost: at most so much of each
_TICKS = os.sysconf("SC_CLK_TCK")


def run_counting_cpu(command: Sequence[str]) -> tuple[str, dict[str, float]]:
    """Run a command; return what it printed, and the CPU seconds by name of process, all of its descendants included.

    Raises:
        CalledProcessError: it failed.
    """
    # Orphans become children of this process instead of init's, so that every descendant stays below it.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    seconds: dict[tuple[int, int], tuple[str, float]] = {}
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(seconds, ended))
    watcher.start()
    try:
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        with suppress(ChildProcessError):
            while True:
                os.wait()  # for the daemons that it left, so that nothing of this run is beside the next
    finally:
        ended.set()
        watcher.join()
    by_name: Counter[str] = Counter()
    for name, used in seconds.values():
        by_name[name] += used
    return printed, dict(by_name)


def _watch(seconds: dict[tuple[int, int], tuple[str, float]], ended: threading.Event) -> None:
    while not ended.wait(_POLL_SECONDS):
        for pid, stat in below(os.getpid(), all_stats()).items():
            process = (pid, stat.started_at)  # numbers are used again
            seconds[process] = _name(pid) or seconds.get(process, ("unknown", 0.0))[0], stat.cpu_seconds


@dataclass(frozen=True, slots=True)
class Stat:
    """What ``/proc/PID/stat`` says of a process."""

    parent: int
    cpu_seconds: float
    started_at: int  # in ticks since the machine started


def all_stats() -> dict[int, Stat]:
    """Every process of the machine, by its number."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        if fields := read_proc(pid, "stat").rpartition(b")")[2].split():
            found[pid] = Stat(int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[19]))
    return found


def below(root: int, stats: Mapping[int, Stat]) -> dict[int, Stat]:
    """Those that ``root`` started, and all that they started."""
    found = {root}
    while new := {pid for pid, stat in stats.items() if stat.parent in found} - found:
        found |= new
    return {pid: stats[pid] for pid in found - {root}}


def read_proc(pid: int, name: str) -> bytes:
    """A file of a process; empty where it has gone meanwhile."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _name(pid: int) -> str:
    """What a process is: Ray's workers by what they run, others by their script or program; "" where it has ended."""
    words = read_proc(pid, "cmdline").decode(errors="replace").replace("\0", " ").split()
    if not words:
        return ""
    if words[0].startswith("ray::"):
        return re.sub(r"[^\w:]+.*", "", words[0])
    return next((word for word in words[1:] if word.endswith(".py")), words[0]).rsplit("/", 1)[-1]


def peak_bytes() -> int:
    """The most memory this process has held."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0
