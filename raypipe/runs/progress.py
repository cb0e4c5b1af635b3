"""The progress display of a running job, and its counters in Ray's Prometheus endpoint.

On a terminal, the display is a progress bar. Elsewhere, such as in a log file, plain lines are printed at most every
``LINE_SECONDS``. This module imports neither Ray nor the HTML report.
"""

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING, NamedTuple, Self

import rich.progress
from rich.console import Console, RenderableType
from rich.table import Column
from rich.text import Text

from raypipe import text
from raypipe.records import EPOCH_METRICS, EpochMetrics, RunRecord, ShardSummary
from raypipe.runs.summary_tables import Flow, epoch_table, format_rates, sorted_statuses, status_texts, unit_of

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge

LINE_SECONDS = 10.0  # the minimum time between two plain lines
_EPOCHS_PER_LINE = 4  # at most this many lines of epochs per LINE_SECONDS
_REFRESH_PER_SECOND = 4.0
_RATE_WINDOW_SECONDS = 120.0
_RATE_MIN_SAMPLES = 8  # the window holds at least this many samples, also old ones, because large shards finish rarely
_LINES_BESIDES_EPOCHS = 6  # the header of the table, the bar and the lines below the bar
_COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "raypipe_videos_total": ("Videos finished, by status.", ("status",)),
    "raypipe_frames_total": ("Frames of finished shards.", ()),
    "raypipe_bytes_total": ("Bytes read: of videos, or of their vectors.", ()),
    "raypipe_shards_total": ("Shards finished.", ()),
    "raypipe_stage_seconds_total": ("Seconds of work by stage, summed over all actors.", ("stage",)),
    "raypipe_decode_wait_seconds_total": ("Seconds that GPU actors waited for decoded shards, summed.", ()),
    "raypipe_s3_throttles_total": ("Throttling replies from S3, for finished shards.", ()),
}
_GAUGES = {
    "raypipe_planned_videos": "Videos in the plan, done or not.",
    "raypipe_done_videos": "Videos of the plan that this run or an earlier one has finished.",
}
_logger = logging.getLogger(__name__)


def status(console: Console | None, line: str) -> AbstractContextManager[object]:
    """Show a line with a spinner during the ``with`` block. Without a console, show nothing."""
    return nullcontext() if console is None else console.status(line)


@contextmanager
def _harmless() -> Iterator[None]:
    """Log exceptions instead of raising them, because a failing display or counter must not end the job."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  the job matters more than its display
        _logger.warning("The progress could not be shown: %r", error)


@dataclass(frozen=True, slots=True)
class _View:
    """The content of the terminal display at one moment: a bar with a label and a count, and the lines around it."""

    label: str
    completed: float = 0
    total: float | None = None  # None if unknown; the bar then pulses
    count: str = ""
    above: Sequence[RenderableType] = ()
    below: Sequence[RenderableType] = ()


class _Bar(rich.progress.Progress):
    """A progress bar as wide as the terminal. Each refresh calls ``view`` to get the current content."""

    def __init__(self, view: Callable[[], _View], console: Console) -> None:
        self._view = view
        super().__init__(
            rich.progress.TextColumn("{task.description}", style="bold", markup=False),
            rich.progress.BarColumn(bar_width=None, table_column=Column(ratio=1)),
            rich.progress.TextColumn("{task.fields[count]}", style="bold", markup=False),
            console=console,
            refresh_per_second=_REFRESH_PER_SECOND,
            expand=True,
        )
        self.add_task("", total=None, count="")

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the lines of the display, from top to bottom."""
        view = self._view()
        for task in self.task_ids:  # empty during the constructor, which already calls this method
            self.update(task, description=view.label, completed=view.completed, total=view.total, count=view.count)
        yield from view.above
        yield from super().get_renderables()
        yield from view.below


