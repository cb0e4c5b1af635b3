"""Videos in a real browser, over real HTTP: they play, disliked ones disappear, and nothing leaks the token."""

import io
import json
import logging
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import av
import httpx
import numpy as np
import pyarrow as pa
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from raypipe.config.serve import LimitsConfig
from raypipe.endpoint.byte_ranges import MAX_PART_BYTES
from raypipe.storage import Folder
from support.browser import Watch, chromium, plain_server
from support.processes import wait_until
from support.served_index import make_items, put_version
from support.videos import make_video

pytestmark = pytest.mark.slow
TOKEN = "a-token.of~signs"  # noqa: S105 - of the server that the test starts
MAX_STREAMS = 2
PLAYS = "() => document.querySelector('#detail video')?.readyState >= 2"


def make_webm(*, num_frames: int, size: int) -> bytes:
    """Return a VP8 video of noise, which compresses badly."""
    data, random = io.BytesIO(), np.random.default_rng(0)
    with av.open(data, "w", format="webm") as container:
        stream = container.add_stream("libvpx", rate=10, options={"deadline": "realtime", "b": "20M", "threads": "1"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for _ in range(num_frames):
            picture = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return data.getvalue()


@dataclass
class Site:
    """A server that requires ``TOKEN``, its videos, and the requests that it logged."""

    url: str
    videos: Path
    records: list[object] = field(default_factory=list)

    @contextmanager
    def stall(self) -> Iterator[socket.socket]:
        """Request a large part of a video, and do not read it."""
        made = httpx.post(f"{self.url}/v1/videos/long.webm/play", headers={"Authorization": f"Bearer {TOKEN}"})
        before = self.num_streams()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", urlsplit(self.url).port))
            client.sendall(f"GET {made.json()['url']} HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-\r\n\r\n".encode())
            if before < MAX_STREAMS:
                wait_until(lambda: self.num_streams() == before + 1, what="the stream begins")
            yield client

    def num_streams(self) -> int:
        """Return the number of streams in flight."""
        found = re.search(r'raypipe_in_flight{endpoint="play"} (\d+)', httpx.get(f"{self.url}/metrics").text)
        assert found
        return int(found[1])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    work = tmp_path_factory.mktemp("site")
    videos = work / "videos"
    videos.mkdir()
    contents = {
        "h264.mp4": make_video(shade=9, num_frames=20, size=128),
        "long.webm": make_webm(num_frames=60, size=400),
        "old.avi": b"RIFF",
        "broken.mp4": b"this is not a video",
    }
    assert len(contents["long.webm"]) > MAX_PART_BYTES
    for name, data in contents.items():
        (videos / name).write_bytes(data)
    items, embeddings = make_items(40)
    ids = [*contents, *items["video_id"].to_pylist()[len(contents) :]]
    items = items.set_column(0, "video_id", pa.array(ids))
    items = items.set_column(1, "video_uri", pa.array([str(videos / name) for name in ids]))
    titles = [*contents, *items["title"].to_pylist()[len(contents) :]]
    items = items.set_column(items.column_names.index("title"), "title", pa.array(titles))
    put_version(Folder(str(work / "index")), items, embeddings)
    found = Site("", videos)
    limits = LimitsConfig(max_streams=MAX_STREAMS, video_deadline_seconds=1.0)
    served = plain_server(
        Folder(str(work / "index")),
        work / "cache",
        token=TOKEN,
        prefixes=(str(videos),),
        limits=limits,
        log=found.records.append,
    )
    with served as found.url:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def addresses() -> list[str]:
    return []


@pytest.fixture
def page(browser: Browser, site: Site, addresses: list[str]) -> Iterator[Page]:
    """Open the page with the token."""
    context = browser.new_context(viewport={"width": 1280, "height": 850})
    page = context.new_page()
    watch = Watch(site.url, allowed={401, 403})
    watch.follow(page)
    page.on("request", lambda request: addresses.append(request.url))
    page.goto(site.url)
    page.get_by_role("dialog", name="Token").get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("#grid .card").first).to_be_visible()
    expect(page.locator("#recommended .row").first).to_be_visible()
    yield page
    context.close()
    assert watch.troubles == []


def opened(page: Page, title: str) -> None:
    page.locator("#grid .open", has_text=title).click()


@pytest.mark.parametrize("title", ["h264.mp4", "long.webm"])
def test_click_on_a_picture_plays_the_video(page: Page, tmp_path: Path, title: str) -> None:
    opened(page, title)
    page.wait_for_function(PLAYS)
    page.wait_for_function("() => document.querySelector('#detail video').currentTime > 0.3")
    page.screenshot(path=tmp_path / "player.png")
    if title == "long.webm":  # its end is in another part than its start
        page.wait_for_function("() => document.querySelector('#detail video').ended")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    # The browser reports the closing of a dialog later than it closes it.
    page.wait_for_function("() => !document.querySelector('#detail video')?.getAttribute('src')")


def test_a_video_that_cannot_be_played_says_why(page: Page) -> None:
    opened(page, "old.avi")
    expect(page.locator("#detail-player")).to_contain_text("AVI")
    expect(page.locator("#detail video")).to_have_count(0)
    page.keyboard.press("Escape")
    opened(page, "broken.mp4")
    expect(page.locator("#detail-player")).to_contain_text("cannot play this format (MP4)")


def test_an_expired_link_is_renewed(page: Page, addresses: list[str]) -> None:
    error = {"error": {"code": "expired_link", "message": "This link has expired."}, "request_id": "1"}
    page.route(
        "**/v1/play?*", lambda route: route.fulfill(status=403, json=error), times=2
    )  # the video, the question why
    opened(page, "h264.mp4")
    page.wait_for_function(PLAYS)
    assert len([url for url in addresses if url.endswith("/h264.mp4/play")]) == 2
    assert page.locator("#detail-player").text_content() == ""


def test_a_disliked_video_leaves_the_recommendations(page: Page, tmp_path: Path) -> None:
    page.locator("#grid .watch").nth(4).click()
    expect(page.locator("#recommended-status")).to_contain_text("from 1 watched")
    expect(page.locator("#recommended-status")).to_contain_text("similar content")
    expect(page.locator("#recommended .because").first).to_contain_text("similar to ")
    before = page.locator("#recommended .title").all_text_contents()
    with page.expect_response("**/v1/recommend"):
        page.get_by_role("button", name=f"Not for me: {before[0]}").click()
    expect(page.locator("#recommended .title").first).to_have_text(before[1])
    assert before[0] not in page.locator("#recommended .title").all_text_contents()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == f"Not for me: {before[1]}"
    assert page.locator("#dislikes .title").all_text_contents() == [before[0]]
    page.screenshot(path=tmp_path / "disliked.png")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator("#disliked").scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "phone.png")
    page.reload()
    expect(page.locator("#dislikes .title")).to_have_text([before[0]])
    page.locator("#dislikes").get_by_role("button", name=f"Remove {before[0]}").click()
    expect(page.locator("#recommended .title").first).to_have_text(before[0])
    expect(page.locator("#disliked")).to_be_hidden()


