"""The page in a real browser, against a real server."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, ViewportSize, expect

from support.browser import Watch, chromium, guarded_server
from support.endpoints import Endpoint
from support.report_pages import HOSTILE
from support.videos import make_video

pytestmark = pytest.mark.slow
WIDE: ViewportSize = {"width": 1280, "height": 850}
PHONE: ViewportSize = {"width": 360, "height": 740}
TOKEN = "a-token.of~signs"  # noqa: S105 - of the server that a test starts
HAS_PICTURE = "() => [...document.querySelectorAll('#grid img')].some((image) => image.naturalWidth > 0)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """Run a server that requires ``TOKEN``, and yield its address."""
    with guarded_server(tmp_path, TOKEN) as address:
        yield address


@pytest.fixture
def watch(endpoint: Endpoint, page: Page) -> Iterator[Watch]:
    watch = Watch(endpoint.url)
    watch.follow(page)
    yield watch
    assert watch.troubles == []


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport=WIDE, reduced_motion="reduce")
    yield context.new_page()
    context.close()


@pytest.fixture
def opened(endpoint: Endpoint, page: Page, watch: Watch) -> Page:  # noqa: ARG001 - it listens from the first request on
    """Open the page and wait for its catalogue and first recommendations."""
    page.goto(endpoint.url)
    expect(page.locator("#grid .card").first).to_be_visible()
    expect(page.locator("#recommended .row").first).to_be_visible()
    return page


def titles(page: Page, rows: str) -> list[str]:
    return page.locator(f"{rows} .title").all_text_contents()


def watched(page: Page, *places: int) -> None:
    for place in places:
        page.locator("#grid .watch").nth(place).click()


def test_catalogue_shows_pictures_titles_and_the_index(opened: Page, endpoint: Endpoint, tmp_path: Path) -> None:
    expect(opened.locator("#index-size")).to_have_text(f"{len(endpoint.source.items):,} videos")
    expect(opened.locator("#index-version")).to_have_text(re.compile(r"^\d{8}T\d{6}-[0-9a-f]{8}$"))
    opened.wait_for_function(HAS_PICTURE)
    opened.screenshot(path=tmp_path / "wide.png")
    opened.emulate_media(color_scheme="dark")
    opened.screenshot(path=tmp_path / "dark.png")
    opened.set_viewport_size(PHONE)
    assert opened.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    opened.screenshot(path=tmp_path / "phone.png")


def test_search_and_category_filter_apply(opened: Page) -> None:
    category = opened.locator("#search [name=category] option").nth(1).get_attribute("value")
    opened.locator("#search [name=category]").select_option(category)
    expect(opened.locator("#grid .category", has_not_text=category)).to_have_count(0)
    title = titles(opened, "#grid")[-1]
    opened.get_by_role("searchbox", name="Title or id").fill(title.upper())
    expect(opened.locator("#grid .title", has_not_text=title)).to_have_count(0)
    assert titles(opened, "#grid")
    opened.get_by_role("searchbox", name="Title or id").fill("no video has such a title")
    expect(opened.locator("#catalogue-status")).to_contain_text("No matching videos")
    expect(opened.locator("#grid .card")).to_have_count(0)


def test_click_on_a_video_shows_it_and_similar_ones_with_why(opened: Page, watch: Watch, tmp_path: Path) -> None:
    watch.allowed = {403}
    title = titles(opened, "#grid")[20]
    opened.locator("#grid .open").nth(20).click()
    panel = opened.get_by_role("dialog", name=title)
    expect(panel.locator("#similar .row").first).to_be_visible()
    expect(panel.locator(".facts")).to_contain_text("category")
    scores = [
        float(text.split()[-1].replace("\N{MINUS SIGN}", "-"))
        for text in panel.locator("#similar .score").all_text_contents()
    ]
    assert scores == sorted(scores, reverse=True)
    expect(panel.locator("#similar .why", has_not_text="similarity")).to_have_count(0)
    opened.screenshot(path=tmp_path / "detail.png")
    expect(panel.locator("#detail-player")).not_to_be_empty()  # its URI is under no allowed prefix
    panel.get_by_role("button", name="Classify").click()
    expect(panel.locator(".status[data-kind=error]")).not_to_be_empty()
    similar = titles(opened, "#similar")[0]
    panel.locator("#similar .open").first.click()
    expect(opened.locator("#detail-title")).to_have_text(similar)
    opened.get_by_role("button", name="Back").click()
    expect(opened.locator("#detail-title")).to_have_text(title)


def test_watched_strip_drives_the_recommendations(opened: Page, tmp_path: Path) -> None:
    expect(opened.locator("#recommended-status")).to_contain_text("Nothing watched yet")
    popular = titles(opened, "#recommended")
    names = titles(opened, "#grid")[:2]
    watched(opened, 0, 1)
    expect(opened.locator("#recommended-status")).to_contain_text("from 2 watched")
    assert titles(opened, "#strip") == names[::-1]
    for_two = titles(opened, "#recommended")
    assert for_two != popular
    causes = opened.locator("#recommended .cause").all_text_contents()
    assert len(causes) == len(for_two)
    assert set(causes) <= set(names)
    opened.screenshot(path=tmp_path / "watched.png")

    opened.reload()
    expect(opened.locator("#recommended-status")).to_contain_text("from 2 watched")
    assert titles(opened, "#recommended") == for_two
    opened.get_by_role("button", name=f"Remove {names[1]}").click()
    expect(opened.locator("#recommended-status")).to_contain_text("from 1 watched")
    assert titles(opened, "#recommended") != for_two
    opened.get_by_role("button", name="Clear").click()
    expect(opened.locator("#recommended-status")).to_contain_text("Nothing watched yet")
    assert titles(opened, "#recommended") == popular


def test_controls_change_the_ranking(opened: Page) -> None:
    watched(opened, 0, 1)
    expect(opened.locator("#recommended-status")).to_contain_text("from 2 watched")
    plain, ranked = titles(opened, "#recommended"), opened.locator("#recommended .title")
    opened.get_by_label("Diversity").fill("1")
    expect(ranked).not_to_have_text(plain)
    opened.get_by_role("button", name="Reset").click()
    expect(ranked).to_have_text(plain)
    opened.get_by_label("Popularity").fill("1")
    expect(opened.locator("#recommended .boost").first).to_contain_text("popularity")
    opened.get_by_role("button", name="Reset").click()
    expect(ranked).to_have_text(plain)
    opened.get_by_label("Most per category").select_option("1")
    expect(ranked).not_to_have_text(plain)
    categories = opened.locator("#recommended .category").all_text_contents()
    assert len(set(categories)) == len(categories)
    opened.get_by_role("button", name="Reset").click()
    expect(ranked).to_have_text(plain)
    wanted = categories[-1]
    opened.locator("#controls [name=category]").select_option(wanted)
    expect(opened.locator("#recommended .category", has_not_text=wanted)).to_have_count(0)
    expect(ranked.first).to_be_visible()


def test_keyboard_alone_is_enough(opened: Page) -> None:
    press, focused = opened.keyboard.press, "document.activeElement.textContent"
    for _ in range(3):
        press("Tab")  # the upload button and the two skip links
    press("Enter")
    press("Tab")
    assert "Diversity" in opened.evaluate("document.activeElement.closest('label').textContent")
    opened.get_by_role("searchbox", name="Title or id").focus()
    while not opened.evaluate("document.activeElement.matches('#grid .open')"):
        press("Tab")
    title = titles(opened, "#grid")[0]
    assert title in opened.evaluate(focused)
    press("Enter")
    expect(opened.get_by_role("heading", name=title, exact=True)).to_be_focused()
    while not opened.evaluate("document.activeElement.matches('#detail .watch')"):
        press("Tab")  # the player comes first
    assert opened.evaluate(focused) == "Add to watched"
    press("Space")
    press("Escape")
    expect(opened.get_by_role("dialog")).to_have_count(0)
    assert title in opened.evaluate(focused)  # focus is back where it was
    assert titles(opened, "#strip") == [title]
    press("Tab")
    press("Enter")
    expect(opened.locator("#strip li")).to_have_count(0)


def test_busy_server_is_retried_and_the_page_says_so(opened: Page, watch: Watch) -> None:
    watch.allowed = {429}
    error = {"error": {"code": "overloaded", "message": "64 requests are already in flight."}, "request_id": "1"}
    opened.route(
        "**/v1/videos?*", lambda route: route.fulfill(status=429, headers={"Retry-After": "1"}, json=error), times=1
    )
    opened.get_by_role("searchbox", name="Title or id").press("Enter")
    expect(opened.locator("#catalogue-status")).to_have_text("The server is busy. Retrying in 1 second.")
    expect(opened.locator("#catalogue-status")).to_contain_text("videos")


def test_late_answer_never_replaces_a_newer_one(opened: Page) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    opened.route("**/v1/videos?text=first*", hold)
    search = opened.get_by_role("searchbox", name="Title or id")
    with opened.expect_request("**/v1/videos?text=first*"):
        search.fill("first")
    search.fill("no video has such a title")
    expect(opened.locator("#catalogue-status")).to_contain_text("No matching videos")
    assert [route.request.failure for route in held] == ["net::ERR_ABORTED"]


def test_text_of_a_catalogue_is_never_markup(opened: Page, endpoint: Endpoint) -> None:
    known = endpoint.client.video(endpoint.ids[0])
    hostile = [text for text in HOSTILE if text.isprintable()]
    videos = [known | {"label": text, "fields": {"title": text, "category": text}} for text in hostile]
    opened.route("**/v1/videos?*", lambda route: route.fulfill(json={"videos": videos, "total": len(videos)}))
    opened.get_by_role("searchbox", name="Title or id").press("Enter")
    expect(opened.locator("#grid .title")).to_have_text(hostile)
    assert opened.locator("script").count() == 1
    assert opened.locator("[onerror], [onload], [onmouseover]").count() == 0


def test_uploaded_clip_gets_labels_and_neighbors(opened: Page, watch: Watch, tmp_path: Path) -> None:
    clip, broken = tmp_path / "my clip.mp4", tmp_path / "broken.mp4"
    clip.write_bytes(make_video(shade=77))
    broken.write_bytes(b"this is not a video")
    opened.get_by_role("button", name="Try a clip").click()
    panel = opened.get_by_role("dialog", name="Try a clip")
    panel.get_by_label("Choose a video").set_input_files(clip)
    expect(panel.get_by_role("status")).to_have_text(re.compile(rf"^{re.escape(clip.name)}: .*frames? read\.$"))
    expect(panel.locator("#clip-neighbors .row")).not_to_have_count(0)
    expect(panel.locator("#clip-labels .meter")).not_to_have_count(0)
    expect(panel.locator("#clip-labels .frames img")).to_have_count(2)
    opened.screenshot(path=tmp_path / "clip.png")

    watch.allowed = {422}
    panel.get_by_label("Choose a video").set_input_files(broken)
    expect(panel.locator(".status[data-kind=error]")).not_to_be_empty()
    expect(panel.locator(".row")).to_have_count(0)


def test_token_is_required_and_also_sent_for_pictures(guarded: str, page: Page) -> None:
    watch = Watch(guarded, allowed={401})
    watch.follow(page)
    page.goto(guarded)
    panel = page.get_by_role("dialog", name="Token")
    panel.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    expect(panel.get_by_role("status")).to_have_text("The server refused that token.")
    panel.get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("#grid .card").first).to_be_visible()
    page.wait_for_function(HAS_PICTURE)
    assert page.evaluate("[...document.querySelectorAll('img[src]')].every((image) => image.src.startsWith('blob:'))")
    assert page.evaluate("[Object.keys(sessionStorage), localStorage.length]") == [["raypipe.token"], 0]
    page.reload()
    expect(page.locator("#grid .card").first).to_be_visible()
    assert watch.troubles == []