class _Display:
    """The base class of progress displays: a bar on a terminal, or else lines at least ``line_seconds`` apart."""

    def __init__(self, console: Console | None, *, line_seconds: float, clock: Callable[[], float]) -> None:
        self._console = console or Console()
        self._line_seconds = line_seconds
        self._clock = clock
        self._line_at = clock()
        self._lock = RLock()  # the thread that redraws the bar must not see half an update
        self._bar: _Bar | None = None

    def __enter__(self) -> Self:
        self._line_at = self._clock()
        if self._console.is_interactive:
            with _harmless():
                bar = _Bar(self._locked_view, self._console)
                bar.start()
                self._bar = bar
        return self

    def __exit__(self, *error: object) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            with _harmless():
                bar.stop()

    @_harmless()
    def note(self, line: str) -> None:
        """Print a line that stays on the terminal, such as "workers were restarted"."""
        self._print(text.visible(text.redact(line)), style="yellow")

    def _locked_view(self) -> _View:
        with self._lock:
            return self._view()

    def _view(self) -> _View:
        raise NotImplementedError

    def _is_line_due(self) -> bool:
        return self._bar is None and self._clock() - self._line_at >= self._line_seconds

    @_harmless()
    def _print_line(self, parts: Iterable[str]) -> None:
        """Print one line of non-empty parts, unless a bar already shows this information."""
        self._line_at = self._clock()
        if self._bar is None:
            self._print(text.visible(" · ".join(filter(None, parts))))

    def _print(self, line: str, *, style: str = "") -> None:
        encoding = self._console.encoding
        if not encoding.startswith("utf"):
            line = line.replace("·", "|").encode(encoding, "backslashreplace").decode(encoding)
        self._console.print(Text(line, style=style), soft_wrap=True)


class Progress(_Display):
    """Shows the progress of a batch job from its record. Only ``update`` may add shards to the record.

    Plain lines are printed at the start and at the end. In between, ``update`` and ``tick`` print a line if one is due.
    """

    def __init__(
        self, record: RunRecord, *, console: Console | None = None, line_seconds: float = LINE_SECONDS
    ) -> None:
        super().__init__(console, line_seconds=line_seconds, clock=lambda: record.elapsed_seconds)
        self._record = record
        self._unit = unit_of(record)
        self._rate = RecentRate(record)
        planned, resumed = record.num_planned_videos, record.num_resumed_videos
        self._metrics = ProgressMetrics(num_planned_videos=planned, num_resumed_videos=resumed)

    def __enter__(self) -> Self:
        super().__enter__()
        self._print_line(self._parts(ended=False))
        return self

    def __exit__(self, *error: object) -> None:
        self._print_line(self._parts(ended=True))
        super().__exit__(*error)

    def update(self, summary: ShardSummary) -> None:
        """Add one finished shard to the record, the metrics and the display."""
        with self._lock:
            self._record.add(summary)
            self._rate.update()
        if self._unit == "videos":  # the metrics count only videos
            with _harmless():
                self._metrics.add(summary)
        self.tick()

    def tick(self) -> None:
        """Print a line if one is due. The driver may call this while it waits for a shard."""
        if self._is_line_due():
            self._print_line(self._parts(ended=False))

    def _parts(self, *, ended: bool) -> Iterator[str]:
        """Yield the parts of a plain line.

        While the run goes on, these include the recent rates and the time left. If it has ended, they include the mean
        rates and the time taken.
        """
        record = self._record
        units, frames = self._rate.per_second()
        time_text = f"ETA {_format_left(self._rate.eta_seconds(), 'unknown')}"
        if ended:
            units, frames = record.mean_rate(record.num_videos), record.mean_rate(record.num_frames)
            time_text = f"took {text.format_seconds(record.elapsed_seconds)}"
        yield f"{record.job} {record.num_done_videos}/{record.num_planned_videos} {self._unit} ({_done_share(record)})"
        yield from format_rates(record, units, frames)
        yield " ".join(f"{status} {count}" for status, count in sorted_statuses(record))
        yield text.plural(record.num_problems, "failed attempt") if record.num_problems else ""
        yield f"{record.num_resumed_videos} done before" if record.num_resumed_videos else ""
        yield time_text

    def _view(self) -> _View:
        record = self._record
        done, planned = record.num_done_videos, record.num_planned_videos
        speed = [
            *(Text(rate, "cyan") for rate in format_rates(record, *self._rate.per_second())),
            Text(f"mean {text.format_rate(record.mean_rate(record.num_videos))} {self._unit}/s", "dim"),
            Text(f"{text.format_seconds(record.elapsed_seconds)} elapsed", "dim"),
            Text(f"{_format_left(self._rate.eta_seconds(), text.NOTHING)} left", "bold"),
        ]
        problems = text.plural(record.num_problems, "failed attempt") if record.num_problems else ""
        before = f"{record.num_resumed_videos:,} done before this run" if record.num_resumed_videos else ""
        return _View(
            label=record.job,
            completed=done,
            total=planned or None,
            count=f"{text.format_count(done)}/{text.format_count(planned)}  {_done_share(record)}",
            below=[Flow(speed), Flow([*status_texts(record), Text(problems, "red"), Text(before, "dim")])],
        )


