"""The HTML page of a report: one file, nothing loaded from outside, no script."""

from raypipe.records import Point, RunRecord
from raypipe.report import document, sections
from raypipe.report.charts import Rate, rate_chart
from raypipe.report.markup import Html, tag
from raypipe.text import format_bytes, format_count, format_rate, format_seconds, format_share, plural

_CHARTS = (
    ("num_videos", "videos/s", 1, 920),
    ("num_frames", "frames/s", 1, 432),
    ("size_bytes", "MB/s read", 1e6, 432),
)
_NARROW = 340  # the width for a phone, in pixels: each chart is drawn twice, so that its labels keep their size


def page(record: RunRecord) -> str:
    """Return the report of ``record`` as one HTML document."""
    body = [
        document.header(
            job=record.job,
            outcome=record.outcome,
            headline=_headline(record),
            uris=(record.input_uri, record.output_uri),
            started_at=record.started_at,
            elapsed_seconds=record.elapsed_seconds,
        ),
        tag(
            "main",
            sections.troubles(record),
            _headline_numbers(record),
            _throughput(record),
            tag("div", sections.stages(record), sections.statuses(record), class_="pair"),
            sections.labels(record),
            sections.thumbnails(record),
            sections.failures(record),
            sections.slowest(record),
            sections.settings(record),
        ),
        document.footer(record.versions.get("raypipe", "")),
    ]
    return document.document(title=f"raypipe {record.job}: {_headline(record)}", body=body)


def _headline(record: RunRecord) -> str:
    planned, done = record.num_planned_videos, record.num_done_videos
    if not planned:
        return "No videos were planned"
    if done and record.num_failed_videos == done:
        return f"{format_count(done)} of {format_count(planned)} videos ended, and every one failed"
    if done >= planned:
        return "The one planned video is done" if planned == 1 else f"All {format_count(planned)} videos are done"
    return f"{format_count(done)} of {format_count(planned)} videos are done"


def _headline_numbers(record: RunRecord) -> Html:
    videos, tried, failed = record.num_videos, record.num_tried_videos, record.num_failed_videos
    resumed = f"and {format_count(record.num_resumed_videos)} before this run" if record.num_resumed_videos else ""
    numbers = [
        ("Videos", format_count(videos), resumed or f"in {plural(record.num_shards, 'shard')}"),
        ("Frames", format_count(record.num_frames), _per("frames per video", record.num_frames, tried - failed)),
        ("Failed", format_count(failed), f"{format_share(failed / tried)} of videos" if tried else ""),
        ("Wall time", format_seconds(record.elapsed_seconds), _slots(record)),
        ("Videos per second", format_rate(record.mean_rate(videos)), "mean over the run"),
        ("Frames per second", format_rate(record.mean_rate(record.num_frames)), "mean over the run"),
        ("Read", format_bytes(record.size_bytes), f"{format_bytes(record.mean_rate(record.size_bytes))}/s"),
        *_busy(record),
    ]
    return document.tiles(numbers, bad={"Failed"} if failed else ())


def _per(unit: str, total: int, count: int) -> str:
    return f"{format_rate(total / count)} {unit}" if count else ""


def _busy(record: RunRecord) -> list[tuple[str, str, str]]:
    slot_seconds = record.num_slots * record.elapsed_seconds
    if record.idle_seconds is None or not slot_seconds:
        return []
    return [("Busy", format_share(1 - record.idle_seconds / slot_seconds), "of the slots' time")]


def _slots(record: RunRecord) -> str:
    return f"on {plural(record.num_slots, 'slot')}" if record.num_slots else ""


def _throughput(record: RunRecord) -> Html:
    if not record.num_videos:
        return Html("")
    points = list(record.timeline.points(record.elapsed_seconds))
    first, *others = [
        _chart(points, counter=counter, unit=unit, scale=scale, width=width)
        for counter, unit, scale, width in _CHARTS
        if sum(getattr(point.work, counter) for point in points)
    ]
    note = f"Time since the start. Each step is {format_seconds(points[0].width_seconds)} of finished shards."
    return sections.section("Throughput", first, tag("div", *others, class_="pair"), note=note)


def _chart(points: list[Point], *, counter: str, unit: str, scale: float, width: int) -> Html:
    amounts = [getattr(point.work, counter) / scale for point in points]
    rates = [
        Rate(point.start_seconds, point.end_seconds, amount / point.width_seconds)
        for point, amount in zip(points, amounts, strict=True)
    ]
    mean = sum(amounts) / points[-1].end_seconds
    return tag(
        "div",
        tag("div", rate_chart(rates, mean=mean, unit=unit, width=width, height=190), class_="wide"),
        tag("div", rate_chart(rates, mean=mean, unit=unit, width=_NARROW, height=170), class_="narrow"),
    )
