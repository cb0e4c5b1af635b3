"""A storage that fails as S3 does: scripted replies over real HTTP on loopback."""

import base64
import io
import secrets
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest
from botocore.retries.standard import ExponentialBackoff  # type: ignore[import-untyped]

from raypipe.errors import (
    ObjectChangedError,
    ObjectDeniedError,
    ObjectMissingError,
    ObjectTooLargeError,
    ObjectUnreadableError,
    StorageError,
)
from raypipe.storage import Folder, read_object, read_range, s3, s3_client
from raypipe.storage.s3_client import take_throttles

VIDEO = b"0123456789"
WRONG_CRC32 = base64.b64encode(struct.pack(">I", zlib.crc32(b"other"))).decode()


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = b""
    code: str = ""  # an error in S3's format
    size_bytes: int | None = None  # the Content-Length, if it differs from the body's
    cut_at: int | None = None
    ranges: bool = True  # it supports open ranges
    etag: str = "planned"
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False
    reset: bool = False
    no_continue: bool = False


class FaultyServer(ThreadingHTTPServer):
    """Send the replies in order, then repeat the last one; ``requests`` are the methods and headers received."""

    daemon_threads = True
    requests: list[tuple[str, dict[str, str]]]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FaultyHandler)
        self.replies = [Reply()]
        self.requests = []
        self.over = Event()


class FaultyHandler(BaseHTTPRequestHandler):
    server: FaultyServer
    protocol_version = "HTTP/1.1"  # needed for "Expect: 100-continue"

    def handle_expect_100(self) -> bool:
        return self.server.replies[0].no_continue or super().handle_expect_100()

    def reply(self) -> None:
        server = self.server
        self.close_connection = True
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server.requests.append((self.command, {name.lower(): value for name, value in self.headers.items()}))
        reply = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
        if reply.hang:
            server.over.wait()
        if reply.hang or reply.reset:
            return
        body = reply.body
        if reply.code:
            body = f"<Error><Code>{reply.code}</Code><Message>because</Message></Error>".encode()
        status = reply.status
        if status == 200 and reply.ranges and (asked := self.headers.get("Range")):
            status = 206
            body = body[int(asked.removeprefix("bytes=").removesuffix("-")) :]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if reply.size_bytes is None else reply.size_bytes))
        self.send_header("ETag", f'"{reply.etag}"')
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):  # the client may close early
            self.wfile.write(body[: reply.cut_at])

    do_GET = do_PUT = do_HEAD = reply  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setattr(s3_client, "MAX_PAUSE_SECONDS", 0)
        monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def read(max_size_bytes: int = 100) -> bytes:
    into = io.BytesIO()
    assert read_object("s3://b/v.mp4", etag="planned", max_size_bytes=max_size_bytes, into=into) == len(into.getvalue())
    return into.getvalue()


@pytest.mark.parametrize(
    ("status", "code", "times"),
    [(503, "SlowDown", 2), (500, "InternalError", 5), (503, "ServiceUnavailable", 5)],  # the client really slows down
)
def test_a_failure_that_passes_is_outlasted(server: FaultyServer, status: int, code: str, times: int) -> None:
    server.replies = [Reply(status, code=code)] * times + [Reply(body=VIDEO)]
    assert read() == VIDEO
    assert len(server.requests) == times + 1


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (Reply(503, code="SlowDown"), 2),
        (Reply(429, code="TooManyRequests"), 2),
        (Reply(400, code="Throttling"), 2),
        (Reply(500, code="InternalError"), 0),
        (Reply(reset=True), 0),
    ],
)
def test_replies_that_ask_for_fewer_requests_are_counted(server: FaultyServer, refusal: Reply, expected: int) -> None:
    take_throttles()
    server.replies = [refusal] * 2 + [Reply(body=VIDEO)]
    assert read() == VIDEO
    assert take_throttles() == expected
    assert take_throttles() == 0


def test_broken_connections_are_retried(server: FaultyServer) -> None:
    server.replies = [Reply(reset=True)] * 30 + [Reply(body=VIDEO)]  # more than the client's own retries
    assert read() == VIDEO


def test_a_body_that_breaks_off_is_resumed(server: FaultyServer) -> None:
    video = secrets.token_bytes(8 << 20)
    server.replies = [Reply(body=video, cut_at=4 << 20), Reply(body=video)]
    assert read(max_size_bytes=8 << 20) == video
    (_, first), (_, second) = server.requests
    assert "range" not in first
    assert 0 < int(second["range"].removeprefix("bytes=").removesuffix("-")) <= 4 << 20
    assert first["if-match"] == second["if-match"] == '"planned"'


def test_a_body_that_cannot_be_resumed_is_read_again(server: FaultyServer) -> None:
    server.replies = [Reply(body=bytes(4 << 20), cut_at=2 << 20), Reply(body=VIDEO, ranges=False)]
    assert read(max_size_bytes=4 << 20) == VIDEO
    assert "range" in server.requests[1][1]


