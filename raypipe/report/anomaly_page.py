"""The page of anomalies: the strangest videos, when they are strange, and the drift of all videos over time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raypipe.records import AnomalyRecord, StrangeVideo, is_thumbnail
from raypipe.report.charts import NARROW, WIDE, Chart, Series, epoch_chart, thinned
from raypipe.report.templating import Tile, render_page
from raypipe.text import format_count, format_score, plural

_SPARK_WIDTH, _SPARK_HEIGHT = 100.0, 24.0


@dataclass(frozen=True, slots=True)
class Spark:
    """The scores of a video's frames as bars, each as (x, y, width, height, whether it is the strangest)."""

    bars: Sequence[tuple[float, float, float, float, bool]]


def anomaly_page(record: AnomalyRecord) -> str:
    """Return the report of anomalies as one HTML document."""
    metrics = record.metrics
    return render_page(
        "anomalies.html",
        record,
        job="anomalies",
        headline=_headline(metrics),
        uris=(record.embeddings_uri, record.index_uri),
        tiles=_tiles(metrics),
        bad_tile="Drift" if metrics["drift"]["alarm"] is not None else "",
        run={"index_version": metrics["index_version"]},
        limits=limits(metrics),
        videos=[(video, _when(video), _spark(video)) for video in record.videos],
        rate=f"{metrics['false_discovery_rate']:.0%}",
        p_text=_p_text,
        is_thumbnail=is_thumbnail,
        drift=metrics["drift"],
        drift_text=drift_text(metrics),
        charts=[[[_drift_chart(record, width=width) for width in (WIDE, NARROW)]]] if len(record.cusum) > 1 else [],
        numbers_file="anomalies.json",
    )


def limits(metrics: Mapping[str, Any]) -> str:
    """Return a sentence about what the catalogue is too small for. It is empty if it is large enough."""
    fewest, size, count = (metrics[name] for name in ("fewest_discoveries", "num_videos", "num_calibration_videos"))
    if fewest is None or fewest <= 1:
        return ""
    said = (
        f"The smallest possible p-value is 1/{count + 1:,}, because {plural(count, 'catalogue video')} were compared."
    )
    rate = f"{metrics['false_discovery_rate']:.0%}"
    if fewest > size:
        return f"{said} With {plural(size, 'new video')}, no video can be marked at a rate of {rate}."
    return (
        f"{said} With {plural(size, 'new video')}, a video can only be marked at a rate of {rate} if {fewest:,} "
        "videos have that p-value."
    )


def drift_text(metrics: Mapping[str, Any]) -> str:
    """Return a sentence about the drift."""
    drift = metrics["drift"]
    if drift["alarm"] is None:
        return "The videos as a whole are no stranger than the catalogue."
    return (
        f"Since video {drift['since_place'] + 1:,} ({drift['since']}), the videos as a whole are stranger than the "
        f"catalogue; noticed at video {drift['alarm_place'] + 1:,} ({drift['alarm']})."
    )


def _headline(metrics: Mapping[str, Any]) -> str:
    found, size = metrics["num_anomalies"], metrics["num_videos"]
    if not size:
        return "No video was scored"
    drifts = ", but as a whole they differ from it" if metrics["drift"]["alarm"] is not None else ""
    if not found:
        return f"None of {plural(size, 'new video')} is marked as unlike the catalogue{drifts}"
    return f"{format_count(found)} of {plural(size, 'new video')} {'is' if found == 1 else 'are'} unlike the catalogue"


def _tiles(metrics: Mapping[str, Any]) -> list[Tile]:
    drift = metrics["drift"]
    since = "none" if drift["alarm"] is None else f"video {drift['since_place'] + 1:,}"
    unscored = metrics.get("num_unscored", 0)
    known = f"{metrics['num_already_in_index']:,} more are in the catalogue"
    return [
        ("New videos", format_count(metrics["num_videos"]), known),
        ("Anomalies", format_count(metrics["num_anomalies"]), f"at a rate of {metrics['false_discovery_rate']:.0%}"),
        ("Drift", since, "since this one" if drift["alarm"] is not None else "in the order of the videos"),
        (
            "Catalogue",
            format_count(metrics["num_catalogue_videos"]),
            f"{format_count(metrics['num_calibration_videos'])} of them compared",
        ),
        *([("Without scores", format_count(unscored), "no frames, or a zero embedding")] if unscored else []),
    ]


def _p_text(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-4 else f"{value:.1e}"  # noqa: PLR2004 - what four digits can say


def _when(video: StrangeVideo) -> str:
    return "" if video.strangest_seconds is None else f"at {video.strangest_seconds:.1f} s"


def _spark(video: StrangeVideo) -> Spark | None:
    scores = [score for score in video.frame_scores if score is not None]
    if len(scores) < 2:  # noqa: PLR2004 - one frame has no moments
        return None
    low, high = min(scores), max(scores)
    width = _SPARK_WIDTH / len(scores)
    bars = []
    for at, score in enumerate(scores):
        height = _SPARK_HEIGHT * (0.1 + 0.9 * ((score - low) / (high - low) if high > low else 1.0))
        bars.append((at * width, _SPARK_HEIGHT - height, 0.8 * width, height, score == high))
    return Spark(bars)


def _drift_chart(record: AnomalyRecord, *, width: int) -> Chart:
    drift = record.metrics["drift"]
    alarm = drift["alarm_place"]
    drawn = thinned(len(record.cusum), alarm)
    since = drift["since_place"]
    if since is not None and since not in drawn:
        drawn = sorted([*drawn, since])
    series = [
        Series("sum", "main", [float(record.cusum[at]) for at in drawn]),
        Series("threshold", "other", [float(drift["threshold"])] * len(drawn)),
    ]
    return epoch_chart(
        [at + 1 for at in drawn],
        series,
        title="Cumulative strangeness",
        marked=None if since is None else since + 1,
        show=format_score,
        noun="video",
        width=width,
        height=220,
    )
