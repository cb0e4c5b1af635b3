"""Kill everything that can be killed while embed runs; nothing is lost, nothing is doubled."""

import json
import random
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
import ray

from raypipe import schema
from raypipe.dataset.read import read_embeddings
from raypipe.errors import JobError
from raypipe.jobs.embed import job
from raypipe.jobs.embed.job import run_embed
from raypipe.jobs.embed.verify import verify
from raypipe.records import ShardSummary
from raypipe.storage import Folder
from support.folders import num_committed
from support.processes import Configure, StartDriver, kill_one, wait_until
from support.videos import upload

pytestmark = pytest.mark.slow
_NUM_VIDEOS = 24
_SHARDS = ("shard.max_videos=2",)


def check(output: Folder, ids: list[str]) -> None:
    """Every video exactly one row, all of them ok, and every promise holds."""
    assert verify(output).violations == []
    rows = [row for t in read_embeddings(output, columns=[schema.VIDEO_ID, schema.STATUS]) for row in t.to_pylist()]
    assert Counter((row[schema.VIDEO_ID], row[schema.STATUS]) for row in rows) == Counter((name, "ok") for name in ids)


@pytest.mark.parametrize("num_kills", [1, pytest.param(4, marks=pytest.mark.nightly)])
def test_killed_drivers(bucket: str, configure: Configure, start_driver: StartDriver, num_kills: int) -> None:
    videos, output = Folder(f"{bucket}/in"), Folder(f"{bucket}/out")
    ids = upload(videos, _NUM_VIDEOS)
    config = configure(videos.uri, output.uri, *_SHARDS)
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
    assert summary["num_resumed_videos"] >= 2 * committed  # nothing that was committed is redone
    assert summary["num_done_videos"] == len(ids)


def test_ctrl_c_stops_cleanly(bucket: str, configure: Configure, start_driver: StartDriver) -> None:
    videos, output = Folder(f"{bucket}/in"), Folder(f"{bucket}/out")
    ids = upload(videos, 12)
    config = configure(videos.uri, output.uri, *_SHARDS)
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


def test_killed_workers(bucket: str, configure: Configure, start_driver: StartDriver) -> None:
    """A Ray worker that runs the stages, and a child that decodes."""
    videos, output = Folder(f"{bucket}/in"), Folder(f"{bucket}/out")
    ids = upload(videos, _NUM_VIDEOS)
    driver = start_driver(configure(videos.uri, output.uri, *_SHARDS))
    for upto, words in ((1, ("raypipe.video.worker",)), (3, ("ray::", "RunSteps"))):
        wait_until(lambda upto=upto: num_committed(output) >= upto, what=f"{upto} shards")
        wait_until(lambda words=words: kill_one(*words), what=f"a process of {words}")
    assert driver.wait() == 0, driver.log.read_text()
    check(output, ids)


def test_what_ray_gives_up_with_is_one_plain_line(
    bucket: str, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = Folder(f"{bucket}/in")
    upload(videos, 1)

    def give_up(*_: object, **__: object) -> Iterator[ShardSummary]:
        said = "\x1b[36mray::MapWorker\x1b[39m died\n  File x, line 1\nValueError: it broke"
        raise ray.exceptions.RayError(said)

    monkeypatch.setattr(job.cluster, "run_shards", give_up)
    with pytest.raises(JobError) as caught:
        run_embed(configure(videos.uri, f"{bucket}/out"))
    assert "ValueError: it broke" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_shard_that_fails_is_tried_again(bucket: str, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that is down ends no video: the shard is tried again, and the run ends with 1 when it stays down."""
    videos, output = Folder(f"{bucket}/in"), Folder(f"{bucket}/out")
    ids = upload(videos, 4)
    config = configure(videos.uri, output.uri, *_SHARDS)
    run_shards = job.cluster.run_shards

    def down(blocks: list[pa.Table], *_: object, **__: object) -> Iterator[ShardSummary]:
        for number, _ in enumerate(blocks):
            yield ShardSummary(0, number, {}, 0, 0, {}, 0.0, problem="StorageError: it is down")

    monkeypatch.setattr(job.cluster, "run_shards", down)
    with pytest.raises(JobError, match="it is down"):
        run_embed(config)
    rounds: list[int] = []

    def down_at_first(blocks: list[pa.Table], *args: Any, **kwargs: Any) -> Iterator[ShardSummary]:  # noqa: ANN401
        rounds.append(len(blocks))
        if len(rounds) == 1:
            yield from run_shards(blocks[1:], *args, **kwargs)
            yield from down(blocks[:1])
        else:
            yield from run_shards(blocks, *args, **kwargs)

    monkeypatch.setattr(job.cluster, "run_shards", down_at_first)
    run_embed(config)
    assert rounds == [4, 1]
    check(output, ids)
