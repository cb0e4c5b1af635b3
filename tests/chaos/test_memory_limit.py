"""A node that runs out of memory for a while: Ray kills the worker, and the result is that of an undisturbed run."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chaos.kill_cluster import running_cluster
from chaos.kill_runs import CHEAP
from raypipe import schema
from raypipe.config import EmbedConfig, load_config
from raypipe.dataset.read import read_embeddings
from raypipe.jobs.embed.verify import verify
from raypipe.storage import Folder
from support.folders import num_committed
from support.processes import Driver, wait_until
from support.videos import upload

pytestmark = pytest.mark.nightly

_NUM_VIDEOS = 120
_ROOM = 0.15  # of the machine's memory: how much Ray and the worker may use
# Allocates as many bytes as each line of its input says, and frees them when it ends.
_BALLOON = "import sys\nheld = [b'1' * int(line) for line in sys.stdin]"


def memory(name: str) -> int:
    """Return a number of bytes from /proc/meminfo."""
    found = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(found.split()[1]) * 1024


@contextmanager
def balloon() -> Iterator[subprocess.Popen[str]]:
    """Start a process that allocates as many bytes as each line it receives says."""
    with subprocess.Popen([sys.executable, "-c", _BALLOON], stdin=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_node_that_runs_out_of_memory(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos, output = Folder(f"{bucket}/in"), Folder(f"{bucket}/out")
    upload(videos, _NUM_VIDEOS)
    total = memory("MemTotal")
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{1 - memory('MemAvailable') / total + _ROOM:.3f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    config = load_config(EmbedConfig, values={"input": videos.uri, "output": output.uri}, overrides=CHEAP)
    with running_cluster() as cluster:
        driver = Driver("embed", config, cluster.address(), tmp_path / "driver.log")
        try:
            wait_until(lambda: num_committed(output) > 0, what="a shard")
            before = set(cluster.pids("Ray worker"))
            with balloon() as taken:

                def is_killed() -> bool:
                    if memory("MemAvailable") > total // 10:
                        print(total // 50, file=taken.stdin, flush=True)
                    return not before & set(cluster.pids("Ray worker"))

                wait_until(is_killed, what="the end of the worker")
                assert num_committed(output) < _NUM_VIDEOS
            assert driver.wait() == 0, driver.log.read_text()
        finally:
            driver.kill()
    assert verify(output).violations == []
    rows = [row for table in read_embeddings(output, columns=[schema.STATUS]) for row in table.to_pylist()]
    assert [row[schema.STATUS] for row in rows] == ["ok"] * _NUM_VIDEOS
