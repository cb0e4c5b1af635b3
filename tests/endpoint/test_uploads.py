"""A video is read only from under an allowed prefix, whatever its URI looks like."""

import os
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.demo.s3_server import S3Server
from raypipe.endpoint.http import HttpError
from raypipe.endpoint.uploads import AllowedUri, Prefixes
from raypipe.errors import ConfigError, ObjectDeniedError, ObjectMissingError, ObjectTooLargeError
from raypipe.storage import Folder
from support.properties import examples

_LARGE = 1 << 30


class Canary:
    """A server that must not get connections."""

    def __init__(self, port: int, connections: list[object]) -> None:
        self.port = port
        self.connections = connections


@pytest.fixture
def canary() -> Iterator[Canary]:
    """Count the connections to a port of this machine."""
    connections: list[object] = []

    class Count(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            connections.append(self.client_address)

    with socketserver.TCPServer(("127.0.0.1", 0), Count) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Canary(server.server_address[1], connections)
        server.shutdown()
        thread.join()


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """Return a folder of videos, with a secret next to it."""
    (tmp_path / "videos" / "deep").mkdir(parents=True)
    (tmp_path / "videos" / "a.mp4").write_bytes(b"a")
    (tmp_path / "videos" / "deep" / "é b.mp4").write_bytes(b"deep")
    (tmp_path / "videos-secret").mkdir()
    (tmp_path / "videos-secret" / "x").write_bytes(b"secret")
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path / "videos"


def read(prefixes: Prefixes, uri: str, *, most: int = _LARGE) -> bytes:
    with prefixes.open(prefixes.allow(uri), max_size_bytes=most) as file:
        assert file.name.isdigit() if isinstance(file.name, str) else isinstance(file.name, int)
        return file.read()


def test_a_video_under_the_prefix_is_read(inside: Path) -> None:
    prefixes = Prefixes([str(inside)])
    assert read(prefixes, f"{inside}/a.mp4") == b"a"
    assert read(prefixes, f"file://{inside}/deep/é b.mp4") == b"deep"
    assert Prefixes([f"{inside}/"]).allow(f"{inside}/a.mp4") == f"{inside}/a.mp4"
    with prefixes.open(b"sent", max_size_bytes=1) as file:
        assert file.read() == b"sent"


@pytest.mark.parametrize(
    "uri",
    [
        "{inside}/../secret",
        "{inside}/deep/../../secret",
        "{inside}-secret/x",
        "{inside}",
        "{inside}/",
        "{inside}/a.mp4/",
        "file://{inside}/../secret",
        "file:///etc/passwd",
        "/etc/passwd",
        "secret",
        "~/secret",
        "",
        "\0",
        "{inside}/a\0.mp4",
        "s3://videos/x.mp4",
        "http://127.0.0.1:{port}/x.mp4",
        "https://127.0.0.1:{port}/x.mp4",
        "ftp://127.0.0.1:{port}/x",
        "//127.0.0.1:{port}/x",
        "file://127.0.0.1:{port}{inside}/a.mp4",
        "concat:{inside}/a.mp4|/etc/passwd",
        "simplecache::http://127.0.0.1:{port}/x",
        "github://x:y@z/",
    ],
)
def test_a_uri_outside_is_refused(inside: Path, canary: Canary, uri: str) -> None:
    prefixes = Prefixes([str(inside)])
    with pytest.raises(HttpError) as caught:
        prefixes.allow(uri.format(inside=inside, port=canary.port))
    assert (caught.value.status, caught.value.code) == (403, "forbidden_uri")
    assert "\n" not in caught.value.message
    assert canary.connections == []


@pytest.mark.parametrize(
    "uri",
    [
        "s3://videos/secret/x",
        "s3://videos/open",
        "s3://videos/open/",
        "s3://videos/open/../secret/x",
        "s3://videos/open/./x",
        "s3://videos/open//x",
        "s3://videos/opened/x",
        "s3://other/open/x",
        "s3://videos@evil.example/open/x",
        "s3://127.0.0.1:{port}/open/x",
        "http://127.0.0.1:{port}/videos/open/x",
        "S3://videos/open/x",
        "s3:/videos/open/x",
    ],
)
def test_other_keys_and_buckets_are_refused(canary: Canary, uri: str) -> None:
    with pytest.raises(HttpError) as caught:
        Prefixes(["s3://videos/open/"]).allow(uri.format(port=canary.port))
    assert (caught.value.status, caught.value.code) == (403, "forbidden_uri")
    assert repr(uri.format(port=canary.port)) in caught.value.message
    assert canary.connections == []


@settings(max_examples=examples(300))
@given(
    uri=st.text() | st.lists(st.sampled_from(["..", ".", "/", "s3:", "a", "open", "\\", "%2e%2e", ""])).map("/".join)
)
def test_no_uri_escapes_the_prefix(uri: str) -> None:
    prefixes = Prefixes(["s3://videos/open", "/srv/videos"])
    for attempt in (uri, f"s3://videos/open/{uri}", f"/srv/videos/{uri}"):
        try:
            allowed = prefixes.allow(attempt)
        except HttpError as error:
            assert error.status == 403  # noqa: PT017 - both outcomes are right
        else:
            assert allowed.startswith(("s3://videos/open/", "/srv/videos/"))
            assert not {"..", "."} & set(allowed.split("/"))
            assert os.path.normpath(allowed.removeprefix("s3://")) == allowed.removeprefix("s3://")


def test_no_prefix_allows_nothing(inside: Path) -> None:
    with pytest.raises(HttpError):
        Prefixes(()).allow(f"{inside}/a.mp4")


def test_a_prefix_of_another_kind_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="http://host"):
        Prefixes(["http://host/videos"])


