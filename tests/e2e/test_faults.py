"""Kill everything that can be killed while embed runs: nothing is lost and nothing is doubled."""

import json
import random
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NoReturn

import pyarrow as pa
import pytest

from raypipe import schema
from raypipe.dataset.read import read_embeddings
from raypipe.errors import JobError
from raypipe.jobs.embed.job import run_embed
from raypipe.jobs.embed.verify import verify
from raypipe.records import ShardSummary
from raypipe.runs.actors import RayExecutor
from raypipe.runs.stages import Stage, identity
from raypipe.storage import Folder
from support.folders import num_committed
from support.processes import Configure, StartDriver, kill_one, wait_until
from support.videos import upload

pytestmark = pytest.mark.slow
_NUM_VIDEOS = 24
_SHARDS = ("shard.max_videos=2",)


def check(output: Folder, ids: list[str]) -> None:
    """Check that every video has exactly one row, every row is ok, and every promise holds."""
    assert verify(output).violations == []
    rows = [row for t in read_embeddings(output, columns=[schema.VIDEO_ID, schema.STATUS]) for row in t.to_pylist()]
    assert Counter((row[schema.VIDEO_ID], row[schema.STATUS]) for row in rows) == Counter((name, "ok") for name in ids)


@pytest.mark.parametrize("executor", ["ray", "local"])
@pytest.mark.parametrize("num_kills", [1, pytest.param(4, marks=pytest.mark.nightly)])
def test_killed_drivers(
    bucket: str, configure: Configure, start_driver: StartDriver, num_kills: int, executor: str
) -> None:
    videos, output = Folder(f"{bucket}/in"), Folder(f"{bucket}/out")
    ids = upload(videos, _NUM_VIDEOS)
    config = configure(videos.uri, output.uri, *_SHARDS, f"executor={executor}")
    for _ in range(num_kills):
        upto = num_committed(output) + random.randint(1, 2)
        driver = start_driver(config)
        wait_until(lambda upto=upto: num_committed(output) >= upto, what=f"{upto} shards")
        driver.kill()
    committed = num_committed(output)
    last = start_driver(config)
    assert last.wait() == 0, last.log.read_text()
    check(output, ids)
    summary = json.loads(output.read("reports/00000/summary.json"))
    assert summary["num_resumed_videos"] >= 2 * committed  # no committed shard is redone
    assert summary["num_done_videos"] == len(ids)


@pytest.mark.parametrize("executor", ["ray", "local"])
def test_ctrl_c_stops_cleanly(bucket: str, configure: Configure, start_driver: StartDriver, executor: str) -> None:
    videos, output = Folder(f"{bucket}/in"), Folder(f"{bucket}/out")
    ids = upload(videos, 12)
    config = configure(videos.uri, output.uri, *_SHARDS, f"executor={executor}")
    driver = start_driver(config)
    wait_until(lambda: num_committed(output) >= 1, what="a shard")
    driver.process.send_signal(signal.SIGINT)
    assert driver.wait() == 130
    printed = driver.log.read_text()
    assert printed.splitlines()[-1].startswith("stopped: ")
    assert "Traceback" not in printed
    run_embed(config)
    check(output, ids)


@pytest.mark.nightly
def test_killed_before_and_while_planning(bucket: str, configure: Configure, start_driver: StartDriver) -> None:
    videos, output = Folder(f"{bucket}/in"), Folder(f"{bucket}/out")
    ids = upload(videos, 6)
    config = configure(videos.uri, output.uri, *_SHARDS)
    driver = start_driver(config)
    wait_until(lambda: output.exists("plans/00000.parquet"), what="the plan")
    driver.kill()
    assert num_committed(output) < 3
    last = start_driver(config)
    assert last.wait() == 0, last.log.read_text()
    check(output, ids)


def test_two_drivers_at_once(bucket: str, configure: Configure, start_driver: StartDriver) -> None:
    videos, output = Folder(f"{bucket}/in"), Folder(f"{bucket}/out")
    ids = upload(videos, _NUM_VIDEOS)
    config = configure(videos.uri, output.uri, *_SHARDS)
    drivers = [start_driver(config), start_driver(config)]
    assert [driver.wait() for driver in drivers] == [0, 0], [driver.log.read_text() for driver in drivers]
    check(output, ids)


@pytest.mark.parametrize(("executor", "worker"), [("ray", ("ray::", "RunSteps")), ("local", ("popen_loky_posix",))])
def test_killed_workers(
    bucket: str, configure: Configure, start_driver: StartDriver, executor: str, worker: tuple[str, ...]
) -> None:
    """Kill a worker that runs the stages, and a child that decodes."""
    videos, output = Folder(f"{bucket}/in"), Folder(f"{bucket}/out")
    ids = upload(videos, _NUM_VIDEOS)
    driver = start_driver(configure(videos.uri, output.uri, *_SHARDS, f"executor={executor}"))
    for upto, words in ((1, ("raypipe.video.sandbox.child",)), (3, worker)):
        wait_until(lambda upto=upto: num_committed(output) >= upto, what=f"{upto} shards")
        wait_until(lambda words=words: kill_one(*words), what=f"a process of {words}")
    assert driver.wait() == 0, driver.log.read_text()
    check(output, ids)


class _Broken(RayExecutor):
    """Run actors that cannot start, so that Ray gives up."""

    def run(self, stages: Sequence[Stage], blocks: Sequence[pa.Table]) -> Iterator[ShardSummary]:
        def make(_: object) -> NoReturn:  # a closure: workers cannot import the tests
            msg = "it broke"
            raise ValueError(msg)

        return super().run([replace(stages[0], steps=((make, None),))], blocks)


class _Down(RayExecutor):
    """Simulate a storage that is down for the first shard of each wave, or for all shards."""

    def __init__(self, *, waves: int, is_for_all: bool = False) -> None:
        self.num_blocks: list[int] = []
        self._waves, self._is_for_all = waves, is_for_all

    def run(self, stages: Sequence[Stage], blocks: Sequence[pa.Table]) -> Iterator[ShardSummary]:
        self.num_blocks.append(len(blocks))
        num_down = 0
        if len(self.num_blocks) <= self._waves:
            num_down = len(blocks) if self._is_for_all else 1
        if num_down < len(blocks):
            yield from super().run(stages, blocks[num_down:])
        for block in blocks[:num_down]:
            yield ShardSummary(*identity(block), problem="StorageError: it is down")


def test_a_ray_failure_is_one_plain_line(bucket: str, configure: Configure) -> None:
    videos = Folder(f"{bucket}/in")
    upload(videos, 1)
    with pytest.raises(JobError) as caught:
        run_embed(configure(videos.uri, f"{bucket}/out"), executor=_Broken())
    assert "ValueError: it broke" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_failed_shard_is_retried(bucket: str, configure: Configure) -> None:
    """A storage outage fails no video: the shard is retried, and the run exits with 1 if the outage lasts."""
    videos, output = Folder(f"{bucket}/in"), Folder(f"{bucket}/out")
    ids = upload(videos, 4)
    config = configure(videos.uri, output.uri, *_SHARDS)
    with pytest.raises(JobError, match="it is down"):
        run_embed(config, executor=_Down(waves=9, is_for_all=True))
    executor = _Down(waves=1)
    run_embed(config, executor=executor)
    assert executor.num_blocks == [4, 1]
    check(output, ids)