def test_strategies_are_offered_and_reasons_are_in_plain_words(page: Page, site: Site, tmp_path: Path) -> None:
    expect(page.locator("#controls [name=strategy]")).to_be_hidden()  # the index has one strategy only
    about = httpx.get(f"{site.url}/v1/index", headers={"Authorization": f"Bearer {TOKEN}"}).json()
    about["strategies"] = ["ranker", "transitions", "content"]
    page.route("**/v1/index", lambda route: route.fulfill(json=about))

    def ranked(found: dict[str, object]) -> dict[str, object]:
        results = json.loads(json.dumps(found["results"]))
        for result, users in zip(results, (31, 1, None), strict=False):
            result["why"] |= {"reason": "watched_after", "after": "h264.mp4", "num_users": users}
        return found | {"results": results, "strategy": "transitions"}

    def answer(route: Route) -> None:
        body = {key: value for key, value in route.request.post_data_json.items() if key != "strategy"}
        route.fulfill(json=ranked(route.fetch(post_data=body).json()))

    page.route("**/v1/recommend", answer)
    page.reload()
    page.locator("#grid .watch").nth(0).click()
    with page.expect_request(lambda request: "transitions" in (request.post_data or "")):
        page.get_by_label("Strategy").select_option("transitions")
    expect(page.locator("#recommended-status")).to_contain_text("what others watched next")
    expect(page.locator("#recommended .because").nth(0)).to_have_text("watched after h264.mp4 by 31 people")
    expect(page.locator("#recommended .because").nth(1)).to_have_text("watched after h264.mp4 by 1 person")
    expect(page.locator("#recommended .because").nth(2)).to_have_text("watched after h264.mp4")
    page.screenshot(path=tmp_path / "strategies.png")


def test_the_token_is_in_no_address_and_no_log(
    page: Page, site: Site, addresses: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        opened(page, "h264.mp4")
        page.wait_for_function(PLAYS)
    links = [url for url in addresses if "/v1/play?" in url]
    assert links
    assert not [url for url in addresses if TOKEN in url]
    assert set(parse_qs(urlsplit(links[0]).query)) == {"id", "expires", "tag", "signature"}
    signature = parse_qs(urlsplit(links[0]).query)["signature"][0]
    assert {"play", "play_link"} <= {record["endpoint"] for record in site.records}  # type: ignore[index]
    # pytest itself switches on the access log of uvicorn, which Ray Serve switches off.
    said = [record.getMessage() for record in caplog.records if record.name != "uvicorn.access"]
    for secret in (TOKEN, signature):
        assert secret not in str(site.records) + str(said)
    url = links[0].replace("h264.mp4", "long.webm")
    assert httpx.get(url).json()["error"]["code"] == "invalid_link"
    assert httpx.post(f"{site.url}/v1/videos/h264.mp4/play").status_code == 401


def test_slow_clients_do_not_block_others_and_are_dropped(site: Site) -> None:
    with ExitStack() as slow:
        for _ in range(2):
            slow.enter_context(site.stall())
        with site.stall() as third:
            assert third.recv(99).startswith(b"HTTP/1.1 429 ")
        found = httpx.get(f"{site.url}/v1/videos", headers={"Authorization": f"Bearer {TOKEN}"})
        assert found.status_code == 200
        wait_until(lambda: not site.num_streams(), what="the end of the streams that make no progress")
