"""The videos of the catalogue, played: a signed link for each, and ranges of bytes behind the link."""

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import httpx
import pyarrow as pa
import pytest
from starlette.types import ASGIApp, Message

from raypipe.demo.s3_server import S3Server
from raypipe.endpoint.byte_ranges import MAX_PART_BYTES
from raypipe.endpoint.index_watcher import IndexWatcher
from raypipe.endpoint.uploads import Prefixes
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from support.processes import wait_until
from support.routes import Ask, answer, error, serve
from support.served_index import make_items, put_version

SMALL = b"a small video"
LARGE = random.Random(0).randbytes(MAX_PART_BYTES + 1_500_000)


@dataclass(frozen=True)
class Player:
    """A server of an index, and the folder of its videos."""

    ask: Ask
    videos: Folder

    def link(self, video_id: str) -> Any:  # noqa: ANN401 - JSON
        return answer(self.ask("POST", f"/v1/videos/{quote(video_id, safe='')}/play"))

    def refusal(self, video_id: str) -> tuple[int, str]:
        return error(self.ask("POST", f"/v1/videos/{quote(video_id)}/play"))

    def get(self, video_id: str, range_header: str | None = None, **headers: str) -> httpx.Response:
        given = {} if range_header is None else {"Range": range_header}
        return self.ask("GET", self.link(video_id)["url"], headers=given | headers)


def served(videos: Folder, work: Path, uris: dict[str, str | None]) -> Iterator[Player]:
    """Serve an index of these videos. Only videos below ``videos`` may be read."""
    items, embeddings = make_items(len(uris))
    items = items.set_column(0, "video_id", pa.array(uris)).set_column(1, "video_uri", pa.array(uris.values()))
    index = Folder(str(work / "index"))
    put_version(index, items, embeddings)
    live = IndexWatcher(Versions(index), work / "cache", reload_seconds=1e6)
    live.start()
    yield Player(serve(live, prefixes=Prefixes([videos.uri])), videos)
    live.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Player]:
    """Return a server of local videos, next to files that it may not read."""
    folder = tmp_path / "videos"
    folder.mkdir()
    names = ("small.mp4", "large.WEBM", "é b.mov", "old.avi", "no extension", "page.html", "ends/play")
    names += ("two\nlines.mp4",)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(LARGE if name.startswith("large") else SMALL)
    (folder / "empty.mp4").touch()
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "link.mp4").symlink_to(tmp_path / "secret")
    uris: dict[str, str | None] = {
        name: str(folder / name) for name in (*names, "empty.mp4", "link.mp4", "missing.mp4")
    }
    uris |= {"outside": str(tmp_path / "secret"), "above": f"{folder}/../secret", "none": None}
    yield from served(Folder(str(folder)), tmp_path, uris)


@pytest.fixture
def in_bucket(s3: S3Server, tmp_path: Path) -> Iterator[Player]:  # noqa: ARG001 - it runs
    """Return a server of videos in a bucket."""
    videos = Folder(f"s3://videos/{secrets.token_hex(8)}")
    assert videos.put_new("large.webm", LARGE)
    names = {"large.WEBM": videos.child("large.webm"), "missing.mp4": videos.child("missing.mp4")}
    yield from served(videos, tmp_path, {**names, "outside": "s3://videos/other/x.mp4"})


@pytest.fixture(params=["local", "in_bucket"])
def player(request: pytest.FixtureRequest) -> Player:
    """Return a server of local videos, and then one of videos in a bucket."""
    found: Player = request.getfixturevalue(request.param)
    return found


def test_an_id_with_a_line_break_has_all_paths(local: Player) -> None:
    video_id = quote("two\nlines.mp4", safe="")
    for path in (f"/v1/videos/{video_id}", f"/v1/videos/{video_id}/thumbnail", f"/v1/similar/{video_id}"):
        assert local.ask("GET", path).status_code == 200
    assert local.get("two\nlines.mp4").content == SMALL


