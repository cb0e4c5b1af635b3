"""Addresses without a usable job API, over real sockets; and the log of a job when the connection fails."""

import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from ray import __version__ as ray_version
from ray.job_submission import JobDetails, JobStatus, JobType

from raypipe.errors import ConfigError, SetupError
from raypipe.submit import Remote, connect

VERSION = json.dumps({"ray_version": ray_version, "version": "4"}).encode()
LOG = "".join(f"line {number}\n" for number in range(10))


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """Run a server that gives the same answer to every request."""

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
    assert isinstance(caught.value.value, str)  # the problem with its answer
    assert caught.value.value in str(caught.value)
    assert caught.value.remedy == ""


def test_the_given_address_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    with answering(200, VERSION) as address:
        assert connect(address).get_address() == address


class BreakingClient:
    """A client that streams ``LOG`` in pieces of five characters and fails once at each of these positions."""

    def __init__(self, *breaks: int) -> None:
        self._breaks = list(breaks)

    def get_address(self) -> str:
        return "http://127.0.0.1:1"

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        for start in range(0, len(LOG), 5):
            if self._breaks and start >= self._breaks[0]:
                del self._breaks[0]
                msg = "closed unexpectedly"
                raise RuntimeError(msg)
            yield LOG[start : start + 5]

    def get_job_info(self, submission_id: str) -> JobDetails:
        status = JobStatus.RUNNING if self._breaks else JobStatus.FAILED
        return JobDetails(
            type=JobType.SUBMISSION, submission_id=submission_id, status=status, entrypoint="", driver_exit_code=3
        )

    def get_job_logs(self, _: str) -> str:
        return LOG


def followed(client: Any) -> tuple[str, int]:  # noqa: ANN401 - stands in for Ray's
    """Return what is written and the exit code."""
    written: list[str] = []
    code = Remote(client).follow("a", write=written.append)
    return "".join(written), code


def test_each_line_is_written_once_if_the_connection_breaks() -> None:
    assert followed(BreakingClient(20, 10, 45)) == (LOG, 3)


def test_text_after_the_last_break_is_written() -> None:
    assert followed(BreakingClient(20)) == (LOG, 3)
