"""The display of a running job: live on a terminal, plain lines elsewhere."""

from threading import RLock
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from raypipe.progress.metrics import Metrics
from raypipe.progress.rate import RecentRate
from raypipe.progress.view import live_view, plain_line
from raypipe.report import RunRecord, ShardSummary

LINE_SECONDS = 10.0  # between plain lines, at least
_REFRESH_PER_SECOND = 4.0


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
        self._metrics = Metrics(num_planned_videos=record.num_planned_videos)
        # Redrawing, by the display's thread or by whatever prints on this one, must not see half an update.
        self._lock = RLock()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                get_renderable=self._render,
                console=self._console,
                refresh_per_second=_REFRESH_PER_SECOND,
                vertical_overflow="visible",
            )
            self._live.start(refresh=True)
        else:
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
        line = plain_line(self._record, self._rate, ended=ended)
        if not self._console.encoding.startswith("utf"):
            line = line.replace("·", "|")
        self._console.print(Text(line), soft_wrap=True)

    def _render(self) -> RenderableType:
        with self._lock:
            return live_view(self._record, self._rate)
