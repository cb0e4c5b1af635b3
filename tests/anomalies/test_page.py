"""The page of anomalies: hostile text stays text, nothing is loaded, and nothing overflows on a phone."""

from pathlib import Path

import pytest

from raypipe.records import AnomalyRecord, ListedVideo, StrangeVideo
from raypipe.report.anomaly_page import anomaly_page
from support.browser import chromium
from support.report_pages import HOSTILE, Page
from support.served_index import jpeg


def page_with(text: str, *, num_videos: int = 60, alarm: int | None = 41) -> bytes:
    """Return a page with a text in every place that an id fills."""
    since = None if alarm is None else alarm - 5
    metrics = {
        "index_version": text,
        "num_catalogue_videos": 30,
        "num_calibration_videos": 30,
        "num_videos": num_videos,
        "num_already_in_index": 2,
        "num_unscored": 1,
        "false_discovery_rate": 0.05,
        "num_anomalies": 1,
        "smallest_p_value": 1 / 31,
        "fewest_discoveries": 39,
        "drift": {
            "threshold": 5.0,
            "false_alarm_rate": 0.05,
            "order": text,
            "alarm": None if alarm is None else text,
            "alarm_place": alarm,
            "since": None if since is None else text,
            "since_place": since,
        },
    }
    closest = (
        ListedVideo(name=text, thumbnail=jpeg(9)),
        ListedVideo(name=text),
        ListedVideo(name=text, thumbnail=b"x"),
    )
    videos = tuple(
        StrangeVideo(
            video=ListedVideo(name=text, thumbnail=jpeg(at)),
            p_value=(at + 1) / 31,
            q_value=1.0,
            is_anomaly=at == 0,
            neighbor_distance=0.5,
            mahalanobis_length=12.3,
            closest=closest[at % 3],
            strangest_seconds=None if at == 1 else 3.25,
            frame_scores=((), (0.5,), (0.5, None, 0.25, 0.5), (0.5, 0.5))[at % 4],
        )
        for at in range(14)
    )
    record = AnomalyRecord(
        command=text,
        index_uri=text,
        embeddings_uri=text,
        output_uri=text,
        settings={"index": text},
        versions={"raypipe": "test"},
        started_at=0.0,
        finished_at=1.0,
        metrics=metrics,
        cusum=[0.2 * (at % 7) for at in range(num_videos)],
        videos=videos,
    )
    return anomaly_page(record).encode()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    ordinary, hostile = Page(page_with("a.mp4")), Page(page_with(text))
    tags = {element for element, _ in ordinary.elements}
    assert {element for element, _ in hostile.elements} <= tags
    assert "script" not in tags
    assert all(value.startswith("data:image/jpeg;base64,") for _, name, value in hostile.attributes if name == "src")


@pytest.mark.parametrize(("num_videos", "alarm"), [(0, None), (1, None), (2, None), (60, 41), (5_000, 4_321)])
def test_any_number_of_videos_can_be_drawn(num_videos: int, alarm: int | None) -> None:
    page = Page(page_with("a.mp4", num_videos=num_videos, alarm=alarm))
    assert "main" in {element for element, _ in page.elements}


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 390])
def test_nothing_overflows(tmp_path: Path, width: int) -> None:
    path = tmp_path / "page.html"
    path.write_bytes(page_with("a/very/long/" + "name" * 40 + ".mp4"))
    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
