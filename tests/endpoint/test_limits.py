"""The limits in front of every endpoint, around an application that the test scripts."""

import asyncio
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from raypipe.config.serve import LimitsConfig
from raypipe.endpoint.http import NAMES, HttpError, endpoint_of
from raypipe.endpoint.limits import Access, RequestLimits, digest_of
from raypipe.errors import QueryError

SMALL = LimitsConfig(max_body_bytes=100, max_json_bytes=50, max_in_flight=3, max_videos_in_flight=2)
Handle = Callable[[Request], Any]


class Watched:
    """A fake watcher that records every call."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.most = 0
        self.answers: list[tuple[str, int]] = []
        self.records: list[dict[str, object]] = []

    def started(self, endpoint: str) -> None:
        assert endpoint in NAMES
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)

    def ended(self, endpoint: str) -> None:
        assert endpoint in NAMES
        self.in_flight -= 1

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.answers.append((endpoint, status))

    def log(self, record: Mapping[str, object]) -> None:
        self.records.append(dict(record))


async def read_all(request: Request) -> Response:
    body = await request.body()
    return Response(f"{len(body)}")


def limited(
    handle: Handle = read_all, config: LimitsConfig = SMALL, token: str | None = None
) -> tuple[httpx.AsyncClient, Watched]:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        response = await handle(Request(scope, receive))
        await response(scope, receive, send)

    watched = Watched()
    limits = RequestLimits(
        application, config=config, access=Access(digest_of(token)), metrics=watched, log=watched.log
    )
    transport = httpx.ASGITransport(limits, raise_app_exceptions=False)  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1"), watched


def error_of(response: httpx.Response) -> tuple[int, str]:
    answer = response.json()
    assert answer["request_id"] == response.headers["x-request-id"]
    assert "\n" not in answer["error"]["message"]
    return response.status_code, answer["error"]["code"]


async def chunks(size: int) -> Any:  # noqa: ANN401 - an iterator that httpx sends
    for _ in range(size):
        yield b"x"


@pytest.mark.parametrize(("path", "limit"), [("/v1/recommend", 50), ("/v1/embed", 100), ("/v1/classify/batch", 100)])
def test_a_body_beyond_its_limit_is_refused_however_it_comes(path: str, limit: int) -> None:
    async def run() -> None:
        client, watched = limited()
        assert (await client.post(path, content=b"x" * limit)).text == str(limit)
        assert error_of(await client.post(path, content=b"x" * (limit + 1))) == (413, "body_too_large")
        assert (await client.post(path, content=chunks(limit))).text == str(limit)
        assert error_of(await client.post(path, content=chunks(limit + 1))) == (413, "body_too_large")
        assert watched.in_flight == 0

    asyncio.run(run())


def test_an_application_that_swallows_the_broken_body_does_not_hide_it() -> None:
    async def swallow(request: Request) -> Response:
        try:
            await request.body()
        except HttpError:
            return Response("all is well", 400)
        return Response("read")

    async def run() -> None:
        client, _ = limited(swallow)
        assert error_of(await client.post("/v1/embed", content=chunks(101))) == (413, "body_too_large")

    asyncio.run(run())


@pytest.mark.parametrize(("path", "most"), [("/v1/similar/a", 3), ("/v1/embed", 2)])
def test_excess_requests_are_refused_immediately(path: str, most: int) -> None:
    async def run() -> None:
        go = asyncio.Event()

        async def wait(request: Request) -> Response:
            if request.url.path != "/healthz":
                await go.wait()
            return Response("done")

        client, watched = limited(wait)
        tasks = [asyncio.create_task(client.post(path)) for _ in range(10)]
        refused = [await first for first in islice(asyncio.as_completed(tasks), 10 - most)]
        assert {error_of(response) for response in refused} == {(429, "overloaded")}
        assert {response.headers["retry-after"] for response in refused} == {"1"}
        assert (await client.get("/healthz")).text == "done"
        go.set()
        answers = await asyncio.gather(*tasks)
        assert sum(response.status_code == 200 for response in answers) == most == watched.most
        assert watched.in_flight == 0
        assert (await client.post(path)).status_code == 200

    asyncio.run(run())


def test_requests_that_arrive_together_are_counted_before_one_is_worked_on() -> None:
    async def run() -> None:
        client, watched = limited()
        answers = await asyncio.gather(*(client.get("/v1/similar/a") for _ in range(5)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 429, 429]
        assert watched.most == 3

    asyncio.run(run())


def test_a_request_over_its_deadline_ends() -> None:
    async def run() -> None:
        async def never(_: Request) -> Response:
            await asyncio.Event().wait()
            raise AssertionError

        config = SMALL.model_copy(update={"deadline_seconds": 0.01, "video_deadline_seconds": 0.02})
        client, watched = limited(never, config)
        assert error_of(await client.get("/v1/similar/a")) == (504, "deadline_exceeded")
        assert error_of(await client.post("/v1/embed")) == (504, "deadline_exceeded")
        assert watched.in_flight == 0
        assert watched.answers == [("similar", 504), ("embed", 504)]

    asyncio.run(run())


def test_streams_have_their_own_limit() -> None:
    async def run() -> None:
        go = asyncio.Event()

        async def wait(request: Request) -> Response:
            if request.url.path == "/v1/play":
                await go.wait()
            return Response("done")

        client, watched = limited(wait, SMALL.model_copy(update={"max_streams": 2}))
        tasks = [asyncio.create_task(client.get("/v1/play")) for _ in range(9)]
        refused = [await first for first in islice(asyncio.as_completed(tasks), 7)]
        assert {error_of(response) for response in refused} == {(429, "overloaded")}
        searches = await asyncio.gather(*(client.get("/v1/similar/a") for _ in range(3)))
        assert [response.status_code for response in searches] == [200, 200, 200]
        go.set()
        assert [response.status_code for response in await asyncio.gather(*tasks)].count(200) == 2
        assert watched.in_flight == 0

    asyncio.run(run())


def test_a_stream_ends_when_it_makes_no_progress() -> None:
    async def run() -> None:
        sent: list[Message] = []

        async def application(_: Scope, __: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 206, "headers": []})
            for _ in range(20):  # takes twice the deadline
                await asyncio.sleep(0.02)
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.Event().wait()

        async def send(message: Message) -> None:
            sent.append(message)

        watched = Watched()
        config = SMALL.model_copy(update={"video_deadline_seconds": 0.2})
        limits = RequestLimits(application, config=config, access=Access(None), metrics=watched, log=watched.log)  # type: ignore[arg-type]
        scope = {"type": "http", "method": "GET", "path": "/v1/play", "headers": []}
        await limits(scope, asyncio.Event().wait, send)  # type: ignore[arg-type]
        assert [message.get("more_body") for message in sent] == [None] + 20 * [True]
        assert (watched.in_flight, watched.answers) == (0, [("play", 206)])

    asyncio.run(run())


@pytest.mark.parametrize("error", [RuntimeError("a secret path"), TimeoutError("of something else")])
def test_an_unexpected_error_is_500_without_details(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async def fail(_: Request) -> Response:
            raise error

        client, watched = limited(fail)
        response = await client.get("/v1/index", headers={"X-Request-Id": "abc"})
        assert error_of(response) == (500, "internal")
        assert str(error) not in response.text
        assert watched.in_flight == 0

    asyncio.run(run())
    [record] = caplog.records
    assert "abc" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_an_error_of_the_caller_is_not_a_server_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async def refuse(_: Request) -> Response:
            msg = "No such column."
            raise QueryError(msg)

        client, _ = limited(refuse)
        assert error_of(await client.get("/v1/index")) == (422, "invalid_request")

    asyncio.run(run())
    assert caplog.text == ""


def test_the_token_is_checked_before_the_body_is_read() -> None:
    async def run() -> None:
        async def forbidden(_: Request) -> Response:
            raise AssertionError

        client, watched = limited(forbidden, token="s3cret")  # noqa: S106 - a test's
        for body in (b"x", b"x" * 1000, chunks(1000)):
            assert error_of(await client.post("/v1/embed", content=body)) == (401, "unauthorized")
        assert watched.most == 0

    asyncio.run(run())


def test_a_request_is_logged_under_its_id_without_its_content() -> None:
    async def run() -> None:
        client, watched = limited(token="s3cret")  # noqa: S106 - a test's
        headers = {"X-Request-Id": "id-1", "Authorization": "Bearer s3cret"}
        response = await client.post("/v1/recommend?q=private", content=b"private", headers=headers)
        assert (response.status_code, response.headers["x-request-id"]) == (200, "id-1")
        assert response.headers["x-content-type-options"] == "nosniff"
        [record] = watched.records
        assert {key: record[key] for key in ("request_id", "endpoint", "status")} == {
            "request_id": "id-1",
            "endpoint": "recommend",
            "status": 200,
        }
        assert not any(secret in str(watched.records) for secret in ("s3cret", "private"))
        new_ids = {(await client.get("/v1/index")).headers["x-request-id"] for _ in range(3)}
        assert len(new_ids) == 3
        odd = await client.get("/v1/index", headers={"X-Request-Id": "a\tb"})
        assert odd.headers["x-request-id"] != "a\tb"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/", "page"),
        ("GET", "/page/app.js", "page"),
        ("GET", "/healthz", "healthz"),
        ("GET", "/v1/videos", "videos"),
        ("GET", "/v1/videos/a/b", "video"),
        ("GET", "/v1/videos/a/b/thumbnail", "thumbnail"),
        ("POST", "/v1/videos/a/b/play", "play_link"),
        ("GET", "/v1/videos/a/b/play", "video"),
        ("GET", "/v1/play", "play"),
        ("GET", "/v1/play/a", "other"),
        ("GET", "/v1/similar/batch", "similar"),
        ("POST", "/v1/similar/batch", "similar_batch"),
        ("POST", "/v1/admin/reload", "reload"),
        ("POST", "/v1/admin/else", "other"),
        ("GET", "/v1/\udcff", "other"),
        ("GET", "", "other"),
    ],
)
def test_an_endpoint_has_one_of_few_names(method: str, path: str, expected: str) -> None:
    assert endpoint_of(method, path) == expected
    assert expected in NAMES
