"""raypipe in a process of its own: how long all of it took, and how fast it was once every actor was at work."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from _floor import Floor, Seconds
from _memory import MemoryWatch, Peak, tree_cpu_seconds

from raypipe import schema
from raypipe.config import EmbedConfig, load_config
from raypipe.dataset.plan import read_plan
from raypipe.storage import Folder


@dataclass(frozen=True)
class Commit:
    """A shard that was decoded, or put."""

    pid: int  # of the actor
    shard: int
    at: float  # Unix time
    cpu_seconds: float  # of the actor and its decode child until then


@dataclass(frozen=True)
class Run:
    """One run of raypipe."""

    seconds: float  # of the whole process, from its start to its end
    decoded: Sequence[Commit]  # shards whose frames an actor has; of one actor a processor, moments before the commit
    commits: Sequence[Commit]
    videos_of: Mapping[int, Sequence[str]]  # the videos of a shard
    peak: Peak

    def steady(self, floor: Floor) -> "Steady":
        """What was committed after each actor's first shard, which holds the start of it, against the floor of that.

        The largest shards come first: counting videos would flatter.
        """
        end = max(commit.at for commit in self.commits)
        until_end = until_own = cpu = 0.0
        work = Seconds()
        for pid in {commit.pid for commit in self.commits}:
            first, *rest = sorted((one for one in self.commits if one.pid == pid), key=lambda one: one.at)
            last = rest[-1] if rest else first
            until_end += end - first.at
            until_own += last.at - first.at
            cpu += last.cpu_seconds - first.cpu_seconds
            work += sum((floor.work(self.videos_of[one.shard]) for one in rest), Seconds())
        return Steady(until_end / work.wall, until_own / work.wall, cpu / work.cpu)


@dataclass(frozen=True)
class Steady:
    """raypipe over its floor."""

    until_end: float  # every actor's time until the last commit of all: what it waits for the last one is in it
    until_own: float  # every actor's time until its own last commit
    cpu: float  # processor time of the actors and their decode children; Ray's own processes are not in it


def embed_config(videos: Path, output: Path, *overrides: str) -> EmbedConfig:
    """Random weights, the defaults otherwise."""
    values = {"input": str(videos), "output": str(output)}
    return load_config(EmbedConfig, values=values, overrides=("backbone.weights=random", *overrides))


def run_raypipe(videos: Path, output: Path, *overrides: str) -> Run:
    """``raypipe embed`` with Ray's start and end, and the memory of its actors."""
    log = output.with_name(f"{output.name}.commits")
    start = time.perf_counter()
    command = [sys.executable, __file__, str(videos), str(output), str(log), *overrides]
    with subprocess.Popen(command) as process, MemoryWatch(process.pid) as watch:
        if process.wait():
            raise SystemExit(process.returncode)
    seconds = time.perf_counter() - start
    done: dict[str, list[Commit]] = {"decoded": [], "put": []}
    for line in log.read_text().splitlines():
        step, *commit = json.loads(line)
        done[step].append(Commit(*commit))
    shards = read_plan(Folder(str(output)), 0).shards()
    videos_of = {shard: rows[schema.VIDEO_ID].to_pylist() for shard, rows in shards}
    return Run(seconds, done["decoded"], done["put"], videos_of, watch.peak)


def _child(videos: str, output: str, log: str, *overrides: str) -> None:
    import ray  # noqa: PLC0415

    from raypipe.jobs.embed import cluster, job  # noqa: PLC0415

    decode_videos, put_shard = cluster.DecodeVideos, cluster.PutShard

    def note(step: str, shard: int) -> None:
        with Path(log).open("a") as file:
            file.write(json.dumps([step, os.getpid(), shard, time.time(), tree_cpu_seconds()]) + "\n")

    class WatchedDecode(decode_videos):
        """Says who decoded what, and when."""

        def __call__(self, rows):  # noqa: ANN001, ANN204
            decoded = super().__call__(rows)
            note("decoded", rows[schema.SHARD][0].as_py())
            return decoded

    class WatchedPut(put_shard):
        """Says who put what, and when."""

        def __call__(self, embedded):  # noqa: ANN001, ANN204
            summary = super().__call__(embedded)
            note("put", summary.shard)
            return summary

    cluster.DecodeVideos, cluster.PutShard = WatchedDecode, WatchedPut
    job.run_embed(embed_config(Path(videos), Path(output), *overrides))
    ray.shutdown()


if __name__ == "__main__":
    _child(*sys.argv[1:])
