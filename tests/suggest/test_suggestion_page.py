"""The page and the CSV files of suggest: hostile text stays text, pictures are shown, and nothing overflows."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from raypipe.jobs.suggest.lists import to_check_csv, to_label_csv
from raypipe.records import LabelCounts, LabelToCheck, SuggestionRecord, VideoToLabel
from raypipe.report.suggestion_page import suggestion_page
from support.browser import chromium
from support.report_pages import HOSTILE, Page
from support.served_index import jpeg

SUMMARY = {
    "features": "mean",
    "num_unknown": 0,
    "num_without_frames": 0,
    "has_model": True,
    "num_labelled": 9,
    "num_unlabelled": 20,
    "num_unlabelled_used": 20,
    "num_test": 3,
    "accuracy": 0.5,
}


def record_with(text: str) -> SuggestionRecord:
    """Return a record with a text in every place that a user's files fill."""
    video = VideoToLabel(
        video_id=text, video_uri=text, labels=(text, "b"), probabilities=(0.5, 0.4), num_similar=7, thumbnail=jpeg(3)
    )
    doubt = LabelToCheck(
        video_id=text,
        video_uri=text,
        label=text,
        suggested=text,
        probability=0.1,
        suggested_probability=0.8,
        thumbnail=jpeg(4),
    )
    return SuggestionRecord(
        command=text,
        embeddings_uri=text,
        output_uri=text,
        settings={"labels": text},
        versions={},
        started_at=0,
        finished_at=1,
        summary=SUMMARY,
        to_label=(video, replace(video, labels=(), probabilities=(), thumbnail=b"not a JPEG")),
        to_check=(doubt, replace(doubt, label=None), replace(doubt, suggested=None)),
        labels=(LabelCounts(label=text, num_videos=9, recall=0.5, num_to_check=3),),
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_untrusted_text_never_becomes_markup(text: str) -> None:
    page = Page(suggestion_page(record_with(text)).encode())
    plain = Page(suggestion_page(record_with("harmless")).encode())
    tags = [(tag, name) for tag, name, _ in page.attributes if name != "title"]  # a long name has a tooltip
    assert tags == [(tag, name) for tag, name, _ in plain.attributes if name != "title"]
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "iframe", "link", "a"})


def test_only_jpegs_are_pictures() -> None:
    page = Page(suggestion_page(record_with("video")).encode())
    assert sum(tag == "img" for tag, _ in page.elements) == 4
    assert "no picture" in page.texts


def test_empty_lists_have_no_section() -> None:
    empty = replace(record_with("video"), to_label=(), to_check=(), labels=())
    assert "img" not in {tag for tag, _ in Page(suggestion_page(empty).encode()).elements}


def test_csv_files_say_why() -> None:
    record = record_with('a, "b"\nc')
    first, second = csv.DictReader(io.StringIO(to_label_csv(record.to_label).decode(), newline=""))
    assert (first["rank"], first["video_id"], first["label_2"], first["why"]) == ("1", 'a, "b"\nc', "b", "undecided")
    assert (second["label_1"], second["probability_2"], second["why"]) == ("", "", "typical")
    rows = list(csv.DictReader(io.StringIO(to_check_csv(record.to_check).decode(), newline="")))
    assert [row["problem"] for row in rows] == ["wrong", "missing", "too_much"]
    assert (rows[1]["label"], rows[2]["suggested_label"]) == ("", "")


@pytest.mark.slow
def test_nothing_overflows_on_a_phone_or_a_desktop(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(suggestion_page(record_with("a_very_long_name_without_any_space_" * 4)), encoding="utf-8")
    with chromium() as browser:
        for width in (390, 1200):
            view = browser.new_page(viewport={"width": width, "height": 800})
            view.goto(path.as_uri())
            assert view.evaluate("document.documentElement.scrollWidth") <= width
