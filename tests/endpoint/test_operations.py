"""The page, the probes, the metrics, and which version is served."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from raypipe.endpoint.index_watcher import IndexWatcher
from raypipe.endpoint.routes.application import PAGE
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from support.routes import Ask, FakeEmbedder, answer, error, serve
from support.served_index import damage, put_index


@pytest.fixture
def changing(tmp_path: Path) -> Iterator[tuple[Folder, IndexWatcher]]:
    """Return an index that the test changes, and its watcher."""
    folder = Folder(str(tmp_path / "index"))
    live = IndexWatcher(Versions(folder), tmp_path / "cache", reload_seconds=1e6)
    yield folder, live
    live.close()


def test_ready_reload_and_rollback(changing: tuple[Folder, IndexWatcher]) -> None:
    folder, live = changing
    live.start()
    ask = serve(live)
    assert answer(ask("GET", "/healthz")) == {"ok": True}
    response = ask("GET", "/readyz")
    assert (response.status_code, response.json()) == (503, {"ready": False, "version": None, "broken": None})
    assert error(ask("GET", "/v1/index")) == (503, "no_index")
    assert error(ask("POST", "/v1/admin/reload")) == (409, "conflict")
    first = put_index(folder)
    assert answer(ask("POST", "/v1/admin/reload")) == {"version": first, "changed": True}
    assert answer(ask("POST", "/v1/admin/reload")) == {"version": first, "changed": False}
    assert answer(ask("GET", "/readyz")) == {"ready": True, "version": first, "broken": None}
    second = put_index(folder, seed=1)
    damage(folder, second)
    assert error(ask("POST", "/v1/admin/reload")) == (409, "conflict")
    ready = answer(ask("GET", "/readyz"))
    assert (ready["ready"], ready["version"], ready["broken"]["version"]) == (True, first, second)
    assert "raypipe_index_broken 1.0" in ask("GET", "/metrics").text
    assert answer(ask("POST", "/v1/admin/rollback")) == {"version": first}
    assert "raypipe_index_broken 0.0" in ask("GET", "/metrics").text
    third = put_index(folder, seed=2)
    assert answer(ask("POST", "/v1/admin/reload"))["version"] == third
    assert answer(ask("POST", "/v1/admin/rollback")) == {"version": first}
    assert error(ask("POST", "/v1/admin/rollback")) == (409, "conflict")


def test_metrics_report_the_version_and_the_requests(
    changing: tuple[Folder, IndexWatcher], embedder: FakeEmbedder
) -> None:
    folder, live = changing
    version = put_index(folder)
    ask = serve(live, embedder=embedder)
    live.start()
    ask("POST", "/v1/recommend", json={})
    ask("POST", "/v1/recommend", json={"filters": {"category": "music"}})
    ask("POST", "/v1/recommend/batch", json={"requests": [{}, {}]})
    response = ask("GET", "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {
        sample.name: sample
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
        if "bucket" not in sample.name
    }
    assert found["raypipe_recommendations_total"].value == 4
    assert found["raypipe_fallback_total"].value == 4
    assert found["raypipe_filter_selectivity_count"].value == 1
    assert 0 < found["raypipe_filter_selectivity_sum"].value < 0.5
    assert found["raypipe_batch_size_sum"].value == 2
    assert found["raypipe_index_info"].labels == {"version": version, "kind": "flat"}
    assert found["raypipe_index_videos"].value == 200
    assert 0 <= found["raypipe_index_age_seconds"].value < 1000


def test_the_page_is_served_with_a_strict_policy(ask: Ask) -> None:
    found = ask("GET", "/")
    assert (found.status_code, found.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = found.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; img-src 'self' blob: data:;")
    assert "frame-ancestors 'none'" in policy
    assert found.headers["x-frame-options"] == "DENY"
    assert "<title>" in found.text
    again = ask("GET", "/", headers={"If-None-Match": found.headers["etag"]})
    assert again.status_code == 304


def test_files_of_the_page_have_their_type_and_a_tag_of_their_content(ask: Ask) -> None:
    for name, kind in (("app.js", "text/javascript"), ("style.css", "text/css")):
        found = ask("GET", f"/page/{name}")
        assert (found.status_code, found.headers["content-type"]) == (200, f"{kind}; charset=utf-8")
        assert found.content == (PAGE / name).read_bytes()
        assert (found.headers["cache-control"], found.headers["x-frame-options"]) == ("no-cache", "DENY")
        assert hashlib.sha256(found.content).hexdigest()[:32] in found.headers["etag"]
        assert ask("GET", f"/page/{name}", headers={"If-None-Match": found.headers["etag"]}).status_code == 304
        assert error(ask("POST", f"/page/{name}")) == (405, "method_not_allowed")


def test_an_unexpected_error_is_json(ask: Ask, live_index: IndexWatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    assert live_index.live is not None
    monkeypatch.setattr(live_index.live, "video", lambda _: 1 / 0)
    response = ask("POST", "/v1/recommend", json={})
    assert error(response) == (500, "internal")
    assert response.json()["request_id"] == response.headers["x-request-id"]
