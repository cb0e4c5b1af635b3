"""CPU seconds of a command and of all that it starts: daemons that leave its process tree too, and what they start."""

import ctypes
import os
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
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
        for process, (name, used) in _descendants(os.getpid()).items():
            seconds[process] = name or seconds.get(process, ("unknown", 0.0))[0], used


def _descendants(root: int) -> dict[tuple[int, int], tuple[str, float]]:
    """(pid, start time) -> name and CPU seconds of every process below ``root``."""
    stats: dict[int, tuple[list[str], str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended
                stats[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split(), _name(entry)
    below = {root}
    while new := {pid for pid, (fields, _) in stats.items() if int(fields[1]) in below} - below:
        below |= new
    return {
        (pid, int(fields[19])): (name, (int(fields[11]) + int(fields[12])) / _TICKS)
        for pid, (fields, name) in stats.items()
        if pid in below - {root}
    }


def _name(entry: Path) -> str:
    """What a process is: Ray's workers by what they run, others by their script or program; "" where it has ended."""
    words = (entry / "cmdline").read_text().replace("\0", " ").split()
    if not words:
        return ""
    if words[0].startswith("ray::"):
        return re.sub(r"[^\w:]+.*", "", words[0])
    return next((word for word in words[1:] if word.endswith(".py")), words[0]).rsplit("/", 1)[-1]


def peak_bytes() -> int:
    """The most memory this process has held."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0
