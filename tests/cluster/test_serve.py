"""The endpoint on two nodes, queried through the surviving node when the other one dies."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from raypipe import schema
from raypipe.storage import Folder
from support.cluster.nodes import BIN, SERVE_PORT, RayCluster, RayNode, ask
from support.load import Load, Request, get
from support.processes import wait_until
from support.served_index import make_items, put_index

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]

_REPLICA = "ray::ServeReplica:raypipe:Api"
_MOST_FAILED = 0.001
_NUM_VIDEOS = 200


def deployment(index: Folder) -> dict[str, Any]:
    """Return the input of ``serve deploy``: each replica fills a worker, so each worker has one."""
    replicas = {"min": 2, "max": 2, "num_cpus": 1.0}
    arguments = {"index": index.uri, "embedder": {"enabled": False}, "replicas": replicas}
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": SERVE_PORT},  # noqa: S104 - of machines that only the tests reach
        "applications": [
            {
                "name": "raypipe",
                "route_prefix": "/",
                "import_path": "raypipe.endpoint.app:build_app",
                "args": arguments,
            }
        ],
    }


def address_of(node: RayNode) -> str:
    """Return the address of Serve's proxy on a node."""
    return f"http://{node.machine.address}:{SERVE_PORT}"


def requests() -> list[Request]:
    """Return requests for the neighbors of videos in the index."""
    ids = make_items(_NUM_VIDEOS)[0][schema.VIDEO_ID].to_pylist()
    return [get(f"/v1/similar/{quote(one)}?top_k=10") for one in ids[:20]]


def test_a_node_dies_under_load(cluster: RayCluster, place: Folder, tmp_path: Path) -> None:
    index = Folder(place.child("index"))
    put_index(index, num_videos=_NUM_VIDEOS)
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(deployment(index)))
    deployed = cluster.run_in("head", str(BIN / "serve"), "deploy", str(file), "--address", cluster.address)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    urls = [address_of(node) for node in cluster.workers]
    everywhere = [*urls, address_of(cluster.head)]
    wait_until(lambda: all(ask(f"{url}/readyz", {})[0] == 200 for url in everywhere), what="the endpoint on all nodes")
    assert all(worker.runs(_REPLICA) for worker in cluster.workers)
    assert ask(f"{urls[1]}/v1/index", {})[0] == 401
    through_worker = Load(urls[1], requests(), connections=2, token=cluster.serve_token)
    # No replica runs next to the head's proxy, so it spreads the requests over both workers.
    through_head = Load(address_of(cluster.head), requests(), connections=2, token=cluster.serve_token)

    def num_answered() -> int:
        return through_worker.num_answered + through_head.num_answered

    with through_worker, through_head:
        wait_until(lambda: num_answered() > 1000, what="1000 answers")
        cluster.lose(cluster.workers[0])
        after = num_answered()
        wait_until(lambda: num_answered() > max(4000, after + 1000), what="4000 answers")
    failures = through_worker.failures + through_head.failures
    assert len(failures) <= _MOST_FAILED * num_answered(), failures