def test_a_body_whose_checksum_is_wrong_is_read_again(server: FaultyServer) -> None:
    server.replies = [Reply(body=b"corrupt...", headers={"x-amz-checksum-crc32": WRONG_CRC32}), Reply(body=VIDEO)]
    assert read() == VIDEO
    assert [headers.get("range") for _, headers in server.requests] == [None, None]


def test_a_body_that_always_breaks_off_is_unreadable(server: FaultyServer) -> None:
    server.replies = [Reply(body=b"", size_bytes=10)]
    with pytest.raises(ObjectUnreadableError, match=r"s3://b/v\.mp4"):
        read()
    assert len(server.requests) == s3.BODY_ATTEMPTS
    with pytest.raises(ObjectUnreadableError):
        Folder("s3://b").read("v.mp4")


@pytest.mark.parametrize("reply", [Reply(500, code="InternalError"), Reply(reset=True), Reply(hang=True)])
def test_a_permanent_failure_is_unreadable(server: FaultyServer, monkeypatch: pytest.MonkeyPatch, reply: Reply) -> None:
    monkeypatch.setattr(s3_client, "RETRY_SECONDS", 0)
    monkeypatch.setattr(s3_client, "READ_TIMEOUT_SECONDS", 0.2)
    server.replies = [reply]
    with pytest.raises(ObjectUnreadableError) as caught:
        read()
    assert "\n" not in str(caught.value)
    assert len(server.requests) in {s3_client.MAX_ATTEMPTS, 2 * s3_client.MAX_ATTEMPTS}  # aiohttp repeats some requests


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(403, code="AccessDenied"), ObjectDeniedError),
        (Reply(403, code="InvalidObjectState"), ObjectDeniedError),
        (Reply(404, code="NoSuchKey"), ObjectMissingError),
        (Reply(412, code="PreconditionFailed"), ObjectChangedError),
        (Reply(body=VIDEO, etag="other"), ObjectChangedError),
        (Reply(400, code="InvalidRequest"), ObjectUnreadableError),
        (Reply(206, body=VIDEO, etag="other"), ObjectChangedError),
    ],
)
def test_an_error_of_one_object_is_not_retried(server: FaultyServer, reply: Reply, error: type[Exception]) -> None:
    server.replies = [reply]
    with pytest.raises(error, match=r"^s3://b/v\.mp4[^\n]*$"):
        read()
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "ExpiredToken"),
        (403, "InvalidAccessKeyId"),
        (403, "SignatureDoesNotMatch"),
        (403, "RequestTimeTooSkewed"),
        (404, "NoSuchBucket"),
    ],
)
def test_an_error_of_every_object_is_a_storage_error(server: FaultyServer, status: int, code: str) -> None:
    server.replies = [Reply(status, code=code)]
    with pytest.raises(StorageError, match=rf"because \({code}\)"):
        read()


def test_an_object_that_is_too_large_is_refused_before_its_body(server: FaultyServer) -> None:
    server.replies = [Reply(body=b"", size_bytes=10**12)]
    with pytest.raises(ObjectTooLargeError) as caught:
        read()
    assert caught.value.value == 10**12
    assert len(server.requests) == 1


def test_a_file_that_cannot_be_written_is_no_fault_of_the_object(server: FaultyServer) -> None:
    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

    server.replies = [Reply(body=VIDEO)]
    with pytest.raises(OSError, match="No space left"):
        read_object("s3://b/v.mp4", etag="planned", max_size_bytes=100, into=Full())
    assert len(server.requests) == 1


def test_put_new_is_retried_during_another_put(server: FaultyServer) -> None:
    server.replies = [Reply(409, code="ConditionalRequestConflict"), Reply()]
    assert Folder("s3://b").put_new("x", b"data")
    server.replies = [Reply(409, code="ConditionalRequestConflict"), Reply(412, code="PreconditionFailed")]
    assert not Folder("s3://b").put_new("x", b"data")
    assert {headers.get("if-none-match") for _, headers in server.requests} == {"*"}


def test_put_new_whose_reply_was_lost_reports_that_the_object_exists(server: FaultyServer) -> None:
    server.replies = [Reply(reset=True), Reply(412, code="PreconditionFailed")]
    assert not Folder("s3://b").put_new("x", b"data")


def test_put_new_gives_up_in_the_end(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "RETRY_SECONDS", 0)
    monkeypatch.setattr(s3_client, "REQUEST_SECONDS", 0.2)
    server.replies = [Reply(no_continue=True)]
    with pytest.raises(StorageError, match="TimeoutError") as caught:
        Folder("s3://b").put_new("x", b"data")
    assert caught.value.key == "s3://b/x"


@pytest.mark.parametrize(
    ("call", "permission"),
    [
        (lambda: list(Folder("s3://b/x").list()), "s3:ListBucket"),
        (lambda: Folder("s3://b/x").check_writable(), "s3:PutObject"),
        (lambda: Folder("s3://b/x").exists("y"), "s3:GetObject"),
    ],
)
def test_a_missing_permission_is_named(server: FaultyServer, call: Callable[[], object], permission: str) -> None:
    server.replies = [Reply(403, code="AccessDenied")]
    with pytest.raises(StorageError, match=r"^[^\n]*'b'[^\n]*$") as caught:
        call()
    assert permission in caught.value.remedy


