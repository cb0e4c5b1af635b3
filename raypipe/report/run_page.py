"""The HTML page of a run."""

from raypipe.records import Point, RunRecord
from raypipe.report.charts import HALF, NARROW, WIDE, Chart, rate_chart
from raypipe.report.templating import Tile, render_page
from raypipe.status import NOT_FAILED
from raypipe.text import flag_texts, format_bytes, format_count, format_rate, format_seconds, format_share, plural

_CHARTS = (
    ("num_videos", "videos/s", 1, WIDE),
    ("num_frames", "frames/s", 1, HALF),
    ("size_bytes", "MB/s read", 1e6, HALF),
)
_STAGES = ("fetch", "read", "decode", "embed", "classify", "put")
_SHADES = 6
_MAX_LABELS = 20


def run_page(record: RunRecord) -> str:
    """Return the report of a run as one HTML document."""
    statuses = sorted(record.statuses.items(), key=lambda item: (item[0] not in NOT_FAILED, -item[1]))
    labels = record.labels.most_common(_MAX_LABELS)
    points = list(record.timeline.points(record.elapsed_seconds))
    return render_page(
        "run.html",
        record,
        job=record.job,
        headline=_headline(record),
        uris=(record.input_uri, record.output_uri),
        tiles=_tiles(record),
        bad_tile="Failed" if record.num_failed_videos else "",
        run={"fingerprint": record.fingerprint, "plans": ", ".join(map(str, record.plans))},
        throughput=_throughput(points),
        step_seconds=points[0].width_seconds,
        stages=_stages(record),
        statuses=[(status, count, "shade0" if status in NOT_FAILED else "failed") for status, count in statuses],
        flags=flag_texts(record.flags),
        labels=[(label, count, "shade0") for label, count in labels],
        num_other_labels=len(record.labels) - len(labels),
        failures_note=_failures_note(record),
    )


def _headline(record: RunRecord) -> str:
    planned, done = record.num_planned_videos, record.num_done_videos
    if not planned:
        return "No videos were planned"
    if done and record.num_failed_videos == done:
        return f"{format_count(done)} of {format_count(planned)} videos are done, and all of them failed"
    if done >= planned:
        return "The one planned video is done" if planned == 1 else f"All {format_count(planned)} videos are done"
    return f"{format_count(done)} of {format_count(planned)} videos are done"


def _tiles(record: RunRecord) -> list[Tile]:
    """Return (name, number, note) of the large numbers at the top."""
    videos, frames = record.num_videos, record.num_frames
    tried, failed = record.num_tried_videos, record.num_failed_videos
    before = f"and {format_count(record.num_resumed_videos)} before this run" if record.num_resumed_videos else ""
    per_video = f"{format_rate(frames / (tried - failed))} frames per video" if tried > failed else ""
    slots = f"on {plural(record.num_slots, 'slot')}" if record.num_slots else ""
    tiles = [
        ("Videos", format_count(videos), before or f"in {plural(record.num_shards, 'shard')}"),
        ("Frames", format_count(frames), per_video),
        ("Failed", format_count(failed), f"{format_share(record.failed_fraction)} of videos" if tried else ""),
        ("Wall time", format_seconds(record.elapsed_seconds), slots),
        ("Videos per second", format_rate(record.mean_rate(videos)), "mean over the run"),
        ("Frames per second", format_rate(record.mean_rate(frames)), "mean over the run"),
        ("Read", format_bytes(record.size_bytes), f"{format_bytes(record.mean_rate(record.size_bytes))}/s"),
    ]
    slot_seconds = record.num_slots * record.elapsed_seconds
    if record.idle_seconds is not None and slot_seconds:
        tiles.append(("Busy", format_share(1 - record.idle_seconds / slot_seconds), "of slot time"))
    return tiles


def _throughput(points: list[Point]) -> list[list[list[Chart]]]:
    """Return rows of charts, each for a desktop and for a phone."""
    charts = []
    for counter, unit, scale, width in _CHARTS:
        amounts = [getattr(point.work, counter) / scale for point in points]
        if any(amounts):
            sizes = ((width, 190), (NARROW, 170))
            charts.append([rate_chart(points, amounts, unit=unit, width=w, height=h) for w, h in sizes])
    return [row for row in (charts[:1], charts[1:]) if row]


def _stages(record: RunRecord) -> list[tuple[str, float, str]]:
    """Return (name, seconds of all slots, class) of each stage and of the rest of the slots' time."""
    if not any(record.stage_seconds.values()):
        return []
    names = [stage for stage in _STAGES if stage in record.stage_seconds]
    names += sorted(stage for stage in record.stage_seconds if stage not in _STAGES)
    stages = [
        (stage, record.stage_seconds[stage], f"shade{min(index, _SHADES - 1)}") for index, stage in enumerate(names)
    ]
    idle = record.idle_seconds
    return stages if idle is None else [*stages, ("idle or other", idle, "idle")]


def _failures_note(record: RunRecord) -> str:
    named, failed = record.failure_kinds.total(), record.num_failed_videos
    if named < failed:
        return f"{format_count(named)} of {format_count(failed)} failures by cause. Each shard lists its first few."
    return f"{plural(named, 'failure')} by cause."
