"""The HTML page of a report: one file, nothing loaded from outside, no script."""

from base64 import b64encode
from datetime import UTC, datetime
from hashlib import sha256
from importlib.resources import files

from raypipe.report import sections
from raypipe.report.charts import Rate, rate_chart
from raypipe.report.markup import Html, join, tag
from raypipe.report.record import RunRecord
from raypipe.report.text import format_bytes, format_count, format_rate, format_seconds, format_share, plural, redact
from raypipe.report.timeline import Point

_CHARTS = (
    ("num_videos", "videos/s", 1, 920),
    ("num_frames", "frames/s", 1, 432),
    ("size_bytes", "MB/s read", 1e6, 432),
)
_NARROW = 340  # the width for a phone, in pixels: each chart is drawn twice, so that its labels keep their size


def page(record: RunRecord) -> str:
    """Return the report of ``record`` as one HTML document."""
    style = files("raypipe.report").joinpath("style.css").read_text(encoding="utf-8")
    style_hash = b64encode(sha256(style.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; style-src 'sha256-{style_hash}'; img-src data:; base-uri 'none'; form-action 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"raypipe {record.job}: {_headline(record)}"),
        tag("style", Html(style)),
    )
    body = tag(
        "body",
        _header(record),
        tag(
            "main",
            sections.troubles(record),
            _headline_numbers(record),
            _throughput(record),
            tag("div", sections.stages(record), sections.statuses(record), class_="pair"),
            sections.thumbnails(record),
            sections.failures(record),
            sections.slowest(record),
            sections.settings(record),
        ),
        _footer(record),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _headline(record: RunRecord) -> str:
    planned, done = record.num_planned_videos, record.num_done_videos
    if not planned:
        return "No videos were planned"
    if done and record.num_failed_videos == done:
        return f"{format_count(done)} of {format_count(planned)} videos ended, and every one failed"
    if done >= planned:
        return "The one planned video is done" if planned == 1 else f"All {format_count(planned)} videos are done"
    return f"{format_count(done)} of {format_count(planned)} videos are done"


def _header(record: RunRecord) -> Html:
    started = datetime.fromtimestamp(record.started_at, UTC)
    when = f"{started:%-d %B %Y, %H:%M} UTC, {format_seconds(record.elapsed_seconds)}"
    where = [tag("bdi", redact(uri), class_="uri") for uri in (record.input_uri, record.output_uri) if uri]
    route = tag("p", *_between(where, tag("span", " → ", class_="arrow")), class_="route") if where else Html("")
    return tag(
        "header",
        tag("p", f"raypipe {record.job}", tag("span", record.outcome, class_=f"pill {record.outcome}"), class_="brow"),
        tag("h1", _headline(record)),
        route,
        tag("p", when, class_="when"),
    )


def _between(items: list[Html], separator: Html) -> list[Html]:
    return [piece for item in items for piece in (separator, item)][1:]


def _headline_numbers(record: RunRecord) -> Html:
    videos, failed = record.num_videos, record.num_failed_videos
    resumed = f"and {format_count(record.num_resumed_videos)} before this run" if record.num_resumed_videos else ""
    tiles = [
        ("Videos", format_count(videos), resumed or f"in {plural(record.num_shards, 'shard')}"),
        ("Frames", format_count(record.num_frames), _per("frames per video", record.num_frames, videos - failed)),
        ("Failed", format_count(failed), f"{format_share(failed / videos)} of videos" if videos else ""),
        ("Wall time", format_seconds(record.elapsed_seconds), _slots(record)),
        ("Videos per second", format_rate(record.mean_rate(videos)), "mean over the run"),
        ("Frames per second", format_rate(record.mean_rate(record.num_frames)), "mean over the run"),
        ("Read", format_bytes(record.size_bytes), f"{format_bytes(record.mean_rate(record.size_bytes))}/s"),
        *_busy(record),
    ]
    return tag(
        "dl",
        *(
            tag(
                "div",
                tag("dt", name),
                tag("dd", number, class_="number"),
                tag("dd", note, class_="note"),
                class_="tile bad" if name == "Failed" and failed else "tile",
            )
            for name, number, note in tiles
        ),
        class_="tiles",
    )


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


def _footer(record: RunRecord) -> Html:
    version = record.versions.get("raypipe", "")
    return tag(
        "footer", join(f"raypipe {version}".strip(), " · the same numbers for programs are in summary.json beside this")
    )