def test_a_page_of_a_listing_is_retried(server: FaultyServer) -> None:
    page = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
    server.replies = [Reply(500, code="InternalError")] * 5 + [Reply(body=page)]
    assert list(Folder("s3://b").list()) == []
    assert len(server.requests) == 6


def page_of(*inside: str) -> bytes:
    return f"<ListBucketResult>{''.join(inside)}</ListBucketResult>".encode()


KEY = "<Contents><Key>v.mp4</Key><Size>1</Size><ETag>e</ETag></Contents>"
MORE = "<IsTruncated>true</IsTruncated>"
TOKEN = "<NextContinuationToken>next</NextContinuationToken>"  # noqa: S105
LAST = page_of(KEY, "<IsTruncated>false</IsTruncated>")
# Replies with status 200 that are no valid page or do not say how to continue. None may pass as the end of a listing.
NO_PAGES = {
    "empty": b"",
    "cut": page_of(KEY, MORE, TOKEN)[:60],
    "cut behind the keys": page_of(KEY),
    "another document": b"<html><body>Log in</body></html>",
    "no XML": b"OK",
    "an error": b"<Error><Code>InternalError</Code><Message>because</Message></Error>",
    "truncated or not": page_of(KEY, "<IsTruncated/>"),
    "truncated perhaps": page_of(KEY, "<IsTruncated>maybe</IsTruncated>"),
    "no token": page_of(KEY, MORE),
    "an empty token": page_of(KEY, MORE, "<NextContinuationToken/>"),
}


@pytest.mark.parametrize("body", NO_PAGES.values(), ids=NO_PAGES)
@pytest.mark.parametrize("pages_before", [0, 1])
def test_a_reply_that_is_no_whole_page_is_not_the_end_of_a_listing(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch, body: bytes, pages_before: int
) -> None:
    before = [Reply(body=page_of(KEY, MORE, TOKEN))] * pages_before
    server.replies = [*before, Reply(body=body), Reply(body=body), Reply(body=LAST)]
    assert [stored.key for stored in Folder("s3://b").list()] == ["v.mp4"] * (1 + pages_before)
    monkeypatch.setattr(s3_client, "RETRY_SECONDS", 0)
    server.replies = [*before, Reply(body=body)]
    with pytest.raises(StorageError) as caught:
        list(Folder("s3://b").list())
    assert caught.value.key == "s3://b"
    assert "\n" not in str(caught.value)


def test_a_page_that_leads_to_itself_is_an_error(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "RETRY_SECONDS", 0)
    server.replies = [Reply(body=page_of(KEY, MORE, TOKEN))]
    with pytest.raises(StorageError):
        list(Folder("s3://b").list())


def test_an_empty_page_in_the_middle_is_not_the_end(server: FaultyServer) -> None:
    server.replies = [Reply(body=page_of(MORE, TOKEN)), Reply(body=LAST)]
    assert [stored.key for stored in Folder("s3://b").list()] == ["v.mp4"]


def test_keys_reach_the_storage_as_they_are(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[str] = []
    monkeypatch.setattr(FaultyHandler, "log_request", lambda self, *_: paths.append(self.path))
    server.replies = [Reply(body=VIDEO)]
    for key in ("a//b/", "../a/./b", "x?versionId=3", "50%25+#"):
        read_object(f"s3://b/{key}", etag="planned", max_size_bytes=100, into=io.BytesIO())
    assert paths == ["/b/a//b/", "/b/../a/./b", "/b/x%3FversionId%3D3", "/b/50%2525%2B%23"]


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(body=VIDEO[2:5], etag="other"), ObjectChangedError),
        (Reply(body=VIDEO), ObjectUnreadableError),  # the whole object, although a range was requested
    ],
)
def test_a_storage_without_conditions_or_ranges_is_detected(
    server: FaultyServer, reply: Reply, error: type[Exception]
) -> None:
    server.replies = [replace(reply, ranges=False)]
    with pytest.raises(error):
        read_range("s3://b/v.mp4", etag="planned", start=2, stop=5)
    assert len(server.requests) == 1


def test_a_range_that_breaks_off_is_retried(server: FaultyServer) -> None:
    part = Reply(body=VIDEO[2:5], ranges=False)
    server.replies = [replace(part, cut_at=1), part]
    assert read_range("s3://b/v.mp4", etag="planned", start=2, stop=5) == VIDEO[2:5]
    assert [headers["range"] for _, headers in server.requests] == ["bytes=2-4"] * 2
    assert {headers["if-match"] for _, headers in server.requests} == {'"planned"'}


def test_a_store_that_overwrites_objects_is_refused(server: FaultyServer) -> None:
    server.replies = [Reply()]  # both writes of the marker are accepted
    with pytest.raises(StorageError, match="If-None-Match"):
        Folder("s3://b/out").check_writable()
    assert [headers["if-none-match"] for _, headers in server.requests] == ["*", "*"]
