"""The strip of bars in the page that shows what each frame adds to a label, in a real browser and without Ray."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from raypipe.endpoint.uploads import ClassifiedUpload, EmbeddedUpload, Upload
from raypipe.storage import Folder
from support.browser import Watch, chromium, plain_server
from support.served_index import DIM, EMBEDDINGS, jpeg, put_index

pytestmark = pytest.mark.slow
NUM_FRAMES = 16
PROBE = np.float32([0.02, 0.05, 0.1, 0.3, 0.55, 0.42, 0.2, 0.05, -0.05, -0.2, -0.32, -0.1, 0, 0.02, 0.03, 0.01])
ORDER = np.float32([0.1] + [0.0] * 15)
BOXES = "elements => elements.map((element) => element.getBoundingClientRect().toJSON())"
CLIP = {"name": "clip.mp4", "mimeType": "video/mp4", "buffer": b"of the user"}


async def embed(upload: Upload, *, pictures: bool) -> EmbeddedUpload:
    """Embed every video alike; a part of the body decides whether its frames have scores."""
    assert pictures
    frames = np.full((NUM_FRAMES, DIM), upload == b"no scores", np.float16)
    jpegs = [jpeg(16 * number) for number in range(NUM_FRAMES)]
    return EmbeddedUpload("ok", 70.0, np.ones(DIM, np.float32), frames, np.arange(NUM_FRAMES) * 4.5, jpegs)


async def classify(frame_embeddings: npt.NDArray[np.float16], *, frame_scores: bool) -> ClassifiedUpload:
    assert frame_scores
    scored = None if frame_embeddings.any() else (PROBE, ORDER)
    return ClassifiedUpload([("sport", 0.84), ("music", 0.11), ("news", 0.05)], scored)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    work = tmp_path_factory.mktemp("site")
    put_index(Folder(str(work / "index")), num_videos=20)
    models = {"embed": embed, "embed_fingerprint": EMBEDDINGS["fingerprint"], "classify": classify}
    with plain_server(Folder(str(work / "index")), work / "cache", prefixes=("s3://videos",), **models) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page, watch = context.new_page(), Watch(address, allowed={400, 403, 404, 501, 503})  # no storage has the videos
    watch.follow(page)
    page.goto(address)
    expect(page.locator("#grid .card").first).to_be_visible()
    yield page
    context.close()
    assert watch.troubles == []


def check_strip(strip: Locator) -> None:
    """Each frame has a bar on its side of the line, as high as its share of the largest, and a text."""
    expect(strip.locator("figcaption")).to_contain_text("sport")
    expect(strip.locator("li")).to_have_count(NUM_FRAMES)
    line, *boxes = strip.locator(".track, .track span").evaluate_all(BOXES)
    sums = PROBE + ORDER
    bars = [box for box in boxes if box["height"] != line["height"]]
    for box, total in zip(bars, sums[sums != 0], strict=True):
        middle = line["top"] + line["height"] / 2
        assert (box["top"] >= middle - 1) if total < 0 else (box["bottom"] <= middle + 1)
        assert box["height"] == pytest.approx(max(2, line["height"] / 2 * abs(total) / sums.max()), abs=1)
    assert strip.locator("img").evaluate_all("images => images.every((image) => image.naturalWidth > 0)")
    texts = strip.get_by_role("listitem").all_text_contents()
    assert texts[0] == "0.0 s: +0.12 (alone +0.02, in its order +0.10)"
    assert texts[10] == "45.0 s: \N{MINUS SIGN}0.32"
    assert texts[15] == "1:08: +0.01"
    assert strip.locator("li").nth(10).get_attribute("title") == texts[10]


def test_a_clip_shows_what_each_frame_adds(page: Page, tmp_path: Path) -> None:
    page.get_by_role("button", name="Try a clip").click()
    panel = page.get_by_role("dialog", name="Try a clip")
    panel.get_by_label("Choose a video").set_input_files(CLIP)
    check_strip(panel.locator(".frames"))
    page.screenshot(path=tmp_path / "clip.png")
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=tmp_path / "dark.png")
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.screenshot(path=tmp_path / "phone.png")

    panel.get_by_label("Choose a video").set_input_files({**CLIP, "buffer": b"no scores"})
    expect(panel.locator(".labels li")).to_have_count(3)
    expect(panel.locator(".frames")).to_have_count(0)


def test_a_video_of_the_catalogue_shows_what_each_frame_adds(page: Page, tmp_path: Path) -> None:
    page.locator("#grid .open").first.click()
    panel = page.locator("#detail")
    panel.get_by_role("button", name="Classify").click()
    check_strip(panel.locator(".frames"))
    page.screenshot(path=tmp_path / "detail.png")
