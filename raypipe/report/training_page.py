"""The two files of a training's report: ``summary.json`` for programs and ``report.html`` for people."""

import json
from collections.abc import Callable

from raypipe.records import EpochMetrics, TrainingRecord
from raypipe.report import document, training_curves, training_sections
from raypipe.report.markup import tag
from raypipe.report.training_summary import summarize_training
from raypipe.report.training_text import (
    format_parameters,
    format_speed,
    headline,
    left_out,
    measured,
    most_common_label,
    selected_name,
    title,
)
from raypipe.text import finite, format_count, format_seconds, format_share, plural, shorten

_STYLES = ("style.css", "training.css")
_LABEL_CHARS = 24


def write_training_report(record: TrainingRecord, put: Callable[[str, bytes], object]) -> None:
    """Give ``put`` the files ``summary.json`` and ``report.html``, one after the other, as (name, content)."""
    summary = json.dumps(summarize_training(record), indent=2, allow_nan=False)
    put("summary.json", f"{summary}\n".encode("ascii"))
    put("report.html", training_page(record).encode())


def training_page(record: TrainingRecord) -> str:
    """Return the report of ``record`` as one HTML document."""
    body = [
        document.header(
            job="train",
            outcome=record.outcome,
            headline=headline(record),
            uris=(record.embeddings_uri, record.output_uri),
            started_at=record.started_at,
            elapsed_seconds=record.elapsed_seconds,
        ),
        tag(
            "main",
            training_sections.troubles(record),
            document.tiles(_tiles(record), bad={"Left out"}),
            training_curves.curves(record),
            training_sections.confusion(record),
            training_sections.mistakes(record),
            training_sections.classes(record),
            training_sections.trials(record),
            training_sections.settings(record),
        ),
        document.footer(record.versions.get("raypipe", "")),
    ]
    return document.document(title=f"raypipe train: {headline(record)}", body=body, styles=_STYLES)


def _tiles(record: TrainingRecord) -> list[tuple[str, str, str]]:
    kept = record.kept
    numbers = [] if kept is None else _scores(record, kept)
    held_out = (
        f"and {format_count(record.num_validation_videos)} for validation" if record.num_validation_videos else ""
    )
    numbers.append(("Training videos", format_count(record.num_train_videos), held_out))
    if record.objective == "classify":
        each = "a video may have several" if record.several_labels else "one for each video"
        numbers.append(("Labels", format_count(len(record.label_names)), each))
    missing = record.num_unknown_labels + record.num_without_frames
    if missing:
        numbers.append(("Left out", format_count(missing), left_out(record)))
    if record.num_parameters:
        numbers.append(("Parameters", format_parameters(record.num_parameters), _trained(record)))
    if kept is not None:
        rates = [finite(metrics.samples_per_second) for metrics in record.epochs]
        numbers.append(("Samples per second", format_speed(sorted(rates)[len(rates) // 2]), "median of the epochs"))
    restarts = f", {plural(record.num_restarts, 'restart')}" if record.num_restarts else ""
    workers = f"on {plural(record.num_workers, 'worker')}{restarts}"
    numbers.append(("Wall time", format_seconds(record.elapsed_seconds), workers))
    return numbers


def _scores(record: TrainingRecord, kept: EpochMetrics) -> list[tuple[str, str, str]]:
    notes = {"macro-F1": "mean over the labels"}
    common = most_common_label(record)
    if common is not None:
        label, share = common
        notes["accuracy"] = f"{format_share(share)} by always saying {shorten(label, max_chars=_LABEL_CHARS)}"
    if record.several_labels:
        notes["accuracy"] = "videos with every label right"
    numbers = [(title(name), number, notes.get(name, "")) for name, number in measured(record, kept)]
    last = record.epochs[-1].epoch
    chosen = f"the best {selected_name(record)}" if record.best_epoch is not None else "the last one"
    return [*numbers, ("Kept epoch", f"{kept.epoch} of {last}" if last > 1 else f"{kept.epoch}", chosen)]


def _trained(record: TrainingRecord) -> str:
    if record.num_trainable_parameters == record.num_parameters:
        return "all trained"
    return f"{format_parameters(record.num_trainable_parameters)} trained"