def test_ranges_of_a_video_are_its_bytes(player: Player) -> None:
    got = b""
    while len(got) < len(LARGE):
        response = player.get("large.WEBM", f"bytes={len(got)}-")
        assert response.status_code == 206
        stop = min(len(got) + MAX_PART_BYTES, len(LARGE))
        assert response.headers["content-range"] == f"bytes {len(got)}-{stop - 1}/{len(LARGE)}"
        assert response.headers["content-length"] == str(stop - len(got)) == str(len(response.content))
        got += response.content
    assert got == LARGE
    assert player.get("large.WEBM", "bytes=-7").content == LARGE[-7:]
    assert player.get("large.WEBM", "bytes=1048570-1048580").content == LARGE[1048570:1048581]


def test_the_headers_of_a_stream(player: Player) -> None:
    response = player.get("large.WEBM", "bytes=0-9")
    found = {name: response.headers[name] for name in ("content-type", "content-disposition", "cache-control")}
    assert found == {
        "content-type": "video/webm",
        "content-disposition": "inline",
        "cache-control": "private, max-age=600",
    }
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cross-origin-resource-policy"] == "same-origin"
    assert "media-src 'self'" in response.headers["content-security-policy"]
    head = player.ask("HEAD", player.link("large.WEBM")["url"], headers={"Range": "bytes=0-9"})
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(LARGE)))
    assert head.headers["etag"] == response.headers["etag"]


def test_a_small_video_can_be_read_whole_and_a_large_one_only_by_ranges(local: Player) -> None:
    response = local.get("small.mp4")
    assert (response.status_code, response.content) == (200, SMALL)
    assert "content-range" not in response.headers
    assert local.get("small.mp4", "bytes=2-4").content == SMALL[2:5]
    assert (local.get("empty.mp4").content, local.get("empty.mp4", "bytes=0-").status_code) == (b"", 416)
    for response in (local.get("large.WEBM"), local.get("large.WEBM", f"bytes={len(LARGE)}-")):
        assert error(response) == (416, "range_not_satisfiable")
        assert response.headers["content-range"] == f"bytes */{len(LARGE)}"


def test_the_media_type_is_from_a_list_by_extension(local: Player) -> None:
    expected = {
        "small.mp4": ("video/mp4", True),
        "é b.mov": ("video/quicktime", True),
        "old.avi": ("video/x-msvideo", False),
        "no extension": ("application/octet-stream", True),
        "page.html": ("application/octet-stream", True),
        "ends/play": ("application/octet-stream", True),
    }
    found = {name: local.link(name) for name in expected}
    assert {name: (link["media_type"], link["playable"]) for name, link in found.items()} == expected
    assert {name for name, link in found.items() if link["reason"] is not None} == {"old.avi"}
    assert "AVI" in found["old.avi"]["reason"]
    assert {name: local.get(name).headers["content-type"] for name in expected} == {
        name: media_type for name, (media_type, _) in expected.items()
    }


def test_a_video_that_may_not_be_read_has_no_link(player: Player) -> None:
    assert player.refusal("outside") == (403, "forbidden_uri")
    assert player.refusal("missing.mp4") == (404, "not_found")
    assert player.refusal("unknown") == (404, "not_found")


def test_no_path_leads_out_of_the_folder(local: Player) -> None:
    assert local.refusal("link.mp4") == (403, "forbidden_uri")
    assert local.refusal("above") == (403, "forbidden_uri")
    assert local.refusal("none") == (404, "not_found")


@pytest.mark.parametrize(
    "changed",
    [
        {"id": "é b.mov"},
        {"id": "outside"},
        {"id": "unknown"},
        {"id": ""},
        {"expires": "99999999999"},
        {"expires": "soon"},
        {"signature": "0" * 64},
        {"signature": ""},
        {"tag": "0" * 32},
    ],
)
def test_a_link_gives_access_to_nothing_else(local: Player, changed: dict[str, str]) -> None:
    url = urlsplit(local.link("small.mp4")["url"])
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    assert local.ask("GET", f"{url.path}?{urlencode(query)}").content == SMALL
    response = local.ask("GET", f"{url.path}?{urlencode(query | changed)}")
    assert error(response) == (403, "invalid_link")
    assert error(local.ask("GET", url.path)) == (403, "invalid_link")
    assert error(local.ask("POST", f"{url.path}?{url.query}")) == (405, "method_not_allowed")


