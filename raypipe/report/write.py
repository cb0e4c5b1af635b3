"""The two files of a report: ``summary.json`` for programs and ``report.html`` for people."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime

from raypipe import records, text
from raypipe.records import MAX_MISTAKES, Point, RunRecord, TrainingRecord, confused_pairs
from raypipe.report.charts import HALF, NARROW, WIDE, Chart, rate_chart
from raypipe.report.templating import Tile, render_page
from raypipe.report.training_page import training_page
from raypipe.status import NOT_FAILED_IN_ANY_JOB

_CHARTS = (
    ("num_videos", "{noun}s/s", 1, WIDE),
    ("num_frames", "frames/s", 1, HALF),
    ("size_bytes", "MB/s read", 1e6, HALF),
)
_STAGES = ("fetch", "read", "decode", "embed", "classify", "recommend", "put")
_SHADES = 6
_MAX_LABELS = 20
FORMAT = 1
_MAX_CONFUSION_LABELS = 100
_MAX_PAIRS = 100


def run_page(record: RunRecord) -> str:
    """Return the report of a run as one HTML document."""
    statuses = [(status, count, status not in NOT_FAILED_IN_ANY_JOB) for status, count in record.statuses.items()]
    statuses.sort(key=lambda item: (item[2], -item[1]))
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
        run={
            "fingerprint": record.fingerprint,
            "plans": ", ".join(map(str, record.plans)),
            "skipped_files": text.format_skipped(record.skipped),
        },
        throughput=_throughput(points, record.noun),
        step_seconds=points[0].width_seconds,
        stages=_stages(record),
        statuses=[(status, count, "failed" if is_failed else "shade0") for status, count, is_failed in statuses],
        flags=text.flag_texts(record.flags),
        labels=[(label, count, "shade0") for label, count in labels],
        num_other_labels=len(record.labels) - len(labels),
        failures_note=_failures_note(record),
    )


def _headline(record: RunRecord) -> str:
    planned, done, noun = record.num_planned_videos, record.num_done_videos, record.noun
    if not planned:
        return f"No {noun}s were planned"
    everything = text.format_count(planned)
    some = f"{text.format_count(done)} of {everything} {noun}s are done"
    if done and record.num_failed_videos == done:
        return f"{some}, and all of them failed"
    if done < planned:
        return some
    return f"The one planned {noun} is done" if planned == 1 else f"All {everything} {noun}s are done"


def _tiles(record: RunRecord) -> list[Tile]:
    """Return the tiles at the top of the page, as (name, number, note)."""
    videos, frames = record.num_videos, record.num_frames
    tried, failed = record.num_tried_videos, record.num_failed_videos
    before = f"and {text.format_count(record.num_resumed_videos)} before this run" if record.num_resumed_videos else ""
    per_video = f"{text.format_rate(frames / (tried - failed))} frames per video" if tried > failed else ""
    nouns = f"{record.noun.capitalize()}s"
    failed_share = f"{text.format_share(record.failed_fraction)} of {nouns.lower()}" if tried else ""
    slots = f"on {text.plural(record.num_slots, 'slot')}" if record.num_slots else ""
    tiles = [
        (nouns, text.format_count(videos), before or f"in {text.plural(record.num_shards, 'shard')}"),
        ("Frames", text.format_count(frames), per_video),
        ("Failed", text.format_count(failed), failed_share),
        ("Wall time", text.format_seconds(record.elapsed_seconds), slots),
        (f"{nouns} per second", text.format_rate(record.mean_rate(videos)), "mean over the run"),
        ("Frames per second", text.format_rate(record.mean_rate(frames)), "mean over the run"),
        ("Read", text.format_bytes(record.size_bytes), f"{text.format_bytes(record.mean_rate(record.size_bytes))}/s"),
    ]
    if record.noun != "video":
        tiles = [tile for tile in tiles if not tile[0].startswith(("Frames", "Read"))]
    slot_seconds = record.num_slots * record.elapsed_seconds
    if record.idle_seconds is not None and slot_seconds:
        tiles.append(("Busy", text.format_share(1 - record.idle_seconds / slot_seconds), "of slot time"))
    return tiles


def _throughput(points: list[Point], noun: str) -> list[list[list[Chart]]]:
    """Return rows of charts. Each chart is a list of two versions: one for desktops and one for phones."""
    charts = []
    for counter, unit, scale, width in _CHARTS:
        amounts = [getattr(point.work, counter) / scale for point in points]
        if any(amounts):
            sizes, name = ((width, 190), (NARROW, 170)), unit.format(noun=noun)
            charts.append([rate_chart(points, amounts, unit=name, width=w, height=h) for w, h in sizes])
    return [row for row in (charts[:1], charts[1:]) if row]


def _stages(record: RunRecord) -> list[tuple[str, float, str]]:
    """Return (name, seconds over all slots, CSS class) for each stage and for the remaining slot time."""
    if not any(record.stage_seconds.values()):
        return []
    seconds = record.stage_seconds
    names = [stage for stage in _STAGES if stage in seconds] + sorted(seconds.keys() - set(_STAGES))
    stages = [(stage, seconds[stage], f"shade{min(index, _SHADES - 1)}") for index, stage in enumerate(names)]
    idle = record.idle_seconds
    return stages if idle is None else [*stages, ("idle or other", idle, "idle")]


def _failures_note(record: RunRecord) -> str:
    named, failed = record.failure_kinds.total(), record.num_failed_videos
    if named >= failed:
        return f"{text.plural(named, 'failure')} by cause."
    return f"{named:,} of {failed:,} failures by cause. Each shard lists its first few."


def write_report(record: RunRecord, put: Callable[[str, bytes], object]) -> None:
    """Write the report of a run: call ``put(name, content)`` for ``summary.json``, then for ``report.html``."""
    _write(summarize(record), run_page(record), put)


def write_training_report(record: TrainingRecord, put: Callable[[str, bytes], object]) -> None:
    """Write the report of a training: call ``put(name, content)`` for ``summary.json``, then for ``report.html``."""
    _write(summarize_training(record), training_page(record), put)


def _write(summary: Mapping[str, object], page: str, put: Callable[[str, bytes], object]) -> None:
    put("summary.json", f"{json.dumps(summary, indent=2, allow_nan=False)}\n".encode("ascii"))
    put("report.html", page.encode())


def summarize(record: RunRecord) -> dict[str, object]:
    """Return the content of a run's ``summary.json``.

    All numbers are about this run only, except the planned, resumed, done and remaining videos. The content always has
    the following keys. New keys may be added, but renaming a key requires a higher ``format``.

    - ``format`` (1), ``job``, ``command``, ``input_uri``, ``output_uri``, ``plans`` (list of int), ``fingerprint``
    - ``outcome`` (running, finished, failed, interrupted), ``message``, ``started_at`` and ``finished_at`` (UTC,
      ISO 8601; ``finished_at`` is null while running), ``elapsed_seconds`` (wall time)
    - ``num_planned_videos``, ``num_resumed_videos``, ``num_done_videos``, ``num_remaining_videos``
    - ``skipped`` (embed: files of the input that are not taken for videos, by extension or ``hidden``)
    - ``num_videos``, ``num_failed_videos``, ``num_frames``, ``size_bytes`` (video read), ``num_shards``
      (finished), ``num_already_committed_shards``, ``num_problems`` (failed attempts at a shard, even if a later
      attempt succeeded), ``statuses`` (status → videos), ``labels`` (classify: best label → videos),
      ``flags`` (embed: ``num_corrupt_videos``, ``num_corrupt_frames``, ``num_interlaced_videos``,
      ``num_repaired_timelines``; a flag that is 0 is left out)
    - ``videos_per_second``, ``frames_per_second``, ``bytes_per_second``: means over ``elapsed_seconds``
    - ``num_slots``, ``stage_seconds`` (stage → total seconds of all slots), ``idle_seconds`` (null if unknown)
    - ``timeline``: ``bucket_seconds`` and the lists ``num_shards``, ``num_videos``, ``num_failed``, ``num_frames``,
      ``size_bytes``, with one entry per bucket, starting at the start of the run
    - ``slowest_videos``, ``failures``: the first few, each with ``video_id``, ``status``, ``error``, ``seconds``
    - ``failure_kinds``: each with ``status``, ``kind``, ``num_videos``; counts only failures that shards listed
    - ``problems`` (list of lines), ``settings``, ``versions``, ``machine``
    """
    counters = ("num_shards", "num_videos", "num_failed", "num_frames", "size_bytes")
    buckets = record.timeline.buckets
    return {
        "format": FORMAT,
        **_named(record, "job", "command", "input_uri", "output_uri", "plans", "fingerprint", "outcome", "message"),
        **_times(record),
        **_named(record, "num_planned_videos", "num_resumed_videos", "num_done_videos"),
        "num_remaining_videos": max(0, record.num_planned_videos - record.num_done_videos),
        "skipped": dict(record.skipped),
        **_named(record, "num_videos", "num_failed_videos", "num_frames", "size_bytes", "num_shards"),
        **_named(record, "num_already_committed_shards", "num_problems"),
        "statuses": dict(record.statuses.most_common()),
        "labels": dict(record.labels.most_common()),
        "flags": {name: count for name, count in sorted(record.flags.items()) if count},
        "videos_per_second": record.mean_rate(record.num_videos),
        "frames_per_second": record.mean_rate(record.num_frames),
        "bytes_per_second": record.mean_rate(record.size_bytes),
        **_named(record, "num_slots", "stage_seconds", "idle_seconds"),
        "timeline": {
            "bucket_seconds": record.timeline.bucket_seconds,
            **{counter: [getattr(bucket, counter) for bucket in buckets] for counter in counters},
        },
        "slowest_videos": [asdict(note) for note in record.slowest],
        "failures": [asdict(note) for note in record.failures],
        "failure_kinds": [
            {"status": status, "kind": kind, "num_videos": count}
            for (status, kind), count in record.failure_kinds.most_common()
        ],
        **_named(record, "problems", "settings", "versions", "machine"),
    }


def summarize_training(record: TrainingRecord) -> dict[str, object]:
    """Return the content of a training's ``summary.json``.

    The content always has the following keys. New keys may be added, but renaming a key requires a higher ``format``.

    - ``format`` (1), ``job`` (train), ``objective``, ``problem_type``, ``command``, ``embeddings_uri``,
      ``labels_uri``, ``index_uri``, ``history_uri``, ``output_uri``, ``model_uri``
    - ``outcome`` (running, finished, failed, interrupted), ``message``, ``started_at`` and ``finished_at`` (UTC,
      ISO 8601; ``finished_at`` is null while running), ``elapsed_seconds``
    - ``num_labels``, ``label_names``, ``num_train_videos``, ``num_validation_videos``, ``num_unknown_labels`` (videos
      with a label but without embeddings), ``num_without_frames``, ``num_parameters``, ``num_trainable_parameters``,
      ``num_workers``, ``num_restarts``
    - ``history_facts`` (next_video: the content of the model's ``training.json``), ``history_counts`` (events that were
      left out, by reason), ``is_refitted``
    - ``self_training`` (self_train, else null): ``num_unlabelled`` videos had no label, ``num_given`` of them were
      given one by the model ``teacher``, whose ``accuracy`` on labelled videos was measured without their labels
    - ``epochs``: each with ``epoch``, ``step``, ``train_loss``, ``validation_loss``, ``accuracy``, ``top5_accuracy``,
      ``macro_f1``, ``probe_gain``, ``probe_gain_error``, ``hr_at_10``, ``ndcg_at_10``, ``coverage_at_10``,
      ``learning_rate``, ``samples_per_second``, ``seconds``. Values that were not measured, NaN and infinity are null
    - ``best_epoch``, ``selected_by``, ``metrics`` (of the kept epoch; null if no epoch has ended)
    - ``confusion``: rows are true labels, columns are predicted labels; null for a multi-label model, or for more than
      100 labels
    - ``confused_pairs``: at most 100, each with ``label``, ``predicted``, ``num_videos``
    - ``classes``: each with ``label``, ``support``, ``predicted``, ``precision``, ``recall``, ``f1``
    - ``mistakes``: each with ``video_id``, ``label``, ``predicted``, ``score``, ``label_score``
    - ``peers``: the models of the comparison on the validation videos, each with ``name``, ``accuracy``, ``log_loss``,
      ``calibration_error``, and ``difference``, ``difference_low``, ``difference_high``: the trained model's accuracy
      minus this one's, with a paired 95 % interval. ``advice`` says in one sentence which model to trust
    - ``deletion``: what happens to the probability of the predicted label when frames are removed: ``fractions`` of the
      frames, ``by_score`` and ``at_random``, ``difference`` with ``difference_low`` and ``difference_high``, the area
      between both, and ``num_videos``. Null if it was not measured
    - ``trials``: each with ``name``, ``settings``, ``outcome``, ``best_epoch``, ``metrics``, ``is_best``
    - ``settings``, ``versions``, ``machine``
    """
    is_small = record.confusion is not None and len(record.confusion) <= _MAX_CONFUSION_LABELS
    pairs, best_trial = confused_pairs(record)[:_MAX_PAIRS], record.best_trial
    return {
        "format": FORMAT,
        "job": "train",
        **_named(record, "objective", "problem_type", "command", "embeddings_uri", "labels_uri"),
        **_named(record, "index_uri", "history_uri", "output_uri"),
        **_named(record, "model_uri", "outcome", "message"),
        **_times(record),
        "num_labels": len(record.label_names),
        "label_names": list(record.label_names),
        **_named(record, "num_train_videos", "num_validation_videos", "num_unknown_labels", "num_without_frames"),
        **_named(record, "num_parameters", "num_trainable_parameters", "num_workers", "num_restarts"),
        **_named(record, "history_facts", "history_counts", "is_refitted"),
        "self_training": None if record.self_training is None else asdict(record.self_training),
        "epochs": [_numbers(metrics) for metrics in record.epochs],
        **_named(record, "best_epoch", "selected_by"),
        "metrics": _numbers(record.kept),
        "confusion": [list(map(int, row)) for row in record.confusion or ()] if is_small else None,
        "confused_pairs": [
            {"label": label, "predicted": predicted, "num_videos": int(count)} for label, predicted, count, _ in pairs
        ],
        "classes": [_numbers(metrics) for metrics in record.classes],
        "mistakes": [_numbers(mistake) for mistake in record.mistakes[:MAX_MISTAKES]],
        "peers": [_numbers(metrics) for metrics in record.peers],
        "advice": record.advice,
        "deletion": None if record.deletion is None else asdict(record.deletion),
        "trials": [
            {
                **_named(trial, "name", "settings", "outcome", "best_epoch"),
                "metrics": _numbers(trial.metrics),
                "is_best": trial is best_trial,
            }
            for trial in record.trials
        ],
        **_named(record, "settings", "versions", "machine"),
    }


def _named(record: object, *names: str) -> dict[str, object]:
    return {name: _plain(getattr(record, name)) for name in names}


def _times(record: RunRecord | TrainingRecord) -> dict[str, object]:
    return {
        "started_at": _utc(record.started_at),
        "finished_at": None if record.finished_at is None else _utc(record.finished_at),
        "elapsed_seconds": record.elapsed_seconds,
    }


def _utc(unix_seconds: float) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="seconds")


def _numbers(
    row: records.EpochMetrics | records.ClassMetrics | records.Mistake | records.PeerMetrics | None,
) -> dict[str, object] | None:
    """Return the fields of a row without its thumbnail. NaN and infinity, which JSON lacks, become None."""
    if row is None:
        return None
    values = {name: value for name, value in asdict(row).items() if name != "thumbnail"}
    nan = {name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)}
    return {name: None if name in nan else value for name, value in values.items()}


def _plain(value: object) -> object:
    """Convert ``value`` to types that JSON supports, so that an unusual setting never prevents a report."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return text.redact(str(value))