class _Step(NamedTuple):
    """The progress of a training. ``step`` is the number of steps done in this epoch, out of ``steps_per_epoch``."""

    epoch: int
    step: int
    steps_per_epoch: int
    loss: float
    samples_per_second: float

    @property
    def done(self) -> float:
        """The number of epochs done, including the finished fraction of the current epoch."""
        return self.epoch - 1 + min(1.0, self.step / max(1, self.steps_per_epoch))

    @property
    def numbers(self) -> list[str]:
        """The loss and the speed, formatted as two strings."""
        return [f"loss {text.format_loss(self.loss)}", f"{text.format_speed(self.samples_per_second)} samples/s"]


class TrainingProgress(_Display):
    """Shows the progress of a training of ``num_epochs`` epochs. Call ``step`` and ``epoch`` to update it.

    On a terminal, a table of epochs is shown above the bar. Elsewhere, plain lines are printed for each note, every
    ``line_seconds`` within an epoch, and after each epoch. If epochs are short, only some of them and the last one get
    a line. ``clock`` returns the time in seconds.
    """

    def __init__(
        self,
        *,
        num_epochs: int,
        console: Console | None = None,
        line_seconds: float = LINE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(console, line_seconds=line_seconds, clock=clock)
        self._num_epochs = num_epochs
        self._held: list[str] = []  # the parts of the last epoch's line, if not printed yet
        self._epoch_at: float | None = None
        self._step: _Step | None = None
        self._began: tuple[float, float] | None = None  # the start time, and the epochs done by then
        self._epochs: dict[int, tuple[EpochMetrics, bool]] = {}

    def __exit__(self, *error: object) -> None:
        if self._held:
            self._print_line(self._held)
        super().__exit__(*error)

    @_harmless()
    def step(self, epoch: int, step: int, steps_per_epoch: int, loss: float, samples_per_second: float) -> None:
        """Show the progress within an epoch. Epochs are counted from 1.

        ``step`` is the number of optimizer steps done in this epoch, out of ``steps_per_epoch``.
        """
        with self._lock:
            now = _Step(epoch, step, steps_per_epoch, loss, samples_per_second)
            # If the training went back to a checkpoint, restart the clock, so that the lost time does not count.
            if self._began is None or self._step is None or now.done < self._step.done:
                self._began = (self._clock(), now.done)
            self._step = now
        if self._is_line_due():
            how_far = f"epoch {epoch}/{self._num_epochs} step {step}/{steps_per_epoch}"
            self._print_line([how_far, *now.numbers, f"ETA {_format_left(self.eta_seconds(), 'unknown')}"])

    @_harmless()
    def epoch(self, metrics: EpochMetrics, is_best: bool) -> None:  # noqa: FBT001  part of an event, never a literal
        """Show an epoch that has ended. ``is_best`` says that no earlier epoch was better."""
        with self._lock:
            # After a restart, an epoch may end a second time. Then later epochs have not been reached again yet.
            self._epochs = {number: row for number, row in self._epochs.items() if number < metrics.epoch}
            self._epochs[metrics.epoch] = (metrics, is_best)
        values = [(name, getattr(metrics, name)) for name in EPOCH_METRICS]
        self._held = [
            f"epoch {metrics.epoch}/{self._num_epochs}",
            *(f"{text.metric_name(name)} {text.format_metric(name, one)}" for name, one in values if one is not None),
            f"{text.format_speed(metrics.samples_per_second)} samples/s",
            f"took {text.format_seconds(metrics.seconds)}",
            "best so far" if is_best else "",
        ]
        if self._epoch_at is None or self._clock() - self._epoch_at >= self._line_seconds / _EPOCHS_PER_LINE:
            self._print_line(self._held)
            self._epoch_at, self._held = self._clock(), []

    def eta_seconds(self) -> float | None:
        """Return the estimated seconds until the last epoch ends, including validation, or None if still unknown."""
        if self._step is None or self._began is None:
            return None
        then, done_then = self._began
        done, seconds = self._step.done - done_then, self._clock() - then
        left = max(0.0, self._num_epochs - self._step.done)
        return left * seconds / done if done > 0 and seconds > 0 else None

    def _view(self) -> _View:
        max_rows = max(1, self._console.height - _LINES_BESIDES_EPOCHS)
        above = [epoch_table(list(self._epochs.values()), max_rows=max_rows)] if self._epochs else []
        now = self._step
        if now is None:
            return _View(label="train", count="waiting for the first step", above=above)
        left = Text(f"{_format_left(self.eta_seconds(), text.NOTHING)} left", "bold")
        return _View(
            label=f"epoch {now.epoch}/{self._num_epochs}",
            completed=now.step,
            total=max(1, now.steps_per_epoch),
            count=f"{text.format_count(now.step)}/{text.format_count(now.steps_per_epoch)} steps",
            above=above,
            below=[Flow([*(Text(number, "cyan") for number in now.numbers), left])],
        )


def _format_left(seconds: float | None, unknown: str) -> str:
    return unknown if seconds is None else text.format_seconds(seconds)


def _done_share(record: RunRecord) -> str:
    planned = record.num_planned_videos
    return text.format_share(record.num_done_videos / planned) if planned else "100%"


class RecentRate:
    """Measures videos and frames per second over the last two minutes of a run.

    If fewer than eight samples are that recent, the rate covers the last eight samples.
    """

    def __init__(self, record: RunRecord) -> None:
        self._record = record
        self._samples: deque[tuple[float, int, int]] = deque([self._sample()])

    def update(self) -> None:
        """Add a sample of the record's counts. At most one sample per second is kept."""
        sample = self._sample()
        if len(self._samples) > 1 and sample[0] - self._samples[-2][0] < 1:
            self._samples.pop()
        self._samples.append(sample)
        while len(self._samples) > _RATE_MIN_SAMPLES and sample[0] - self._samples[1][0] > _RATE_WINDOW_SECONDS:
            self._samples.popleft()

    def per_second(self) -> tuple[float, float]:
        """Return videos and frames per second until now, so that the rates fall if no shard finishes.

        Both are 0 if no time has passed yet.
        """
        (then, videos, frames), (now, videos_now, frames_now) = self._samples[0], self._sample()
        seconds = now - then
        return ((videos_now - videos) / seconds, (frames_now - frames) / seconds) if seconds > 0 else (0.0, 0.0)

    def eta_seconds(self) -> float | None:
        """Return the estimated seconds until all planned videos are done, or None if no video was finished recently."""
        left = self._record.num_planned_videos - self._record.num_done_videos
        videos_per_second, _ = self.per_second()
        if left <= 0:
            return 0.0
        return left / videos_per_second if videos_per_second > 0 else None

    def _sample(self) -> tuple[float, int, int]:
        return self._record.elapsed_seconds, self._record.num_videos, self._record.num_frames


class ProgressMetrics:
    """Exports counts of finished shards to Prometheus through Ray. If Ray is not running here, this is a no-op.

    In Prometheus, the names in ``_COUNTERS`` and ``_GAUGES`` have the prefix ``ray_``.
    """

    def __init__(self, *, num_planned_videos: int, num_resumed_videos: int) -> None:
        self._num_planned_videos = num_planned_videos
        self._num_done_videos = num_resumed_videos
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}

    def add(self, summary: ShardSummary) -> None:
        """Add the counts of one finished shard."""
        self._num_done_videos += sum(summary.statuses.values())
        ray = sys.modules.get("ray")  # if Ray is running, it is imported
        if ray is None or not ray.is_initialized():
            return
        if not self._counters:
            self._counters, self._gauges = _make_metrics()
        self._count("raypipe_shards_total", 1)
        self._count("raypipe_frames_total", summary.num_frames)
        self._count("raypipe_bytes_total", summary.size_bytes)
        self._count("raypipe_decode_wait_seconds_total", summary.wait_seconds)
        self._count("raypipe_s3_throttles_total", summary.num_throttles)
        for status, count in summary.statuses.items():
            self._count("raypipe_videos_total", count, status=str(status))
        for stage, seconds in summary.stage_seconds.items():
            self._count("raypipe_stage_seconds_total", seconds, stage=stage)
        # Set both gauges each time, although one is constant: Ray drops a gauge that is not set for some seconds.
        self._gauges["raypipe_planned_videos"].set(self._num_planned_videos)
        self._gauges["raypipe_done_videos"].set(self._num_done_videos)

    def _count(self, name: str, value: float, **tags: str) -> None:
        if value > 0:  # Ray rejects an increment of zero
            self._counters[name].inc(value, tags)


def _make_metrics() -> "tuple[dict[str, Counter], dict[str, Gauge]]":
    from ray.util.metrics import Counter, Gauge  # noqa: PLC0415  so that only processes that run Ray import it

    counters = {name: Counter(name, about, tags) for name, (about, tags) in _COUNTERS.items()}
    return counters, {name: Gauge(name, about) for name, about in _GAUGES.items()}
