"""Addresses at which there is no job API that can be used: real sockets, real answers."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ray import __version__ as ray_version

from raypipe.errors import ConfigError, SetupError
from raypipe.submit.connection import connect

VERSION = json.dumps({"ray_version": ray_version, "version": "4"}).encode()


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that gives one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("address", [None, ""])
def test_without_an_address_it_says_how_to_give_one(address: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        connect(address)
    assert (caught.value.key, caught.value.value) == ("--address", None)
    assert "--address http://HOST:8265" in caught.value.remedy
    assert "RAY_API_SERVER_ADDRESS" in caught.value.remedy


@pytest.mark.parametrize("address", ["ray://head:10001", "head:6379", "auto"])
def test_another_kind_of_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        connect(address)
    assert (caught.value.key, caught.value.value) == ("--address", address)
    assert "http://HOST:8265" in caught.value.remedy


def test_nothing_answers() -> None:
    with answering(200, VERSION) as address:
        pass
    with pytest.raises(SetupError) as caught:
        connect(address)
    assert (caught.value.key, caught.value.value) == (address, None)
    assert address in str(caught.value)
    assert "-p 8265 cluster.yaml" in caught.value.remedy


@pytest.mark.parametrize("status", [401, 403])
def test_a_cluster_that_wants_another_token(status: int) -> None:
    with answering(status, b"no") as address, pytest.raises(SetupError) as caught:
        connect(address)
    assert (caught.value.key, caught.value.value) == (address, status)
    assert f"({status})" in str(caught.value)
    assert "RAY_AUTH_TOKEN_PATH" in caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("status", "body"), [(404, b""), (500, b""), (200, b"<html>"), (200, b"{}"), (200, b"[]")])
def test_something_else_answers(status: int, body: bytes) -> None:
    with answering(status, body) as address, pytest.raises(SetupError) as caught:
        connect(address)
    assert caught.value.key == address
    assert isinstance(caught.value.value, str)  # what was wrong with its answer
    assert caught.value.value in str(caught.value)
    assert caught.value.remedy == ""


def test_the_address_that_is_given_is_the_one_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    with answering(200, VERSION) as address:
        assert connect(address).get_address() == address
