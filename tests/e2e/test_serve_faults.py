"""What happens to requests while an index is replaced or corrupt, under overload, and while replicas die."""

from typing import Any

import httpx
import pytest

from raypipe.search.versions import Versions
from support.endpoints import Endpoint
from support.load import Load, Request, get, post
from support.processes import wait_until
from support.served_index import damage

pytestmark = pytest.mark.slow


def requests(endpoint: Endpoint) -> list[Request]:
    """Return requests of several kinds."""
    return [
        *(get(f"/v1/similar/{one}?top_k=10") for one in endpoint.ids[:4]),
        post("/v1/recommend", {"history": endpoint.ids[:3], "filters": {"category": "music"}, "top_k": 10}),
        get("/v1/videos?limit=10"),
    ]


class Seen:
    """Check answers, and record which versions gave them."""

    def __init__(self) -> None:
        self.versions: set[str] = set()

    def __call__(self, request: Request, answer: Any) -> None:  # noqa: ANN401 - JSON
        assert len(answer.get("results") or answer["videos"]) == 10, request
        if "version" in answer:
            self.versions.add(answer["version"])


def test_an_index_is_replaced_under_load(endpoint: Endpoint) -> None:
    seen = Seen()
    with Load(endpoint.url, requests(endpoint), check=seen) as load:
        for _ in range(3):
            version = endpoint.source.put()
            wait_until(lambda version=version: version in seen.versions, what="an answer from the new version")
        wait_until(lambda: load.num_answered > 1000, what="1000 answers")
    assert load.failures == []
    assert set(load.statuses) == {200}
    assert len(seen.versions) >= 3


def test_a_broken_version_fails_no_request(endpoint: Endpoint) -> None:
    seen = Seen()
    client = endpoint.client
    before = client.reload()["version"]
    with Load(endpoint.url, requests(endpoint), check=seen) as load:
        broken = endpoint.source.put(live=False)
        damage(endpoint.source.index, broken)
        endpoint.source.index.put("CURRENT", broken.encode())
        wait_until(lambda: ready(endpoint)["broken"], what="the broken version")
        after = load.num_answered
        wait_until(lambda: load.num_answered > after + 200, what="200 answers")
        assert ready(endpoint)["version"] == before
        assert client.rollback()["version"] == before
    assert load.failures == []
    assert seen.versions == {before}
    assert Versions(endpoint.source.index).current() == before
    assert ready(endpoint) == {"ready": True, "version": before, "broken": None}


def ready(endpoint: Endpoint) -> dict[str, Any]:
    """Return the answer of /readyz."""
    return httpx.get(f"{endpoint.url}/readyz").json()
