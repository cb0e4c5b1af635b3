"""A run record as terminal output: one plain line, a live view, and the table at the end."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raypipe.records import RunRecord
from raypipe.report.sections import flag_texts
from raypipe.runs.rate import RecentRate
from raypipe.status import NOT_FAILED, Status
from raypipe.text import (
    NOTHING,
    format_bytes,
    format_count,
    format_rate,
    format_seconds,
    format_share,
    plural,
    visible,
)

_MAX_LABELS = 8
OUTCOME_STYLES = {"finished": "green", "failed": "red", "interrupted": "yellow", "running": "cyan"}


@dataclass(frozen=True)
class Flow:
    """Pieces of text side by side, on as many lines as they need; none is broken, and empty ones leave no gap."""

    pieces: Sequence[Text]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines for the width at hand."""
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
        """Say that any width will do, down to the longest piece."""
        widths = [piece.cell_len for piece in self.pieces]
        return Measurement(max(widths, default=0), min(sum(widths) + 2 * len(widths), options.max_width))


def plain_line(record: RunRecord, rate: RecentRate, *, ended: bool) -> str:
    """Return a record as one line: recent rates and the time left, or means and the time taken where it has ended."""
    videos, frames = rate.per_second()
    eta_seconds = rate.eta_seconds()
    time = f"ETA {'unknown' if eta_seconds is None else format_seconds(eta_seconds)}"
    if ended:
        videos, frames = record.mean_rate(record.num_videos), record.mean_rate(record.num_frames)
        time = f"took {format_seconds(record.elapsed_seconds)}"
    parts = [
        f"{record.job} {record.num_done_videos}/{record.num_planned_videos} videos ({_done_share(record)})",
        f"{format_rate(videos)} videos/s",
        f"{format_rate(frames)} frames/s",
        " ".join(f"{status} {count}" for status, count in _statuses(record)),
        plural(record.num_problems, "failed attempt") if record.num_problems else "",
        f"{record.num_resumed_videos} done before" if record.num_resumed_videos else "",
        time,
    ]
    return visible(" · ".join(part for part in parts if part))


def final_table(record: RunRecord, *, report_uri: str = "") -> RenderableType:
    """Return the end of a run as a table: what was done, how it ended, how fast, and where its report is."""
    style = OUTCOME_STYLES[record.outcome]
    before = f"  {format_count(record.num_resumed_videos)} before this run" if record.num_resumed_videos else ""
    rows: list[tuple[str, Text | Flow]] = [
        ("outcome", Text(record.outcome, style=f"bold {style}")),
        ("", Text(visible(record.message), style=style)),
        ("videos", Text(f"{format_count(record.num_videos)}{before}")),
        ("left", Text(_left(record))),
        ("statuses", Flow(_status_texts(record))),
        ("noticed", Text(", ".join(flag_texts(record)), style="yellow")),
        ("failed attempts", Text(format_count(record.num_problems) if record.num_problems else "", style="red")),
        ("labels", Flow(_label_texts(record))),
        ("frames", Text(format_count(record.num_frames))),
        ("read", Text(format_bytes(record.size_bytes))),
        ("wall time", Text(format_seconds(record.elapsed_seconds))),
        ("rate", Text(_rates(record.mean_rate(record.num_videos), record.mean_rate(record.num_frames)))),
        ("output", Text(visible(record.output_uri))),
        ("report", Text(visible(report_uri), style="bold")),
    ]
    return named_rows(rows)


def named_rows(rows: Iterable[tuple[str, Text | Flow]]) -> RenderableType:
    """Return (name, value) rows as a table without lines; rows whose value is empty are left out."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False, show_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value.pieces if isinstance(value, Flow) else value.plain:
            table.add_row(name, value)
    return Padding(table, (1, 0))


def live_view(record: RunRecord, rate: RecentRate) -> RenderableType:
    """Return a running record as three lines: how far, how fast, and how the videos ended."""
    videos, frames = rate.per_second()
    mean = record.mean_rate(record.num_videos)
    eta_seconds = rate.eta_seconds()
    head = Table.grid(expand=True, padding=(0, 2, 0, 0))
    head.add_column(no_wrap=True)
    head.add_column(ratio=1)
    head.add_column(no_wrap=True, justify="right")
    planned, done = record.num_planned_videos, record.num_done_videos
    bar = ProgressBar(total=max(planned, 1), completed=min(done, max(planned, 1)), pulse=not planned)
    count = Text.assemble((f"{format_count(done)}/{format_count(planned)}", "bold"), f"  {_done_share(record)}")
    head.add_row(Text(record.job, style="bold"), bar, count)
    left = NOTHING if eta_seconds is None else format_seconds(eta_seconds)
    speed = Text.assemble(
        (_rates(videos, frames), "cyan"),
        (f"  mean {format_rate(mean)} videos/s", "dim"),
        (f"  {format_seconds(record.elapsed_seconds)} elapsed, ", "dim"),
        (f"{left} left", "bold"),
        overflow="fold",
    )
    before = f"{format_count(record.num_resumed_videos)} done before this run" if record.num_resumed_videos else ""
    problems = plural(record.num_problems, "failed attempt") if record.num_problems else ""
    notes = Flow([*_status_texts(record), Text(problems, "red"), Text(before, "dim")])
    return Group(head, speed, notes)


def _rates(videos_per_second: float, frames_per_second: float) -> str:
    return f"{format_rate(videos_per_second)} videos/s  {format_rate(frames_per_second)} frames/s"


def _done_share(record: RunRecord) -> str:
    planned = record.num_planned_videos
    return format_share(record.num_done_videos / planned) if planned else "100%"


def _left(record: RunRecord) -> str:
    left = record.num_planned_videos - record.num_done_videos
    return f"{format_count(left)}  the same command goes on with them" if left > 0 else ""


def _statuses(record: RunRecord) -> list[tuple[str, int]]:
    """Return (status, videos): failures last, and otherwise by number."""
    return sorted(record.statuses.items(), key=lambda item: (item[0] not in NOT_FAILED, -item[1], item[0]))


def _status_texts(record: RunRecord) -> list[Text]:
    styles: dict[str, str] = {Status.OK: "green", Status.PARTIAL: "yellow", Status.GONE: "dim"}
    return [
        Text(f"{visible(status)} {format_count(count)}", style=styles.get(status, "red"))
        for status, count in _statuses(record)
    ]


def _label_texts(record: RunRecord) -> list[Text]:
    """The most frequent labels, and how many others there are."""
    texts = [Text(f"{visible(label)} {format_count(count)}") for label, count in record.labels.most_common(_MAX_LABELS)]
    others = len(record.labels) - len(texts)
    return [*texts, Text(f"and {plural(others, 'other label')}", style="dim")] if others else texts