def test_a_link_does_not_escape_the_prefix(inside: Path) -> None:
    (inside / "link.mp4").symlink_to(inside.parent / "secret")
    (inside / "folder").symlink_to(inside.parent / "videos-secret")
    (inside / "loop").symlink_to(inside / "loop")
    prefixes = Prefixes([str(inside)])
    for name in ("link.mp4", "folder/x", "loop"):
        with pytest.raises((ObjectDeniedError, ObjectMissingError)) as caught:
            read(prefixes, f"{inside}/{name}")
        assert caught.value.key == f"{inside}/{name}"


def test_the_prefix_itself_may_be_a_link(inside: Path) -> None:
    link = inside.parent / "link"
    link.symlink_to(inside)
    assert read(Prefixes([str(link)]), f"{link}/a.mp4") == b"a"


def test_a_path_that_is_not_a_file_is_missing(inside: Path) -> None:
    os.mkfifo(inside / "pipe")
    prefixes = Prefixes([str(inside)])
    for name in ("none.mp4", "deep", "pipe", "a.mp4/x", "none/x"):
        with pytest.raises(ObjectMissingError) as caught:
            read(prefixes, f"{inside}/{name}")
        assert caught.value.key == f"{inside}/{name}"


def test_a_file_that_is_too_large_is_refused(inside: Path) -> None:
    prefixes = Prefixes([str(inside)])
    assert read(prefixes, f"{inside}/deep/é b.mp4", most=4) == b"deep"
    with pytest.raises(ObjectTooLargeError) as caught:
        read(prefixes, f"{inside}/deep/é b.mp4", most=3)
    error = caught.value
    assert (error.key, error.value, error.expected) == (f"{inside}/deep/é b.mp4", 4, 3)


def test_an_object_is_read_from_a_bucket(bucket: str, s3: S3Server, canary: Canary) -> None:  # noqa: ARG001
    assert Folder(f"{bucket}/open").put_new("a b/#1?versionId=2.mp4", b"video")
    assert Folder(bucket).put_new("secret", b"secret")
    prefixes = Prefixes([f"{bucket}/open"])
    assert read(prefixes, f"{bucket}/open/a b/#1?versionId=2.mp4") == b"video"
    with pytest.raises(ObjectMissingError):
        read(prefixes, f"{bucket}/open/none.mp4")
    with pytest.raises(ObjectTooLargeError):
        read(prefixes, f"{bucket}/open/a b/#1?versionId=2.mp4", most=4)
    with pytest.raises(HttpError):
        prefixes.open(AllowedUri(f"{bucket}/secret"), max_size_bytes=_LARGE)  # never checked before, so open checks it
    assert canary.connections == []
