"""Time and memory of processes: this one, its descendants, and a whole command with the daemons that it leaves."""

import ctypes
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36
_CPU_POLL_SECONDS = 0.1  # CPU time that a process uses after the last poll that saw it is not counted
_MEMORY_POLL_SECONDS = 1.0
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_DECODE_CHILD = b"raypipe.video"  # is in the command line of every decode child


@dataclass(frozen=True)
class Seconds:
    """Wall time and CPU time. Other work on the machine hardly changes CPU time."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def __mul__(self, times: float) -> "Seconds":
        return Seconds(self.wall * times, self.cpu * times)


class Stopwatch:
    """Measures wall and CPU time from its creation; ``cpu_clock`` returns CPU seconds, by default of this process."""

    def __init__(self, cpu_clock: Callable[[], float] = time.process_time) -> None:
        self._cpu_clock = cpu_clock
        self._wall, self._cpu = time.perf_counter(), cpu_clock()

    def read(self) -> Seconds:
        """Return the time since the stopwatch was created."""
        return Seconds(time.perf_counter() - self._wall, self._cpu_clock() - self._cpu)


def family_cpu_seconds() -> float:
    """Return the CPU time of this process and its children, including children that have ended."""
    own = os.getpid()
    return sum(os.times()[:4]) + sum(
        process.cpu_seconds for process in _all_processes().values() if process.parent == own
    )


def peak_bytes(pid: int | None = None) -> int:
    """Return the peak memory of a process, by default of this one; 0 if the process has ended."""
    found = re.search(rb"VmHWM:\s+(\d+) kB", _read_proc(pid or os.getpid(), "status"))
    return int(found[1]) * 1024 if found else 0


def in_process(function: Callable[..., Any], *arguments: object, **options: object) -> Any:  # noqa: ANN401
    """Call a function in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **options).result()


def run_counting_cpu(command: Sequence[str]) -> tuple[str, float]:
    """Run a command; return its output, and the CPU seconds of the command and all its descendants.

    Raises:
        CalledProcessError: the command failed.
    """
    # Orphans become children of this process instead of init, so that they remain its descendants.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    used: dict[tuple[int, int], float] = {}  # by PID and start time: PIDs are reused

    def poll() -> None:
        for pid, process in _descendants().items():
            used[pid, process.started_ticks] = process.cpu_seconds

    with _polling(poll, _CPU_POLL_SECONDS):
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        with suppress(ChildProcessError):
            while True:
                os.wait()  # for the daemons that the command left, so that they do not disturb the next one
    return printed, sum(used.values())


@dataclass
class Peak:
    """The peak memory of one decoding actor and its decode child together, in bytes of PSS."""

    total: int = 0
    actor: int = 0  # of the total, at the same moment
    child: int = 0


@contextmanager
def watching_memory() -> Iterator[Peak]:
    """Sample the memory of this process's descendant decoding actors every second, and keep the peak of one actor.

    PSS divides a page that several processes map, such as torch's libraries and blocks of the object store, among
    these processes, so the values of several actors can be added.
    """
    peak = Peak()

    def poll() -> None:
        children: dict[int, list[int]] = {}
        for pid, process in _descendants().items():
            if _DECODE_CHILD in _read_proc(pid, "cmdline"):
                children.setdefault(process.parent, []).append(pid)
        for actor, pids in children.items():
            of_actor, of_children = _pss_bytes(actor), sum(map(_pss_bytes, pids))
            if of_actor + of_children > peak.total:
                peak.total, peak.actor, peak.child = of_actor + of_children, of_actor, of_children

    with _polling(poll, _MEMORY_POLL_SECONDS):
        yield peak


@contextmanager
def watching_peaks(title: str) -> Iterator[dict[int, int]]:
    """Keep the peak memory of each descendant whose command line starts with this title, in bytes by PID."""
    peaks: dict[int, int] = {}

    def poll() -> None:
        for pid in _descendants():
            if _read_proc(pid, "cmdline").startswith(title.encode()):
                peaks[pid] = max(peaks.get(pid, 0), peak_bytes(pid))

    with _polling(poll, _MEMORY_POLL_SECONDS):
        yield peaks


@contextmanager
def _polling(poll: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call ``poll`` at this interval in a thread."""
    ended = threading.Event()

    def loop() -> None:
        while not ended.wait(seconds):
            poll()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@dataclass(frozen=True, slots=True)
class _Process:
    """Values from ``/proc/PID/stat``."""

    parent: int
    cpu_seconds: float
    started_ticks: int  # since the machine started


def _all_processes() -> dict[int, _Process]:
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        if fields := _read_proc(pid, "stat").rpartition(b")")[2].split():
            cpu_seconds = (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND
            found[pid] = _Process(int(fields[1]), cpu_seconds, int(fields[19]))
    return found


def _descendants() -> Mapping[int, _Process]:
    """Return the descendants of this process, at any depth."""
    processes = _all_processes()
    found = {os.getpid()}
    while new := {pid for pid, process in processes.items() if process.parent in found} - found:
        found |= new
    return {pid: processes[pid] for pid in found - {os.getpid()}}


def _read_proc(pid: int, name: str) -> bytes:
    """Return the content of a file of a process; empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _pss_bytes(pid: int) -> int:
    found = re.search(rb"^Pss:\s+(\d+) kB", _read_proc(pid, "smaps_rollup"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
