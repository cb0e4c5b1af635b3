"""Run embed with ``raypipe submit``, and resume after the loss of nodes, of the driver, or after a stop."""

import json
import signal
from pathlib import Path

import pytest

from raypipe.config import EmbedConfig, IndexConfig
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from support.cluster.jobs import check_embedded, embed_config, raypipe, send, submit, wait_for_shards
from support.cluster.nodes import RayCluster, RayNode
from support.folders import num_committed
from support.processes import wait_until
from support.videos import upload

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]

_NUM_VIDEOS = 40
_NUM_SHARDS = _NUM_VIDEOS // 2


def places(place: Folder) -> tuple[Folder, Folder]:
    """Return the folder of the videos and the folder of the output."""
    return Folder(place.child("in")), Folder(place.child("out"))


def resume(cluster: RayCluster, config: EmbedConfig, folder: Path, ids: list[str]) -> None:
    """Submit the job again: now every video is embedded, and no committed shard was redone."""
    output = Folder(config.output)
    committed = num_committed(output)
    assert committed < _NUM_SHARDS
    again = submit(cluster, config, folder)
    assert again.wait() == 0, again.printed
    check_embedded(output, ids)
    summary = json.loads(output.read("reports/00000/summary.json"))
    assert summary["num_resumed_videos"] >= 2 * committed
    assert summary["num_done_videos"] == len(ids)


def test_a_bucket_is_embedded_and_indexed(cluster: RayCluster, place: Folder, tmp_path: Path) -> None:
    videos, output = places(place)
    ids = upload(videos, 8)
    done = submit(cluster, embed_config(videos.uri, output), tmp_path)
    assert done.wait() == 0, done.printed
    assert f"{len(ids)} " in done.printed
    assert output.uri in done.printed
    check_embedded(output, ids)
    verified = raypipe(cluster, "verify", output.uri)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    index = Folder(place.child("index"))
    indexed = submit(cluster, IndexConfig(embeddings=output.uri, output=index.uri), tmp_path, job="index")
    assert indexed.wait() == 0, indexed.printed
    assert Versions(index).require_current()


def test_a_worker_dies_and_another_joins_late(cluster: RayCluster, place: Folder, tmp_path: Path) -> None:
    videos, output = places(place)
    ids = upload(videos, _NUM_VIDEOS)
    job = submit(cluster, embed_config(videos.uri, output), tmp_path)
    wait_for_shards(job, output, 2)
    cluster.lose(cluster.workers[0], kill=RayNode.kill_raylet)
    assert num_committed(output) < _NUM_SHARDS
    late = cluster.add_node()
    cluster.wait_for_nodes(3)
    wait_until(lambda: late.runs("RunSteps") or job.process.poll() is not None, what="work for the late node")
    assert job.process.poll() is None, job.printed
    assert job.wait() == 0, job.printed
    check_embedded(output, ids)


def test_a_killed_driver_is_resumed(cluster: RayCluster, place: Folder, tmp_path: Path) -> None:
    videos, output = places(place)
    ids = upload(videos, _NUM_VIDEOS)
    config = embed_config(videos.uri, output)
    job = submit(cluster, config, tmp_path)
    wait_for_shards(job, output, 2)
    assert cluster.head.kill_driver()
    assert job.wait() == 128 + signal.SIGKILL, job.printed
    resume(cluster, config, tmp_path, ids)


def test_a_stopped_job_resumes(cluster: RayCluster, place: Folder, tmp_path: Path) -> None:
    videos, output = places(place)
    ids = upload(videos, _NUM_VIDEOS)
    config = embed_config(videos.uri, output)
    sent = send(cluster, config, tmp_path)
    wait_for_shards(None, output, 2)
    running = raypipe(cluster, "submit", "--address", cluster.address, "--status", sent)
    assert "RUNNING" in running.stdout.upper(), running
    stopped = raypipe(cluster, "submit", "--address", cluster.address, "--stop", sent)
    assert stopped.returncode == 0, stopped.stderr
    assert "STOPPED" in stopped.stdout.upper(), stopped
    resume(cluster, config, tmp_path, ids)


def test_a_failing_job_says_why_and_gives_its_exit_code(cluster: RayCluster, place: Folder, tmp_path: Path) -> None:
    config = embed_config("s3://no-such-bucket/in", Folder(place.child("out")))
    done = submit(cluster, config, tmp_path)
    assert done.wait() == 2, done.printed
    assert "error: " in done.printed
    assert "no-such-bucket" in done.printed
    assert "Traceback" not in done.printed
