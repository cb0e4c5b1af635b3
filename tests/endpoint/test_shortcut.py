"""The short way answers as the long way does, whatever is asked."""

import asyncio
import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.config.serve import LimitsConfig
from raypipe.endpoint.access import Access
from raypipe.endpoint.lane import Lane
from raypipe.endpoint.limits import Application, Limits, Receive, Scope, Send
from raypipe.endpoint.live import LiveIndex
from raypipe.endpoint.metrics import Metrics
from raypipe.endpoint.routes import build_application
from raypipe.endpoint.service import Service
from raypipe.endpoint.shortcut import Shortcut
from support.properties import examples
from support.served_index import make_items

IDS = make_items(200)[0]["video_id"].to_pylist()
JSON = {"Content-Type": "application/json"}


class Ways:
    """Both of them, and how often the long one was gone."""

    def __init__(self, live: LiveIndex) -> None:
        self._metrics = Metrics(live)
        application = build_application(Service(index=live, lane=Lane(), metrics=self._metrics))
        assert isinstance(application, Shortcut)
        self._application = application._application
        self.num_long = 0
        self.long = self._limited(self._application)
        self.short = self._limited(Shortcut(self._count, application._routes))

    def _limited(self, application: Application) -> Limits:
        """Whatever either raises is answered there."""
        config, access = LimitsConfig(), Access(None)
        return Limits(application, config=config, access=access, watcher=self._metrics, log=lambda _: None)

    async def _count(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.num_long += 1
        await self._application(scope, receive, send)

    def ask(self, application: Application, method: str, path: str, **options: Any) -> tuple[int, bytes]:  # noqa: ANN401
        async def send() -> tuple[int, bytes]:
            transport = httpx.ASGITransport(application)  # type: ignore[arg-type]
            same_id = {"X-Request-Id": "id"}
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=same_id) as client:
                response = await client.request(method, path, **options)
                return response.status_code, response.content

        return asyncio.run(send())

    def check(self, method: str, path: str, *, is_short: bool | None = None, **options: Any) -> None:  # noqa: ANN401
        """Ask both, and hold one against the other."""
        before = self.num_long
        answers = [self.ask(application, method, path, **options) for application in (self.short, self.long)]
        assert answers[0] == answers[1]
        if is_short is not None:
            assert (self.num_long == before) == is_short


@pytest.fixture(scope="module")
def ways(live_index: LiveIndex) -> Ways:
    return Ways(live_index)


@pytest.mark.parametrize(
    ("path", "is_short"),
    [
        ("/v1/similar/{}", True),
        ("/v1/similar/{}?top_k=1", True),
        ("/v1/similar/{}?top_k=200", True),
        ("/v1/similar/{}?top_k=201", False),
        ("/v1/similar/{}?top_k=0", False),
        ("/v1/similar/{}?top_k=010", False),
        ("/v1/similar/{}?top_k=5&top_k=6", False),
        ("/v1/similar/{}?top_k=%35", False),
        ("/v1/similar/{}?TOP_K=5", False),
        ("/v1/similar/{}?diversity=0.5", False),
        ("/v1/similar/{}?category=music&top_k=3", False),
        ("/v1/similar/", False),
        ("/v1/similar/" + "x" * 5000, False),
        ("/v1/recommend", False),
    ],
)
def test_similar(ways: Ways, path: str, is_short: bool) -> None:  # noqa: FBT001 - of the table
    ways.check("GET", path.format(quote(IDS[3])), is_short=is_short)
    ways.check("GET", path.format(quote(IDS[3], safe="")), is_short=is_short)


@pytest.mark.parametrize(
    ("body", "is_short"),
    [
        (b"{}", True),
        (b' {"top_k": 3}\n', True),
        (json.dumps({"history": IDS[:3], "filters": {"category": ["music"], "popularity": {"gte": 3}}}).encode(), True),
        (b"", False),
        (b"null", False),
        (b"[]", False),
        (b'{"top_k": NaN}', False),
        (b'{"top_k": 3.0}', None),
        (b'{"top_k": 1e1}', None),
        (b'{"top_k": 3, "top_k": 4}', None),
        (b'{"diversity": 1}', True),
        (b'{"history": ["\\ud800"]}', False),
        (b'{"filters": {"popularity": 123456789012345678901234567890}}', None),
        (b'{"filters": {"popularity": true}}', None),
        (b"\xef\xbb\xbf{}", False),
        ('{"history": ["é"]}'.encode("utf-16"), False),
        (b"{" * 5000, False),
    ],
)
def test_recommend(ways: Ways, body: bytes, is_short: bool | None) -> None:  # noqa: FBT001 - of the table
    if is_short is None:
        ways.check("POST", "/v1/recommend", content=body, headers=JSON)
    elif is_short:
        ways.check("POST", "/v1/recommend", content=body, headers=JSON, is_short=True)
        ways.check("POST", "/v1/recommend", content=body, headers={"Content-Type": "application/json; charset=utf-8"})
    else:
        ways.check("POST", "/v1/recommend", content=body, headers=JSON, is_short=False)


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


@settings(max_examples=examples(150))
@given(request=_REQUESTS)
def test_any_request(ways: Ways, request: dict[str, Any]) -> None:
    ways.check("POST", "/v1/recommend", json=request)
