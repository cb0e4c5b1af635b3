"""Kill processes at random while embed runs, repeat the command until it succeeds, and compare with an undisturbed run.

A seed decides which process is hit, when, and whether it is killed or only stopped for a while. It does not decide what
the process is doing at that moment, because timing varies.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chaos.kill_cluster import Cluster, running_cluster, strike, wake
from raypipe import schema
from raypipe.config import EmbedConfig, load_config
from raypipe.dataset.read import read_embeddings
from raypipe.jobs.embed.verify import verify
from raypipe.status import TRANSIENT, Status
from raypipe.storage import Folder
from support.folders import num_committed
from support.processes import Driver
from support.videos import upload

_MAX_COMMANDS = 40
_HANG_SECONDS = 150.0  # without a new shard, blow or exit
CHEAP = (
    "backbone.name=resnet18",
    "backbone.weights=random",
    "sampling.num_frames=2",
    "shard.max_videos=1",
    "decode.timeout_seconds=6",
    "decode.decoder=pyav",
)
# Weights of 100: a dead driver or cluster costs a restart, a worker its imports, a decode child almost nothing.
_SOFT = "decode child"
_WEIGHTS = {_SOFT: 76, "Ray worker": 14, "driver": 6, "raylet": 2, "GCS": 2}


@dataclass
class Tally:
    """What was tried and what was found."""

    blows: Counter[str] = field(default_factory=Counter)  # "SIGKILL driver" -> times
    num_runs: int = 0
    num_commands: int = 0
    statuses: Counter[str] = field(default_factory=Counter)  # of rows before their retry
    problems: list[str] = field(default_factory=list)

    @property
    def num_kills(self) -> int:
        """Return how many blows ended a process."""
        return sum(count for name, count in self.blows.items() if name.startswith("SIGKILL"))


class Ground:
    """A cluster, an input, and the vectors of an undisturbed run."""

    def __init__(self, cluster: Cluster, place: Folder, logs: Path, *, seed: int, num_videos: int) -> None:
        self._cluster, self._logs, self._random = cluster, logs, random.Random(seed)
        self._videos = Folder(place.child("in"))
        self._place = place
        self._num_outputs = 0
        self._committed = 0  # shards of the current output
        self._may_strike_hard = True
        upload(self._videos, num_videos)
        self.expected = self._vectors(self._in_peace(self._new_output(), Tally()))

    def run(self, tally: Tally, *, max_blows: int) -> None:
        """Fill and seal one output under at most ``max_blows`` blows."""
        output = self._new_output()
        left = max_blows
        self._committed = 0
        tally.num_runs += 1
        for _ in range(_MAX_COMMANDS):
            driver = self._start(output)
            tally.num_commands += 1
            left -= self._beat(driver, output, tally, left)
            if driver.wait() == 0:
                break
        else:
            tally.problems.append(f"run {tally.num_runs}: needs a person after {_MAX_COMMANDS} commands")
            return
        self._check(output, tally)

    def _start(self, output: Folder, retry: str | None = None) -> Driver:
        values = {"input": self._videos.uri, "output": output.uri, "retry": retry}
        config = load_config(EmbedConfig, values=values, overrides=CHEAP)
        return Driver("embed", config, self._cluster.address(), self._logs / f"{time.time_ns()}.log")

    def _beat(self, driver: Driver, output: Folder, tally: Tally, left: int) -> int:
        """Strike until the driver exits or the blows are used up, and check that it makes progress."""
        num_blows = 0
        stopped: dict[int, float] = {}  # pid -> when it is continued
        victim, seconds = self._draw()
        moved_at = time.monotonic()
        next_blow = moved_at + self._random.uniform(0, 8)  # may also hit its start
        while driver.process.poll() is None:
            now = time.monotonic()
            over = [pid for pid, until in stopped.items() if until <= now]
            wake(over)
            stopped = {pid: until for pid, until in stopped.items() if pid not in over}
            if (count := num_committed(output)) > self._committed:
                self._committed, moved_at, self._may_strike_hard = count, now, True
            if now - moved_at > _HANG_SECONDS:
                said = driver.log.read_text()[-300:]
                tally.problems.append(f"run {tally.num_runs}: hangs with {count} shards: {said}")
                driver.kill()
                break
            is_due = now >= next_blow and num_blows < left
            # A drawn victim waits until it exists. Otherwise only the cluster would be hit while a driver starts.
            if is_due and (pid := strike(self._cluster, victim, self._random.randrange(100), seconds=seconds)):
                num_blows, moved_at = num_blows + 1, now
                tally.blows[f"{'SIGKILL' if seconds is None else 'SIGSTOP'} {victim}"] += 1
                if seconds is not None:
                    stopped[pid] = now + seconds
                self._may_strike_hard = self._may_strike_hard and victim == _SOFT
                victim, seconds = self._draw()
                next_blow = now + self._random.expovariate(1.5)
            time.sleep(0.05)
        wake(list(stopped))
        return num_blows

    def _draw(self) -> tuple[str, float | None]:
        """Draw a victim and how long to stop it (None: kill it). Victims other than ``_SOFT`` need progress first."""
        names = list(_WEIGHTS) if self._may_strike_hard else [_SOFT]
        victim = self._random.choices(names, [_WEIGHTS[name] for name in names])[0]
        return victim, self._random.choice((None, None, None, self._random.uniform(0.2, 9)))

    def _in_peace(self, output: Folder, tally: Tally, retry: str | None = None) -> Folder:
        driver = self._start(output, retry)
        if driver.wait():
            tally.problems.append(f"run {tally.num_runs}: without kills it ends with {driver.log.read_text()[-300:]}")
        return output

    def _check(self, output: Folder, tally: Tally) -> None:
        where = f"run {tally.num_runs}"
        found = self._vectors(output)
        tally.statuses.update(status for status, _ in found.values())
        tally.problems += [f"{where}: {violation}" for violation in verify(output).violations]
        tally.problems += [f"{where}: {name} is lost" for name in self.expected if name not in found]
        bad = {status for status, _ in found.values()} - {Status.OK} - TRANSIENT
        tally.problems += [f"{where}: rows that are {status}" for status in bad]
        if any(status != Status.OK for status, _ in found.values()):
            found = self._vectors(self._in_peace(output, tally, retry="transient"))
        for name, (status, vectors) in found.items():
            if status != Status.OK or not np.array_equal(vectors, self.expected[name][1]):
                tally.problems.append(f"{where}: {name} is {status}, or has other vectors")

    def _vectors(self, output: Folder) -> dict[str, tuple[str, Any]]:
        """Return each video's status and frame vectors; fail if a video has two rows."""
        columns = [schema.VIDEO_ID, schema.STATUS, schema.FRAME_EMBEDDINGS]
        rows = [row for table in read_embeddings(output, columns=columns) for row in table.to_pylist()]
        assert len(rows) == len({row[schema.VIDEO_ID] for row in rows}), "a video has two rows"
        return {row[schema.VIDEO_ID]: (row[schema.STATUS], np.array(row[schema.FRAME_EMBEDDINGS])) for row in rows}

    def _new_output(self) -> Folder:
        self._num_outputs += 1
        return Folder(self._place.child(f"out-{self._num_outputs}"))


@contextmanager
def ground(place: Folder, logs: Path, *, seed: int, num_videos: int) -> Iterator[Ground]:
    """Yield a running cluster with an input to embed."""
    with pytest.MonkeyPatch.context() as patch, running_cluster() as cluster:
        patch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "10")  # a driver waits so long for a cluster
        yield Ground(cluster, place, logs, seed=seed, num_videos=num_videos)
