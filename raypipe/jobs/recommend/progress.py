"""The display of a running recommend: live on a terminal, plain lines elsewhere."""

import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.text import Text

from raypipe.records import ShardSummary
from raypipe.runs.progress import LINE_SECONDS, print_line, start_live
from raypipe.text import format_count, format_rate, format_seconds, format_share

if TYPE_CHECKING:
    from rich.live import Live


class UserProgress:
    """Counts the users of finished shards, and says how far and how fast."""

    def __init__(
        self,
        *,
        num_users: int,
        num_done_before: int,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_users, self._num_done_before = num_users, num_done_before
        self._console = console or Console()
        self._clock = clock
        self._start = self._line_at = clock()
        self._live: Live | None = None
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._live = start_live(self._console, lambda: Text(self.line()))
        if self._live is None:
            print_line(self._console, self.line())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        else:
            print_line(self._console, self.line())

    def update(self, summary: ShardSummary) -> None:
        """Count one attempt at a shard; one that failed has no users."""
        self.counts.update(summary.statuses)
        if self._live is None and self._clock() - self._line_at >= LINE_SECONDS:
            self._line_at = self._clock()
            print_line(self._console, self.line())

    def line(self) -> str:
        """How far and how fast, in one line."""
        seconds = self._clock() - self._start
        here = self.counts.total()
        done = self._num_done_before + here
        rate = here / seconds if seconds > 0 else 0.0
        left = f"ETA {format_seconds((self._num_users - done) / rate)}" if rate else "ETA unknown"
        share = format_share(done / max(1, self._num_users))
        parts = [
            f"recommend {format_count(done)}/{format_count(self._num_users)} users ({share})",
            f"{format_rate(rate)} users/s",
            *(f"{kind} {format_count(count)}" for kind, count in sorted(self.counts.items())),
            f"{format_count(self._num_done_before)} done before" if self._num_done_before else "",
            left if done < self._num_users else f"took {format_seconds(seconds)}",
        ]
        return " · ".join(part for part in parts if part)
