"""What a person sees of a training: its epochs as a table above a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import RLock
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raypipe.records import EpochMetrics, TrainingRecord
from raypipe.report.training_text import format_loss, format_metric, format_speed, measured, metric_name, selected_name
from raypipe.runs.progress import LINE_SECONDS, print_line, start_live
from raypipe.runs.summary_tables import OUTCOME_STYLES, Flow, named_rows
from raypipe.text import NOTHING, format_count, format_seconds, redact, visible

if TYPE_CHECKING:
    from rich.live import Live

_SHOWN_EPOCHS = 8
_EPOCHS_PER_LINE = 4  # so many lines of epochs at most in the time of one line of steps
_COLUMNS = ("train_loss", "validation_loss", "accuracy", "top5_accuracy", "macro_f1")
_SHORT = {"train_loss": "train loss", "validation_loss": "val loss", "top5_accuracy": "top-5"}


@dataclass(frozen=True, slots=True)
class _Step:
    """How far a training is: ``step`` of the epoch's ``steps_per_epoch`` are done."""

    epoch: int
    step: int
    steps_per_epoch: int
    loss: float
    samples_per_second: float

    @property
    def done(self) -> float:
        """Epochs that are done, and the part of this one."""
        return self.epoch - 1 + min(1.0, self.step / max(1, self.steps_per_epoch))


