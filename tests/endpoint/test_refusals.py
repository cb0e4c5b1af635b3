"""Every error that a request can cause, and what OpenAPI says about limits and errors."""

from typing import Any

import pytest

from support.routes import VIDEO, Ask, answer, error
from support.served_index import DIM


@pytest.mark.parametrize(
    ("method", "path", "options", "expected"),
    [
        ("GET", "/v1/none", {}, (404, "not_found")),
        ("GET", "/v1/videos/none", {}, (404, "not_found")),
        ("GET", "/v1/similar/none", {}, (404, "not_found")),
        ("PUT", "/v1/index", {}, (405, "method_not_allowed")),
        ("GET", "/v1/videos?limit=201", {}, (422, "invalid_request")),
        ("GET", "/v1/videos?limit=0", {}, (422, "invalid_request")),
        ("GET", "/v1/videos?offset=-1", {}, (422, "invalid_request")),
        ("GET", "/v1/videos?offset=x", {}, (422, "invalid_request")),
        ("GET", "/v1/similar/a?top_k=201", {}, (422, "invalid_request")),
        ("GET", "/v1/similar/a?diversity=nan", {}, (422, "invalid_request")),
        ("POST", "/v1/recommend", {"content": b"{"}, (422, "invalid_request")),
        ("POST", "/v1/recommend", {"content": b"\xff"}, (400, "invalid_request")),
        ("POST", "/v1/recommend", {"content": b"[" * 100_000}, (400, "invalid_request")),
        (
            "POST",
            "/v1/recommend",
            {"content": b"{}", "headers": {"Content-Type": "text/plain"}},
            (422, "invalid_request"),
        ),
        ("POST", "/v1/recommend", {"content": b'{"top_k": NaN}'}, (422, "invalid_request")),
        ("POST", "/v1/recommend", {"content": b'{"freshness": Infinity}'}, (422, "invalid_request")),
        ("POST", "/v1/recommend", {"content": b'{"history": ["\\ud800"]}'}, (422, "invalid_request")),
        ("POST", "/v1/recommend", {"json": {"histroy": []}}, (422, "invalid_request")),
        ("POST", "/v1/recommend", {"json": {"history": ["a"] * 11}}, (422, "invalid_request")),
        ("POST", "/v1/recommend", {"json": {"history": ["a"], "weights": [1, 2]}}, (422, "invalid_request")),
        ("POST", "/v1/recommend", {"json": {"top_k": "3"}}, (422, "invalid_request")),
        ("POST", "/v1/recommend", {"json": {"top_k": 0}}, (422, "invalid_request")),
        ("POST", "/v1/recommend", {"json": {"exclude": ["a"] * 10_001}}, (422, "invalid_request")),
        ("POST", "/v1/recommend", {"json": {"filters": {"none": 1}}}, (422, "invalid_request")),
        ("POST", "/v1/recommend", {"json": {"filters": {"popularity": "many"}}}, (422, "invalid_request")),
        ("POST", "/v1/recommend", {"json": {"filters": {"popularity": {"above": 1}}}}, (422, "invalid_request")),
        ("POST", "/v1/recommend", {"json": {"filters": {"popularity": {}}}}, (422, "invalid_request")),
        ("POST", "/v1/recommend", {"json": {"filters": {"popularity": None}}}, (422, "invalid_request")),
        ("POST", "/v1/recommend", {"json": {"embeddings": [[1.0] * DIM, [1.0]]}}, (422, "invalid_request")),
        ("POST", "/v1/recommend", {"json": {"embeddings": [[1.0] * (DIM - 1)]}}, (422, "invalid_request")),
        ("POST", "/v1/recommend", {"json": {"embeddings": [[1e300] * DIM]}}, (422, "invalid_request")),
        ("POST", "/v1/recommend", {"json": {"embeddings": [[1.0] * DIM] * 17}}, (422, "invalid_request")),
        ("POST", "/v1/recommend/batch", {"json": {"requests": [{}] * 5}}, (422, "invalid_request")),
        ("POST", "/v1/similar/batch", {"json": {"video_ids": []}}, (422, "invalid_request")),
        ("POST", "/v1/embed", {"content": VIDEO}, (415, "unsupported_media_type")),
        (
            "POST",
            "/v1/embed",
            {"content": VIDEO, "headers": {"Content-Type": "text/plain"}},
            (415, "unsupported_media_type"),
        ),
        ("POST", "/v1/embed", {"headers": {"Content-Type": "video/mp4"}}, (422, "invalid_request")),
        ("POST", "/v1/embed", {"json": {"url": "x"}}, (422, "invalid_request")),
        ("POST", "/v1/embed", {"json": {"uri": "http://127.0.0.1/x"}}, (403, "forbidden_uri")),
        ("POST", "/v1/embed?top_k=201", {"content": VIDEO}, (422, "invalid_request")),
        ("POST", "/v1/classify", {"json": {"uri": "/etc/passwd"}}, (403, "forbidden_uri")),
        ("POST", "/v1/classify?top_k=0", {"content": VIDEO}, (422, "invalid_request")),
        ("POST", "/v1/embed/batch", {"json": {"uris": ["a"] * 9}}, (422, "invalid_request")),
        ("GET", "/page/../routes.py", {}, (404, "not_found")),
        ("GET", "/page/%2e%2e/routes.py", {}, (404, "not_found")),
        ("GET", "/page//etc/passwd", {}, (404, "not_found")),
    ],
)
def test_an_error_says_what_is_wrong_with_a_request(
    ask: Ask, method: str, path: str, options: dict[str, Any], expected: tuple[int, str]
) -> None:
    if "content" in options and path.startswith("/v1/recommend"):
        options = {"headers": {"Content-Type": "application/json"}} | options
    assert error(ask(method, path, **options)) == expected


def test_openapi_states_the_limits_of_this_server(ask: Ask) -> None:
    described = answer(ask("GET", "/openapi.json"))
    models = described["components"]["schemas"]
    assert models["RecommendRequest"]["properties"]["history"]["maxItems"] == 10
    assert models["RecommendRequest"]["properties"]["top_k"]["maximum"] == 200
    assert models["RecommendBatch"]["properties"]["requests"]["maxItems"] == 4
    operations = [(path, method) for path, methods in described["paths"].items() for method in methods]
    assert len(operations) == 18
    for path, method in operations:
        assert {"200", "401", "429", "504"} <= set(described["paths"][path][method]["responses"])
    assert "VideoUri" in models
