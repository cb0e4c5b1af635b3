"""Unusual requests: each is answered as FastAPI would, or refused as the caller's error."""

import json
from itertools import product
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.routing import APIRoute
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.config.serve import LimitsConfig
from raypipe.endpoint.index_watcher import IndexWatcher
from raypipe.endpoint.routes.responses import JsonRoute
from support.properties import examples
from support.routes import Ask, serve
from support.served_index import make_items

IDS = make_items(200)[0]["video_id"].to_pylist()
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("path", "status", "num_results"),
    [
        ("/v1/similar/{}", 200, 20),
        ("/v1/similar/{}?top_k=1", 200, 1),
        ("/v1/similar/{}?top_k=199", 200, 199),
        ("/v1/similar/{}?top_k=201", 422, 0),
        ("/v1/similar/{}?top_k=0", 422, 0),
        ("/v1/similar/{}?top_k=010", 200, 10),
        ("/v1/similar/{}?top_k=5&top_k=6", 200, 6),
        ("/v1/similar/{}?top_k=%35", 200, 5),
        ("/v1/similar/{}?TOP_K=5", 200, 20),
        ("/v1/similar/{}?category=music&top_k=3", 200, 3),
        ("/v1/similar/", 422, 0),
        ("/v1/similar/" + "x" * 5000, 422, 0),
    ],
)
def test_similar(ask: Ask, ask_fastapi: Ask, path: str, status: int, num_results: int) -> None:
    for one, video_id in product((ask, ask_fastapi), (quote(IDS[3]), quote(IDS[3], safe=""))):
        response = one("GET", path.format(video_id))
        assert (response.status_code, len(response.json().get("results", []))) == (status, num_results)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{}", 200),
        (b' {"top_k": 3}\n', 200),
        (json.dumps({"history": IDS[:3], "filters": {"category": ["music"], "popularity": {"gte": 3}}}).encode(), 200),
        (b'{"diversity": 1}', 200),
        (b'{"top_k": 3, "top_k": 4}', 200),
        (b"", 422),
        (b"null", 422),
        (b"[]", 422),
        (b'{"top_k": NaN}', 422),
        (b'{"top_k": 3.0}', 422),
        (b'{"top_k": 1e1}', 422),
        (b'{"history": ["\\ud800"]}', 422),
        (b'{"\\ud800": 1}', 422),
        (b'{"filters": {"popularity": 123456789012345678901234567890}}', 200),
        (b'{"filters": {"popularity": true}}', 422),
        (b"\xef\xbb\xbf{}", 200),
        ('{"history": ["é"]}'.encode("utf-16"), 200),
        (b"{" * 5000, 422),
    ],
)
def test_recommend(ask: Ask, ask_fastapi: Ask, body: bytes, status: int) -> None:
    for one, content_type in product((ask, ask_fastapi), ("application/json", "application/json; charset=utf-8")):
        response = one("POST", "/v1/recommend", content=body, headers={"Content-Type": content_type})
        assert response.status_code == status, response.text


_VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.floats(allow_nan=False, allow_infinity=False, width=16)
    | st.sampled_from([*IDS[:3], "music", "none", ""])
    | st.lists(st.sampled_from([*IDS[:3], "music", "none", 1, 2.5]), max_size=3)
    | st.fixed_dictionaries({}, optional={"gte": st.integers(0, 99), "lt": st.integers(0, 99)})
)
_FIELDS = ("history", "weights", "exclude", "exclude_history", "top_k", "diversity", "max_per_category", "freshness")
_REQUESTS = st.dictionaries(st.sampled_from(_FIELDS), _VALUES, max_size=4) | st.fixed_dictionaries(
    {"filters": st.dictionaries(st.sampled_from(["category", "popularity", "rating", "none"]), _VALUES, max_size=2)},
    optional={"history": st.lists(st.sampled_from(IDS), max_size=3), "top_k": st.integers(1, 9)},
)


@pytest.fixture
def ask_fastapi(live_index: IndexWatcher, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Return a function that queries a server whose parameters FastAPI checks."""
    monkeypatch.setattr(JsonRoute, "get_route_handler", APIRoute.get_route_handler)
    return serve(live_index, limits=LimitsConfig(max_history=10, max_batch=4))


@settings(max_examples=examples(150))
@given(request=_REQUESTS)
def test_a_route_answers_any_request_as_fastapi_would(ask: Ask, ask_fastapi: Ask, request: dict[str, Any]) -> None:
    headers = {"X-Request-Id": "id"}
    answers = [one("POST", "/v1/recommend", json=request, headers=headers) for one in (ask, ask_fastapi)]
    assert answers[0].status_code in {200, 422}, answers[0].text
    assert (answers[0].status_code, answers[0].content) == (answers[1].status_code, answers[1].content)
    assert json.loads(answers[0].text, parse_constant=pytest.fail)
