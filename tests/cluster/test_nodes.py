"""The cluster that these tests run on: each node has its own address, and the job API requires a token."""

import json

import pytest

from support.cluster.nodes import BIN, RayCluster

pytestmark = pytest.mark.nightly

_WHERE = """
import ray
ray.init()
where = ray.remote(ray.util.get_node_ip_address).options(scheduling_strategy="SPREAD")
print("driver", ray.util.get_node_ip_address())
print("tasks", *sorted(set(ray.get([where.remote() for _ in range(20)]))))
"""
_PATHS = ("/api/version", "/api/jobs/", "/api/v0/nodes", "/api/serve/applications/")


def test_every_node_has_its_address_and_workers_do_the_work(cluster: RayCluster) -> None:
    head, workers = cluster.head.machine.address, sorted(node.machine.address for node in cluster.workers)
    assert len({head, *workers}) == 3
    assert cluster.alive() == {head, *workers}
    words = ("job", "submit", f"--address={cluster.address}", "--", "python", "-c", f"exec({_WHERE!r})")
    done = cluster.run_in("head", str(BIN / "ray"), *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"driver {head}\n" in done.stdout
    assert f"tasks {' '.join(workers)}\n" in done.stdout


@pytest.mark.parametrize("path", _PATHS)
def test_no_request_is_answered_without_the_token(cluster: RayCluster, path: str) -> None:
    assert cluster.ask(path, token=None)[0] == 401
    assert cluster.ask(path, token="another")[0] == 403  # noqa: S106 - a wrong one
    assert cluster.ask(path)[0] == 200


def test_no_job_starts_without_the_token(cluster: RayCluster) -> None:
    job = {"entrypoint": "true", "submission_id": "unasked"}
    assert cluster.ask("/api/jobs/", token=None, body=job)[0] == 401
    assert cluster.ask("/api/jobs/", token="another", body=job)[0] == 403  # noqa: S106 - a wrong one
    status, body = cluster.ask("/api/jobs/")
    assert status == 200
    assert "unasked" not in [one["submission_id"] for one in json.loads(body)]


def test_a_killed_worker_disappears_and_a_late_one_appears(cluster: RayCluster) -> None:
    gone = cluster.workers[0]
    cluster.lose(gone)
    assert gone.machine.address not in cluster.alive()
    late = cluster.add_node()
    cluster.wait_for_nodes(3)
    assert late.machine.address in cluster.alive()
