"""The page of an evaluation: hostile text stays text, and nothing overflows on a phone."""

from pathlib import Path

import numpy as np
import pytest

from raypipe.evaluation import baselines
from raypipe.evaluation.compare import compare
from raypipe.evaluation.groupings import Grouping
from raypipe.evaluation.protocols import leave_one_out
from raypipe.records import EvaluationRecord, ExampleUser, ListedVideo
from raypipe.report.evaluation_page import evaluation_page
from raypipe.search.watch_events import Events
from support.browser import chromium
from support.report_pages import HOSTILE, Page
from support.served_index import jpeg


def page_with(text: str) -> bytes:
    """Return a page with a text in every place that a catalogue or a history fills."""
    random = np.random.default_rng(0)
    split = leave_one_out(Events.of_histories([random.permutation(30)[:5].tolist() for _ in range(20)]))
    groups = Grouping((text, "other"), np.arange(20) % 2)
    rankers = {"served": baselines.Random(30), "popular": baselines.Popular(split.train, 30)}
    found = compare(split, rankers, num_items=30, ks=[5], groupings={text: groups})
    plain, marked = ListedVideo(name=text, thumbnail=jpeg(3)), ListedVideo(name=text, is_target=True)
    odd = ListedVideo(name=text, thumbnail=b"not a JPEG")
    users = [
        ExampleUser(
            history=(plain,) * 6, listed=(plain, odd, marked), targets=(marked,), place=3, num_watched=9, num_listed=3
        ),
        ExampleUser(history=(), listed=(), targets=(marked,), place=None, num_watched=0, num_listed=0),
    ]
    metrics = found.as_json() | {"index_version": text, "require": None, "meets_requirement": True}
    record = EvaluationRecord(
        command=text,
        index_uri=text,
        history_uri=text,
        output_uri=text,
        settings={"slices": text},
        versions={},
        started_at=0,
        finished_at=1,
        metrics=metrics,
        counts={"unknown_videos": 3},
        examples=tuple(users),
    )
    return evaluation_page(record).encode()


@pytest.mark.parametrize("text", HOSTILE)
def test_untrusted_text_never_becomes_markup(text: str) -> None:
    page = Page(page_with(text))
    tags = [(tag, name) for tag, name, _ in page.attributes if name != "title"]  # a long name has a tooltip
    assert tags == [(tag, name) for tag, name, _ in Page(page_with("harmless")).attributes if name != "title"]
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "iframe", "link", "a"})


def test_the_target_is_marked_in_the_history_and_in_the_list() -> None:
    page = Page(page_with("video"))
    assert sum((name, value) == ("class", "target") for _, name, value in page.attributes) == 3
    assert sum(tag == "img" for tag, _ in page.elements) == 7
    texts = " ".join(page.texts)
    assert "at place 3 of the list" in texts
    assert "The list is empty." in texts


@pytest.mark.slow
def test_nothing_overflows_on_a_phone_or_a_desktop(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(page_with("a_very_long_name_without_any_space_" * 4))
    with chromium() as browser:
        for width in (390, 1200):
            view = browser.new_page(viewport={"width": width, "height": 800})
            troubles: list[str] = []
            view.on("console", lambda message, troubles=troubles: troubles.append(message.text))
            view.goto(path.as_uri())
            assert view.evaluate("document.documentElement.scrollWidth") <= width
            assert troubles == []
