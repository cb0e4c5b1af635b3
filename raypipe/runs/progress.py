"""The display of a running job: live on a terminal, plain lines elsewhere."""

from collections.abc import Callable
from threading import RLock
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from raypipe.records import RunRecord, ShardSummary
from raypipe.runs.progress_metrics import Metrics
from raypipe.runs.rate import RecentRate
from raypipe.runs.summary_tables import live_view, plain_line

LINE_SECONDS = 10.0  # between plain lines, at least
_REFRESH_PER_SECOND = 4.0


def start_live(console: Console, render: Callable[[], RenderableType]) -> Live | None:
    """Show on a terminal what ``render`` gives, again and again until it is stopped; None elsewhere."""
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    live = Live(
        get_renderable=render, console=console, refresh_per_second=_REFRESH_PER_SECOND, vertical_overflow="visible"
    )
    live.start(refresh=True)
    return live


def print_line(console: Console, line: str) -> None:
    """Write one plain line, with no sign that the output cannot show."""
    if not console.encoding.startswith("utf"):
        line = line.replace("·", "|")
    console.print(Text(line), soft_wrap=True)


class Progress:
    """Shows a record as it grows; ``update`` also adds the shard to the record, so nobody else may.

    On a terminal it is a live display that redraws itself. Elsewhere it is a line at the start, one at the end and one
    per ``line_seconds`` in between, written by whichever of ``update`` and ``tick`` comes next.
    """

    def __init__(
        self, record: RunRecord, *, console: Console | None = None, line_seconds: float = LINE_SECONDS
    ) -> None:
        self._record = record
        self._console = console or Console()
        self._line_seconds = line_seconds
        self._line_at = 0.0
        self._rate = RecentRate(record)
        self._metrics = Metrics(
            num_planned_videos=record.num_planned_videos, num_resumed_videos=record.num_resumed_videos
        )
        # Redrawing, by the display's thread or by whatever prints on this one, must not see half an update.
        self._lock = RLock()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._live = start_live(self._console, self._render)
        if self._live is None:
            self._print_line(ended=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        else:
            self._print_line(ended=True)

    def update(self, summary: ShardSummary) -> None:
        """Add one finished shard to the record, to the metrics and to what is shown."""
        with self._lock:
            self._record.add(summary)
            self._rate.update()
        self._metrics.add(summary)
        self.tick()

    def tick(self) -> None:
        """Let time pass: the driver calls this now and then while it waits for a shard."""
        if self._live is None and self._record.elapsed_seconds - self._line_at >= self._line_seconds:
            self._print_line(ended=False)

    def _print_line(self, *, ended: bool) -> None:
        self._line_at = self._record.elapsed_seconds
        print_line(self._console, plain_line(self._record, self._rate, ended=ended))

    def _render(self) -> RenderableType:
        with self._lock:
            return live_view(self._record, self._rate)
