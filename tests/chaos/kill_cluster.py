"""A separate Ray cluster whose processes can be killed, or stopped for a while."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from support.processes import pids_of, wait_until

NUM_CPUS = 2
DRIVER = "driver"  # the only victim outside the cluster
# A part of each victim's command line. The actor is the Ray worker: without a GPU, one actor does all work of a shard.
VICTIMS = {
    "decode child": ("raypipe.video.sandbox.child",),
    "Ray worker": ("ray::", "RunSteps"),
    "raylet": ("/raylet/raylet",),
    "GCS": ("/gcs/gcs_server",),
    DRIVER: ("raypipe\0embed\0",),  # /proc separates arguments by zero bytes
}


class Cluster:
    """One node that restarts after a kill. It ignores any other Ray that these tests run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "ray.log"
        self._process: subprocess.Popen[bytes] | None = None

    def address(self) -> str:
        """Return the address for drivers; start the cluster if it does not run."""
        if not self.is_whole():
            self.end()
            self._start()
        return (self._folder / "ray_current_cluster").read_text().strip()

    def is_whole(self) -> bool:
        """Return whether all its processes run."""
        alive = self._process is not None and self._process.poll() is None
        return alive and all(self.pids(name) for name in ("raylet", "GCS"))

    def pids(self, victim: str) -> list[int]:
        """Return the processes of this kind, sorted."""
        words = VICTIMS[victim]
        return sorted(pids_of(*words) if victim == DRIVER else self._own(*words))

    def _own(self, *words: str) -> list[int]:
        return [] if self._process is None else pids_of(*words, below=self._process.pid)

    def end(self) -> None:
        """SIGKILL every process of the cluster."""
        if self._process is None:
            return
        own = self._own()  # while their parents still exist to identify them
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGCONT)
            os.killpg(self._process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        for pid in own:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _start(self) -> None:
        known = self._folder / "ray_current_cluster"
        known.unlink(missing_ok=True)
        options = (
            "--port=0",
            f"--num-cpus={NUM_CPUS}",
            "--include-dashboard=false",
            "--disable-usage-stats",
            "--block",
        )
        command = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--head",
            *options,
            f"--temp-dir={self._folder}",
        ]
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        wait_until(lambda: known.exists() and self.is_whole(), what="a Ray")


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Run a cluster until the block ends."""
    with tempfile.TemporaryDirectory(prefix="k", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder))
        try:
            yield cluster
        finally:
            cluster.end()


def strike(cluster: Cluster, victim: str, number: int, *, seconds: float | None) -> int:
    """SIGKILL one of these processes, or SIGSTOP it for a SIGCONT later; return its pid, or 0 if there is none."""
    pids = cluster.pids(victim)
    if not pids:
        return 0
    pid = pids[number % len(pids)]
    try:
        os.kill(pid, signal.SIGKILL if seconds is None else signal.SIGSTOP)
    except ProcessLookupError:
        return 0
    return pid


def wake(pids: Sequence[int]) -> None:
    """SIGCONT the processes that still exist."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