def test_a_link_expires(local: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    link = local.link("small.mp4")
    for seconds, status in ((-1, 200), (1, 403)):
        monkeypatch.setattr("raypipe.endpoint.play_links.time.time", lambda at=link["expires_at"] + seconds: at)
        response = local.ask("GET", link["url"])
        assert response.status_code == status
    assert error(response) == (403, "expired_link")


def test_a_video_that_changes_between_two_requests_is_an_error(player: Player) -> None:
    url = player.link("large.WEBM")["url"]
    first = player.ask("GET", url, headers={"Range": "bytes=0-99"})
    change(player)
    again = player.ask("GET", url, headers={"Range": "bytes=100-199", "If-Range": first.headers["etag"]})
    assert (first.content, error(again)) == (LARGE[:100], (409, "video_changed"))
    renewed = player.get("large.WEBM", "bytes=100-199")
    assert renewed.content == bytes(100)
    assert renewed.headers["etag"] != first.headers["etag"]


def test_a_range_of_another_version_is_not_sent(local: Player) -> None:
    tag = local.get("small.mp4").headers["etag"]
    assert local.get("small.mp4", "bytes=0-1", **{"If-Range": tag}).status_code == 206
    for other in ('"other"', f"W/{tag}", "Sat, 28 Nov 2026 12:00:00 GMT"):
        response = local.get("small.mp4", "bytes=0-1", **{"If-Range": other})
        assert (response.status_code, response.content) == (200, SMALL)


def change(player: Player) -> None:
    """Replace the large video by zeros."""
    player.videos.put("large.WEBM" if player.videos.uri.startswith("/") else "large.webm", bytes(len(LARGE)))


def stream(player: Player, after_chunk: Callable[[asyncio.Event], Awaitable[None]]) -> list[Message]:
    """Request a part of the large video, call ``after_chunk`` after each chunk, and return the messages of the server.

    The client disconnects when the event is set.
    """
    url = urlsplit(player.link("large.WEBM")["url"])
    scope = {
        "type": "http",
        "method": "GET",
        "path": url.path,
        "query_string": url.query.encode(),
        "headers": [(b"host", b"127.0.0.1"), (b"range", b"bytes=0-")],
    }
    sent: list[Message] = []

    async def run() -> None:
        left = asyncio.Event()
        requests = [{"type": "http.request"}]

        async def receive() -> Message:
            if requests:
                return requests.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)
            if message.get("more_body"):
                await after_chunk(left)

        application: ASGIApp = player.ask.application  # type: ignore[attr-defined]
        await application(scope, receive, send)

    asyncio.run(run())
    return sent


def open_videos() -> int:
    """Return the number of open files with the size of the large video."""
    sizes = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            sizes.append(descriptor.stat().st_size)
    return sizes.count(len(LARGE))


def test_a_video_that_changes_during_a_response_ends_it(player: Player, caplog: pytest.LogCaptureFixture) -> None:
    async def after_chunk(_: asyncio.Event) -> None:
        await asyncio.to_thread(write)

    def write() -> None:
        if player.videos.uri.startswith("/"):
            with Path(player.videos.child("large.WEBM")).open("r+b") as file:
                file.write(bytes(len(LARGE)))
        else:
            change(player)

    start, *body = stream(player, after_chunk)
    assert start["status"] == 206
    assert b"".join(message["body"] for message in body) == LARGE[:1_048_576]
    assert [message["more_body"] for message in body] == [True]  # so that the client sees an incomplete response
    [record] = caplog.records
    assert player.videos.uri in record.getMessage()
    wait_until(lambda: not open_videos(), what="the file is closed")


def test_reading_stops_when_the_client_leaves(local: Player) -> None:
    async def after_chunk(left: asyncio.Event) -> None:
        assert open_videos() == 1
        left.set()
        await asyncio.sleep(0)

    _, *body = stream(local, after_chunk)
    assert sum(len(message["body"]) for message in body) <= 2 * 1_048_576
    wait_until(lambda: not open_videos(), what="the file is closed")