class TrainingProgress:
    """Shows a training of ``num_epochs`` as ``step`` and ``epoch`` tell of it.

    On a terminal it is a live display that redraws itself. Elsewhere it is a line per note, one per epoch, but of short
    epochs only one in a while and the last, and one per ``line_seconds`` in between. ``clock`` gives seconds.
    """

    def __init__(
        self,
        *,
        num_epochs: int,
        console: Console | None = None,
        line_seconds: float = LINE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_epochs = num_epochs
        self._console = console or Console()
        self._line_seconds = line_seconds
        self._clock = clock
        self._line_at = clock()
        self._held: list[str] = []  # the last epoch's line, while it is too early for one
        self._epoch_at: float | None = None
        self._step: _Step | None = None
        self._began: tuple[float, float] | None = None  # when, and how many epochs were done then
        self._epochs: dict[int, tuple[EpochMetrics, bool]] = {}
        self._lock = RLock()  # the display's thread must not see half an update
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._line_at = self._clock()
        self._live = start_live(self._console, self._render)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._held:
            self._print(self._held)
        if self._live is not None:
            self._live.stop()
            self._live = None

    def step(self, epoch: int, step: int, steps_per_epoch: int, loss: float, samples_per_second: float) -> None:
        """Say that ``step`` of the ``steps_per_epoch`` optimizer steps of ``epoch``, counted from 1, are done."""
        with self._lock:
            now = _Step(epoch, step, steps_per_epoch, loss, samples_per_second)
            # A training that goes back to a checkpoint is timed anew: what it does again, it did before.
            if self._began is None or self._step is None or now.done < self._step.done:
                self._began = (self._clock(), now.done)
            self._step = now
        if self._clock() - self._line_at >= self._line_seconds:
            parts = [
                f"epoch {epoch}/{self._num_epochs} step {step}/{steps_per_epoch}",
                f"loss {format_loss(loss)}",
                f"{format_speed(samples_per_second)} samples/s",
                f"ETA {_shown(self.eta_seconds(), 'unknown')}",
            ]
            self._print(parts)

    def epoch(self, metrics: EpochMetrics, is_best: bool) -> None:  # noqa: FBT001  read aloud with its name, not True
        """Add an epoch that has ended; ``is_best``: no earlier one was better."""
        with self._lock:
            # After a restart an epoch may end again, and those behind it are yet to come.
            self._epochs = {number: row for number, row in self._epochs.items() if number < metrics.epoch}
            self._epochs[metrics.epoch] = (metrics, is_best)
        values = [(name, getattr(metrics, name)) for name in _COLUMNS]
        parts = [
            f"epoch {metrics.epoch}/{self._num_epochs}",
            *(f"{metric_name(name)} {format_metric(name, value)}" for name, value in values if value is not None),
            f"{format_speed(metrics.samples_per_second)} samples/s",
            f"took {format_seconds(metrics.seconds)}",
            "best so far" if is_best else "",
        ]
        if self._epoch_at is not None and self._clock() - self._epoch_at < self._line_seconds / _EPOCHS_PER_LINE:
            self._held = parts
            return
        self._epoch_at, self._held = self._clock(), []
        self._print(parts)

    def note(self, text: str) -> None:
        """Say something in one line that stays: a restart, a checkpoint that is gone on from."""
        line = visible(redact(text))
        if self._live is not None:
            self._console.print(Text(line, style="yellow"), soft_wrap=True)
        else:
            print_line(self._console, line)

    def eta_seconds(self) -> float | None:
        """Return the seconds until the last epoch's end, validations included; None while nothing says."""
        if self._step is None or self._began is None:
            return None
        then, done_then = self._began
        done, seconds = self._step.done - done_then, self._clock() - then
        left = max(0.0, self._num_epochs - self._step.done)
        return left * seconds / done if done > 0 and seconds > 0 else None

    def _print(self, parts: Sequence[str]) -> None:
        self._line_at = self._clock()
        if self._live is None:
            print_line(self._console, visible(" · ".join(part for part in parts if part)))

    def _render(self) -> RenderableType:
        with self._lock:
            parts: list[RenderableType] = []
            if self._epochs:
                parts.append(epoch_table(list(self._epochs.values())))
            parts.append(self._bar())
            return Group(*parts)

    def _bar(self) -> RenderableType:
        now = self._step
        if now is None:
            return Text("train  waiting for the first step", style="dim")
        head = Table.grid(expand=True, padding=(0, 2, 0, 0))
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        steps = max(1, now.steps_per_epoch)
        head.add_row(
            Text(f"epoch {now.epoch}/{self._num_epochs}", style="bold"),
            ProgressBar(total=steps, completed=min(now.step, steps)),
            Text(f"{format_count(now.step)}/{format_count(now.steps_per_epoch)} steps", style="bold"),
        )
        numbers = [
            Text(f"loss {format_loss(now.loss)}", style="cyan"),
            Text(f"{format_speed(now.samples_per_second)} samples/s", style="cyan"),
            Text(f"{_shown(self.eta_seconds(), NOTHING)} left", style="bold"),
        ]
        return Group(head, Flow(numbers))


def epoch_table(rows: Sequence[tuple[EpochMetrics, bool]]) -> Table:
    """Return the last epochs as a table, with the best one in it and marked; what was measured has a column."""
    best = next((metrics for metrics, is_best in reversed(rows) if is_best), None)
    shown = [metrics for metrics, _ in rows[-_SHOWN_EPOCHS:]]
    if best is not None and best not in shown:
        shown = [best, *shown[1:]]
    names = [name for name in _COLUMNS if any(getattr(metrics, name) is not None for metrics in shown)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    for heading in ("epoch", *(_SHORT.get(name, metric_name(name)) for name in names), "samples/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for metrics in shown:
        table.add_row(
            str(metrics.epoch),
            *(format_metric(name, getattr(metrics, name)) for name in names),
            format_speed(metrics.samples_per_second),
            "best" if metrics is best else "",
            style="bold green" if metrics is best else "",
        )
    return table


def training_table(record: TrainingRecord, *, report_uri: str = "") -> RenderableType:
    """Return the end of a training as a table: how it ended, how good it is, where the model and the report are."""
    kept = record.kept
    style = OUTCOME_STYLES[record.outcome]
    rows: list[tuple[str, Text | Flow]] = [
        ("outcome", Text(record.outcome, style=f"bold {style}")),
        ("", Text(visible(redact(record.message)), style=style)),
        ("kept", Text(_kept(record))),
        *((name, Text(number)) for name, number in (measured(record, kept) if kept is not None else [])),
        ("videos", Text(_videos(record))),
        ("restarts", Text(format_count(record.num_restarts) if record.num_restarts else "", style="yellow")),
        ("wall time", Text(format_seconds(record.elapsed_seconds))),
        ("model", Text(visible(redact(record.model_uri)), style="bold")),
        ("report", Text(visible(redact(report_uri)), style="bold")),
    ]
    return named_rows(rows)


def _kept(record: TrainingRecord) -> str:
    kept = record.kept
    if kept is None:
        return ""
    chosen = f", the best {selected_name(record)}" if record.best_epoch is not None else ""
    return f"epoch {kept.epoch} of {record.epochs[-1].epoch}{chosen}"


def _videos(record: TrainingRecord) -> str:
    held_out = f", {format_count(record.num_validation_videos)} for validation" if record.num_validation_videos else ""
    return f"{format_count(record.num_train_videos)} for training{held_out}"


def _shown(seconds: float | None, unknown: str) -> str:
    return unknown if seconds is None else format_seconds(seconds)
