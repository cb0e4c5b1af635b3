"""A Ray of its own, and the processes below it that can be killed, or stopped for a while."""

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
DRIVER = "driver"  # the only victim that is no process of the cluster
# What each victim's command line holds. The actor is the Ray worker: without a GPU one does all that a shard needs.
VICTIMS = {
    "decode child": ("raypipe.video.sandbox.child",),
    "Ray worker": ("ray::", "RunSteps"),
    "raylet": ("/raylet/raylet",),
    "GCS": ("/gcs/gcs_server",),
    DRIVER: ("raypipe\0embed\0",),  # /proc parts arguments by zero bytes
}


class Cluster:
    """One node, which begins again when somebody has killed it; another Ray of these tests is not its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "ray.log"
        self._process: subprocess.Popen[bytes] | None = None

    def address(self) -> str:
        """Where a driver finds it; started where it does not run."""
        if not self.is_whole():
            self.end()
            self._start()
        return (self._folder / "ray_current_cluster").read_text().strip()

    def is_whole(self) -> bool:
        """Whether its processes are all there."""
        alive = self._process is not None and self._process.poll() is None
        return alive and all(self.pids(name) for name in ("raylet", "GCS"))

    def pids(self, victim: str) -> list[int]:
        """The processes of this kind, sorted."""
        words = VICTIMS[victim]
        return sorted(pids_of(*words) if victim == DRIVER else self._own(*words))

    def _own(self, *words: str) -> list[int]:
        return [] if self._process is None else pids_of(*words, below=self._process.pid)

    def end(self) -> None:
        """SIGKILL for everything of it."""
        if self._process is None:
            return
        own = self._own()  # while their parents are there to tell them by
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
    """A cluster that is gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="k", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder))
        try:
            yield cluster
        finally:
            cluster.end()


def strike(cluster: Cluster, victim: str, number: int, *, seconds: float | None) -> int:
    """SIGKILL one process of these, or SIGSTOP it and SIGCONT it later; its pid, or 0 where there is none."""
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
    """SIGCONT for those that are still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
