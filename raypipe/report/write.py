"""The two files of a report: ``summary.json`` for programs and ``report.html`` for people."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime

from raypipe.records import RunRecord
from raypipe.report.page import page
from raypipe.text import redact

FORMAT = 1


def write_report(record: RunRecord, put: Callable[[str, bytes], object]) -> None:
    """Give ``put`` the files ``summary.json`` and ``report.html``, one after the other, as (name, content)."""
    summary = json.dumps(summarize(record), indent=2, allow_nan=False)
    put("summary.json", f"{summary}\n".encode("ascii"))
    put("report.html", page(record).encode())


def summarize(record: RunRecord) -> dict[str, object]:
    """Return the content of ``summary.json``: numbers of this run only, but for planned, resumed, done and remaining.

    Always these keys, of which new ones may be added and none renamed without raising ``format``:

    - ``format`` (1), ``job``, ``command``, ``input_uri``, ``output_uri``, ``plans`` (list of int), ``fingerprint``
    - ``outcome`` (running, finished, failed, interrupted), ``message``, ``started_at`` and ``finished_at`` (UTC,
      ISO 8601; ``finished_at`` is null while running), ``elapsed_seconds`` (wall time)
    - ``num_planned_videos``, ``num_resumed_videos``, ``num_done_videos``, ``num_remaining_videos``
    - ``num_videos``, ``num_failed_videos``, ``num_frames``, ``size_bytes`` (video read), ``num_shards``
      (finished), ``num_already_committed_shards``, ``num_problems`` (attempts at a shard that failed, even where a
      later one finished it), ``statuses`` (status → videos), ``labels`` (of classify: best label → videos),
      ``flags`` (of embed: ``num_corrupt_videos``, ``num_corrupt_frames``, ``num_interlaced_videos``,
      ``num_repaired_timelines``; those that are 0 are left out)
    - ``videos_per_second``, ``frames_per_second``, ``bytes_per_second``: means over ``elapsed_seconds``
    - ``num_slots``, ``stage_seconds`` (stage → seconds of all slots together), ``idle_seconds`` (null: unknown)
    - ``timeline``: ``bucket_seconds`` and the lists ``num_shards``, ``num_videos``, ``num_failed``, ``num_frames``,
      ``size_bytes``, one entry per bucket from the start on
    - ``slowest_videos``, ``failures``: the first of them, as ``video_id``, ``status``, ``error``, ``seconds``
    - ``failure_kinds``: ``status``, ``kind``, ``num_videos`` of the failures that the shards named
    - ``problems`` (list of lines), ``settings``, ``versions``, ``machine``
    """
    finished_at = None if record.finished_at is None else utc(record.finished_at)
    return {
        "format": FORMAT,
        "job": record.job,
        "command": redact(record.command),
        "input_uri": redact(record.input_uri),
        "output_uri": redact(record.output_uri),
        "plans": list(record.plans),
        "fingerprint": record.fingerprint,
        "outcome": record.outcome,
        "message": record.message,
        "started_at": utc(record.started_at),
        "finished_at": finished_at,
        "elapsed_seconds": record.elapsed_seconds,
        **_counts(record),
        "timeline": _timeline(record),
        "slowest_videos": [asdict(note) for note in record.slowest],
        "failures": [asdict(note) for note in record.failures],
        "failure_kinds": [
            {"status": status, "kind": kind, "num_videos": count}
            for (status, kind), count in record.failure_kinds.most_common()
        ],
        "problems": record.problems,
        "settings": plain(record.settings),
        "versions": plain(record.versions),
        "machine": plain(record.machine),
    }


def _counts(record: RunRecord) -> dict[str, object]:
    return {
        "num_planned_videos": record.num_planned_videos,
        "num_resumed_videos": record.num_resumed_videos,
        "num_done_videos": record.num_done_videos,
        "num_remaining_videos": max(0, record.num_planned_videos - record.num_done_videos),
        "num_videos": record.num_videos,
        "num_failed_videos": record.num_failed_videos,
        "num_frames": record.num_frames,
        "size_bytes": record.size_bytes,
        "num_shards": record.num_shards,
        "num_already_committed_shards": record.num_already_committed_shards,
        "num_problems": record.num_problems,
        "statuses": dict(record.statuses.most_common()),
        "labels": dict(record.labels.most_common()),
        "flags": {name: count for name, count in sorted(record.flags.items()) if count},
        "videos_per_second": record.mean_rate(record.num_videos),
        "frames_per_second": record.mean_rate(record.num_frames),
        "bytes_per_second": record.mean_rate(record.size_bytes),
        "num_slots": record.num_slots,
        "stage_seconds": dict(record.stage_seconds),
        "idle_seconds": record.idle_seconds,
    }


def _timeline(record: RunRecord) -> dict[str, object]:
    buckets = record.timeline.buckets
    counters = ("num_shards", "num_videos", "num_failed", "num_frames", "size_bytes")
    lists = {counter: [getattr(bucket, counter) for bucket in buckets] for counter in counters}
    return {"bucket_seconds": record.timeline.bucket_seconds, **lists}


def utc(unix_seconds: float) -> str:
    """Return Unix time in ISO 8601, UTC."""
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="seconds")


def plain(value: object) -> object:
    """Return ``value`` as JSON can hold it: a report is never lost to an unusual setting."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return redact(str(value))
