"""The client against a real HTTP server that answers as the test says."""

import errno
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from raypipe.client import AnswerError, Client, ClientError
from raypipe.errors import ConfigError, RaypipeError


class Server(ThreadingHTTPServer):
    """Give the same answer to everything, and record each request."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.body, self.headers = status, body, headers
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []


class Handler(BaseHTTPRequestHandler):
    """Answer every method the same way."""

    server: Server

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.command, self.path, dict(self.headers), body))
        self.send_response(self.server.status)
        for name, value in {"Content-Length": str(len(self.server.body)), **self.server.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_POST = _answer  # noqa: N815 - names of the base class

    def log_message(self, *_: object) -> None:
        """Log nothing."""


Start = Callable[..., tuple[Client, Server]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a server with an answer, and returns a client of it."""
    servers: list[tuple[Server, threading.Thread]] = []

    def make(
        answer: Any = None,  # noqa: ANN401 - JSON
        status: int = 200,
        *,
        token: str | None = None,
        raw: bytes | None = None,
        **headers: str,
    ) -> tuple[Client, Server]:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        server = Server(status, json.dumps(answer).encode() if raw is None else raw, given)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return Client(f"http://127.0.0.1:{server.server_port}/", token, timeout_seconds=10), server

    yield make
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_requests_of_every_method(start: Start, tmp_path: Path) -> None:
    client, server = start({"answers": []}, token="s3cret")  # noqa: S106 - a test's
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"video")
    client.index()
    client.videos("日 本", category="a&b", limit=3)
    client.video("a/é #1.mp4")
    client.thumbnail("a/b")
    client.play("a/b")
    client.similar("a/b", top_k=3)
    client.recommend(["a"], top_k=3, dislikes=["b"], strategy="content")
    client.recommend_batch([{"history": ["a"]}])
    client.embed(clip, top_k=2)
    client.embed("s3://b/x")
    client.classify(clip)
    client.classify("s3://b/x", top_k=1, frame_scores=True)
    client.reload()
    client.rollback()
    asked = [
        (method, path, json.loads(body) if body.startswith(b"{") else body) for method, path, _, body in server.asked
    ]
    assert asked == [
        ("GET", "/v1/index", b""),
        ("GET", "/v1/videos?text=%E6%97%A5+%E6%9C%AC&category=a%26b&offset=0&limit=3", b""),
        ("GET", "/v1/videos/a%2F%C3%A9%20%231.mp4", b""),
        ("GET", "/v1/videos/a%2Fb/thumbnail", b""),
        ("POST", "/v1/videos/a%2Fb/play", b"null"),
        ("GET", "/v1/similar/a%2Fb?top_k=3&diversity=0.0", b""),
        ("POST", "/v1/recommend", {"history": ["a"], "top_k": 3, "dislikes": ["b"], "strategy": "content"}),
        ("POST", "/v1/recommend/batch", {"requests": [{"history": ["a"]}]}),
        ("POST", "/v1/embed?top_k=2", b"video"),
        ("POST", "/v1/embed?top_k=0", {"uri": "s3://b/x"}),
        ("POST", "/v1/classify?top_k=5&neighbors=0", b"video"),
        ("POST", "/v1/classify?top_k=1&neighbors=0&frame_scores=true", {"uri": "s3://b/x"}),
        ("POST", "/v1/admin/reload", b"null"),
        ("POST", "/v1/admin/rollback", b"null"),
    ]
    assert {headers["Authorization"] for _, _, headers, _ in server.asked} == {"Bearer s3cret"}
    assert [headers.get("Content-Type") for *_, headers, _ in server.asked[8:11]] == [
        "application/octet-stream",
        "application/json",
        "application/octet-stream",
    ]


def test_an_error_is_the_servers_message(start: Start) -> None:
    body = {"error": {"code": "overloaded", "message": "Too much."}, "request_id": "id-1"}
    client, _ = start(body, 429, Retry_After="3")
    with pytest.raises(AnswerError) as caught:
        client.index()
    error = caught.value
    assert str(error) == "Too much."
    assert (error.status, error.code, error.request_id, error.retry_after_seconds) == (429, "overloaded", "id-1", 3.0)
    assert isinstance(error, RaypipeError)


@pytest.mark.parametrize("raw", [b"Internal Server Error", b"", b"[]", b'{"error": 1}', b"\xff"])
def test_a_proxys_error_is_reported(start: Start, raw: bytes) -> None:
    client, _ = start(status=500, raw=raw)
    with pytest.raises(AnswerError) as caught:
        client.index()
    assert (caught.value.status, caught.value.code, caught.value.retry_after_seconds) == (500, "", None)
    assert str(caught.value)


@pytest.mark.parametrize("raw", [b"<html>", b"", b"[1]", b"null"])
def test_an_invalid_answer_is_refused(start: Start, raw: bytes) -> None:
    client, _ = start(raw=raw)
    with pytest.raises(ClientError) as caught:
        client.index()
    assert (caught.value.key, caught.value.value) == (client.base_url, raw)
    assert repr(raw) in str(caught.value)


def test_a_redirect_is_not_followed_with_the_token(start: Start) -> None:
    _, elsewhere = start({})
    client, _ = start(status=302, token="s3cret", Location=f"http://127.0.0.1:{elsewhere.server_port}/")  # noqa: S106
    with pytest.raises(AnswerError) as caught:
        client.index()
    assert caught.value.status == 302
    assert elsewhere.asked == []


def test_a_proxy_from_the_environment_is_not_used_for_this_machine(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, proxy = start({})
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    client, server = start({})
    client.index()
    assert (len(server.asked), len(proxy.asked)) == (1, 0)


def test_an_unreachable_server_is_one_line() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        client = Client(f"http://127.0.0.1:{one.getsockname()[1]}")
        with pytest.raises(ClientError) as caught:
            client.index()
    assert (caught.value.key, caught.value.value) == (client.base_url, None)
    assert client.base_url in str(caught.value)
    assert os.strerror(errno.ECONNREFUSED) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "file:///etc/passwd", "http://h/?a=1"])
def test_an_invalid_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Client(url)
    assert (caught.value.key, caught.value.value) == ("base_url", url)
    assert "http://HOST:PORT" in caught.value.remedy


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Client("http://127.0.0.1:1").embed(tmp_path / "none.mp4")
    assert caught.value.key == str(tmp_path / "none.mp4")
    assert os.strerror(errno.ENOENT) in str(caught.value)
