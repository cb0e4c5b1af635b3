"""The tables that jobs print: a summary at the end of a run, and the epochs of a training."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from raypipe import text
from raypipe.records import EPOCH_METRICS, EpochMetrics, RunRecord, TrainingRecord
from raypipe.status import Status

_SHORT_NAMES = {"train_loss": "train loss", "validation_loss": "val loss", "top5_accuracy": "top-5"}
_MAX_EPOCHS = 8
_MAX_LABELS = 8
_OUTCOME_STYLES = {"finished": "green", "failed": "red", "interrupted": "yellow", "running": "cyan"}
_POPULAR = "popular"  # a status in recommend: the recommendations are based on popularity instead of the history
_STATUS_STYLES: dict[str, str] = {Status.OK: "green", Status.PARTIAL: "yellow", Status.GONE: "dim", _POPULAR: "yellow"}
_ANSWERS = {"ok": "by their history", _POPULAR: "by popularity", "error": "with an error instead of an answer"}


@dataclass(frozen=True)
class Flow:
    """Pieces of text side by side, on as many lines as needed. No piece is split, and empty ones leave no gap."""

    pieces: Sequence[Text]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines, filled up to the available width."""
        line = Text()
        for piece in self.pieces:
            if line.plain and piece.plain and line.cell_len + 2 + piece.cell_len > options.max_width:
                yield line
                line = Text()
            if piece.plain:
                line = Text("  ").join([line, piece]) if line.plain else piece.copy()
        if line.plain:
            yield line

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return the possible widths: at least the longest piece, at most all pieces on one line."""
        widths = [piece.cell_len for piece in self.pieces]
        return Measurement(max(widths, default=0), min(sum(widths) + 2 * len(widths), options.max_width))


def summary_table(rows: Iterable[Sequence[str | Text | Flow]]) -> Padding:
    """Return a table without borders. Each row is a name followed by values. Rows without a value are left out.

    Strings may be untrusted: their markup is ignored, and control characters and passwords in them are hidden. ``Text``
    values are shown unchanged.
    """
    table = Table.grid(padding=(0, 3, 0, 0))
    for name, *values in rows:
        if any(value.pieces if isinstance(value, Flow) else value for value in values):
            cells = (_text(value) if isinstance(value, str) else value for value in values)
            table.add_row(Text(str(name), style="dim", no_wrap=True), *cells)
    for column in table.columns:
        column.overflow = "fold"
    return Padding(table, (1, 0), expand=False)


def final_table(record: RunRecord, *, report_uri: str = "") -> Padding:
    """Return the table that is printed at the end of a batch run: outcome, counts, speed, output and report."""
    before = f"  {text.format_count(record.num_resumed_videos)} before this run" if record.num_resumed_videos else ""
    left = record.num_planned_videos - record.num_done_videos
    rates = format_rates(record, record.mean_rate(record.num_videos), record.mean_rate(record.num_frames))
    num_frames, size = text.format_count(record.num_frames), text.format_bytes(record.size_bytes)
    return summary_table(
        [
            *_outcome(record),
            (unit_of(record), f"{text.format_count(record.num_videos)}{before}"),
            ("left", f"{text.format_count(left)}  the same command continues with them" if left > 0 else ""),
            ("statuses", Flow(status_texts(record))),
            ("skipped files", text.format_skipped(record.skipped)),
            ("noticed", _text(", ".join(text.flag_texts(record.flags)), "yellow")),
            ("failed attempts", _text(text.format_count(record.num_problems) if record.num_problems else "", "red")),
            ("labels", Flow(_label_texts(record))),
            *([("frames", num_frames), ("read", size)] if unit_of(record) == "videos" else []),
            ("wall time", text.format_seconds(record.elapsed_seconds)),
            ("rate", "  ".join(rates)),
            ("output", record.output_uri),
            ("report", _text(report_uri, "bold")),
        ]
    )


def training_table(record: TrainingRecord, *, report_uri: str = "") -> Padding:
    """Return the table that is printed at the end of a training: outcome, metrics, model and report."""
    held_out = f", {record.num_validation_videos:,} for validation" if record.num_validation_videos else ""
    left_out = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in record.history_counts.items())
    return summary_table(
        [
            *_outcome(record),
            ("kept", record.kept_what),
            *record.kept_metrics,
            ("advice", record.advice),
            (f"{record.sample_noun}s", f"{text.format_count(record.num_train_videos)} for training{held_out}"),
            ("given labels", "" if record.self_training is None else str(record.self_training)),
            ("left out", left_out),
            ("restarts", _text(text.format_count(record.num_restarts) if record.num_restarts else "", "yellow")),
            ("wall time", text.format_seconds(record.elapsed_seconds)),
            ("model", _text(record.model_uri, "bold")),
            ("report", _text(report_uri, "bold")),
        ]
    )


def recommend_table(
    record: RunRecord, *, report_uri: str, num_users: int, statuses: Mapping[str, int], unknown_ids: str, index: str
) -> Padding:
    """Return the table that is printed at the end of recommend.

    The counts describe the whole output. The time and the rate describe this run, and are left out if it did nothing.
    """
    answered = [Text(f"{statuses[kind]:,} {how}") for kind, how in _ANSWERS.items() if statuses.get(kind)]
    return summary_table(
        [
            ("users", text.format_count(num_users)),
            ("answered", Flow(answered)),
            ("unknown ids", unknown_ids),
            ("index", index),
            ("wall time", text.format_seconds(record.elapsed_seconds) if record.num_videos else ""),
            ("rate", f"{text.format_rate(record.mean_rate(record.num_videos))} users/s" if record.num_videos else ""),
            ("output", record.output_uri),
            ("report", _text(report_uri, "bold")),
        ]
    )


def epoch_table(rows: Sequence[tuple[EpochMetrics, bool]], *, max_rows: int = _MAX_EPOCHS) -> Table:
    """Return a table of the last epochs, which always includes the best epoch.

    ``rows`` holds the metrics of each epoch, and whether it was the best so far. The table has columns only for values
    that were measured.
    """
    best = next((metrics for metrics, is_best in reversed(rows) if is_best), None)
    shown = [metrics for metrics, _ in rows[-min(max_rows, _MAX_EPOCHS) :]]
    if best is not None and best not in shown:
        shown = [best, *shown[1:]]
    names = [name for name in EPOCH_METRICS if any(getattr(metrics, name) is not None for metrics in shown)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True, header_style="dim")
    for heading in ("epoch", *(_SHORT_NAMES.get(name, text.metric_name(name)) for name in names), "samples/s"):
        table.add_column(heading, justify="right", overflow="fold", min_width=5)
    table.add_column("")
    for metrics in shown:
        table.add_row(
            str(metrics.epoch),
            *(text.format_metric(name, getattr(metrics, name)) for name in names),
            text.format_speed(metrics.samples_per_second),
            "best" if metrics is best else "",
            style="bold green" if metrics is best else "",
        )
    return table


def unit_of(record: RunRecord) -> str:
    """Return the unit that the job of a record counts: ``videos`` or ``users``."""
    return f"{record.noun}s"


def format_rates(record: RunRecord, units_per_second: float, frames_per_second: float) -> list[str]:
    """Return the rates of a job as texts. The frame rate is included only if the job processes videos."""
    rates = [f"{text.format_rate(units_per_second)} {unit_of(record)}/s"]
    return [*rates, f"{text.format_rate(frames_per_second)} frames/s"] if unit_of(record) == "videos" else rates


def sorted_statuses(record: RunRecord) -> list[tuple[str, int]]:
    """Return pairs of a status and its count, the most frequent first, but failures after all others."""
    return sorted(record.statuses.items(), key=lambda item: (item[0] not in _STATUS_STYLES, -item[1], item[0]))


def status_texts(record: RunRecord) -> list[Text]:
    """Return the count of each status as a text, in a color that shows whether the status is a failure."""
    return [
        Text(f"{text.visible(status)} {text.format_count(count)}", style=_STATUS_STYLES.get(status, "red"))
        for status, count in sorted_statuses(record)
    ]


def _outcome(record: RunRecord | TrainingRecord) -> list[tuple[str, Text]]:
    style = _OUTCOME_STYLES[record.outcome]
    return [("outcome", _text(record.outcome, f"bold {style}")), ("", _text(record.message, style))]


def _label_texts(record: RunRecord) -> list[Text]:
    """Return the most frequent labels with their counts, and the number of other labels, as texts."""
    labels = record.labels.most_common(_MAX_LABELS)
    texts = [Text(f"{text.visible(label)} {count:,}") for label, count in labels]
    others = len(record.labels) - len(texts)
    return [*texts, Text(f"and {text.plural(others, 'other label')}", style="dim")] if others else texts


def _text(untrusted: str, style: str = "") -> Text:
    return Text(text.visible(text.redact(untrusted)), style=style)
