"""The geometry of a report's charts, in pixels from the top left corner. ``charts.html`` draws it as SVG."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from unicodedata import east_asian_width

from raypipe.records import Point
from raypipe.text import format_rate, format_seconds, shorten, visible

MAX_POINTS = 300
MAX_LABELS = 25
WIDE, HALF, NARROW = 920, 432, 340  # phones get separate charts, so that labels keep their size
_TIME_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)
_SAMPLE, _GAP, _CHAR = 16, 14, 6.8  # legend: a line sample, the space between two entries, about the width of a letter
_CAPITAL = 9.5  # about the width of a capital letter
_LARGEST = 1e30  # larger values are left out like NaN, and values below its inverse count as 0
_LABEL_CHARS = 18
_LETTER, _WIDE_LETTER = 6.6, 12.0  # about the width of a letter of a label
_FEW_LABELS, _LARGE_CELL, _SMALL_CELL = 12, 44, 30


@dataclass(frozen=True, slots=True)
class Plot:
    """The axes of a chart: the first and last value of x, and the lowest and highest grid line of y."""

    width: int
    height: int
    first: float
    last: float
    low: float
    high: float
    step: float  # between two grid lines
    left: int = 50  # the space for labels on each side
    right: int = 2
    top: int = 26
    bottom: int = 24

    @property
    def inner_width(self) -> int:
        return self.width - self.left - self.right

    @property
    def inner_height(self) -> int:
        return self.height - self.top - self.bottom

    def x(self, value: float) -> float:
        span = self.last - self.first
        return self.left + self.inner_width * ((value - self.first) / span if span > 0 else 0.5)

    def y(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.top + self.inner_height * (1 - share)

    def grid(self) -> Iterator[tuple[float, str]]:
        """Yield the y coordinate and label of each grid line, from bottom to top."""
        for index in range(round((self.high - self.low) / self.step) + 1):
            value = self.low + index * self.step
            value = 0.0 if abs(value) < self.step / 1000 else value
            yield self.y(value), f"{value:,.10g}" if abs(value) < 1e7 else f"{value:.4g}"  # noqa: PLR2004  what fits


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """The elements that ``charts.html`` draws into a plot. ``kind`` is a CSS class."""

    plot: Plot
    title: str
    label: str  # for screen readers
    ticks: Sequence[tuple[float, str]]  # x, label
    strips: Sequence[tuple[float, float, str]]  # x, width, tooltip; invisible areas that cover the plot
    lines: Sequence[tuple[str, str]]  # path, kind
    area: str = ""  # path
    dots: Sequence[tuple[float, float, str]] = ()  # x, y, kind
    legend: Sequence[tuple[float, float, str, str]] = ()  # x where the sample starts, x where the name ends, name, kind
    mean: tuple[float, str] | None = None  # y of a dashed line, label
    marked: float | None = None  # x of a dashed line


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart. ``values`` has an entry per epoch; a missing value is None. ``kind`` is a CSS class."""

    name: str
    kind: str
    values: Sequence[float | None]

    def at(self, index: int) -> float | None:
        """Return the value at an index, or None if it cannot be drawn."""
        value = self.values[index]
        if value is None or not math.isfinite(value) or abs(value) > _LARGEST:
            return None
        return value if abs(value) * _LARGEST > 1 else 0.0


def rate_chart(points: Sequence[Point], amounts: Sequence[float], *, unit: str, width: int, height: int) -> Chart:
    """Draw the rate over time as a step chart, with a line at the mean rate.

    ``amounts`` contains the amount of each point. At least one point is required.
    """
    seconds = points[-1].end_seconds
    rates = [amount / point.width_seconds for point, amount in zip(points, amounts, strict=True)]
    step, mean = nice_step(max(rates), num_steps=3), sum(amounts) / seconds
    high = step * max(1, math.ceil(max(rates) / step - 1e-9))
    plot = Plot(width, height, first=0, last=seconds, low=0, high=high, step=step)
    spans = [(point.start_seconds, point.end_seconds) for point in points]
    edge = "".join(
        f"H{plot.x(start):.1f}V{plot.y(rate):.1f}H{plot.x(end):.1f}"
        for (start, end), rate in zip(spans, rates, strict=True)
    )
    # A label of the time axis needs about 70 pixels.
    wanted = seconds / max(2, plot.inner_width // 70)
    tick = next((step for step in _TIME_STEPS if step >= wanted), 86_400 * math.ceil(wanted / 86_400))
    return Chart(
        plot=plot,
        title=unit,
        label=f"{unit} over {format_seconds(seconds)}; mean {format_rate(mean)}",
        ticks=[(plot.x(at), _time_label(at)) for at in range(0, int(seconds + tick * 1e-9) + 1, tick)],
        strips=[
            (
                plot.x(start),
                plot.x(end) - plot.x(start),
                f"{format_seconds(start)} to {format_seconds(end)}: {format_rate(rate)} {unit}",
            )
            for (start, end), rate in zip(spans, rates, strict=True)
        ],
        lines=[(f"M{plot.x(0):.1f},{plot.y(rates[0]):.1f}{edge}", "main")],
        area=f"M{plot.x(0):.1f},{plot.y(0):.1f}{edge}V{plot.y(0):.1f}Z",
        mean=(plot.y(mean), f"mean {format_rate(mean)}"),
    )


def epoch_chart(
    epochs: Sequence[int],
    series: Sequence[Series],
    *,
    title: str,
    marked: int | None,
    show: Callable[[float], str],
    bounds: tuple[float, float] | None = None,
    noun: str = "epoch",
    width: int,
    height: int,
) -> Chart:
    """Draw lines over one or more ascending ``epochs``, or other whole numbers that ``noun`` names.

    ``marked`` is the epoch to mark with a dashed line. ``show`` formats a value for its tooltip.
    """
    step, low, high = _range(series, len(epochs), bounds)
    plot = Plot(width, height, first=epochs[0], last=epochs[-1], low=low, high=high, step=step)
    drawn = [_line(plot, line, epochs, marked) for line in series]
    middles = [(plot.x(left) + plot.x(right)) / 2 for left, right in pairwise(epochs)]
    tooltips = [
        ", ".join(f"{line.name} {show(value)}" for line in series if (value := line.values[index]) is not None)
        for index in range(len(epochs))
    ]
    return Chart(
        plot=plot,
        title=title,
        label=f"{title} over {len(epochs)} {noun}s: {', '.join(line.name for line in series)}",
        ticks=[(plot.x(epoch), str(epoch)) for epoch in _epoch_ticks(plot, epochs)],
        strips=[
            (start, end - start, f"{noun} {epoch}: {tooltip}")
            for (start, end), epoch, tooltip in zip(
                pairwise([plot.left, *middles, plot.left + plot.inner_width]), epochs, tooltips, strict=True
            )
        ],
        lines=[(path, line.kind) for (path, _), line in zip(drawn, series, strict=True) if path],
        dots=[(x, y, line.kind) for (_, dots), line in zip(drawn, series, strict=True) for x, y in dots],
        legend=_legend([line for line in series if line.name != title.lower()], plot),
        marked=plot.x(marked) if marked in epochs and marked is not None else None,
    )


def thinned(num_epochs: int, keep: int | None) -> list[int]:
    """Return the indices of the epochs to draw: about ``MAX_POINTS`` at even distances, the last one, and ``keep``."""
    stride = math.ceil(num_epochs / MAX_POINTS) or 1
    wanted = {*range(0, num_epochs, stride), num_epochs - 1}
    return sorted(wanted if keep is None else wanted | {keep})


def nice_step(largest: float, *, num_steps: int) -> float:
    """Return a step of 1, 2 or 5 times a power of ten with which about ``num_steps`` steps reach ``largest``."""
    if largest <= 0:
        return 1.0
    raw = largest / num_steps
    power = 10.0 ** math.floor(math.log10(raw))
    return power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))


def _time_label(seconds: int) -> str:
    for size, unit, next_size in ((86_400, "d", 3600), (3600, "h", 60), (60, "m", 1)):
        if seconds >= size:
            whole, rest = divmod(seconds, size)
            return f"{whole}{unit}{rest // next_size:02d}" if rest else f"{whole}{unit}"
    return f"{seconds}s" if seconds else "0"


def _epoch_ticks(plot: Plot, epochs: Sequence[int]) -> list[int]:
    first, last = epochs[0], epochs[-1]
    wanted = max(2, plot.inner_width // 55)
    step = max(1, round(nice_step(max(last - first, 1), num_steps=wanted)))
    return [epoch for epoch in range(first, last + 1) if epoch % step == 0 or last == first]


def _range(series: Sequence[Series], num_epochs: int, bounds: tuple[float, float] | None) -> tuple[float, float, float]:
    """Return the distance between two grid lines, the lowest grid line and the highest one."""
    drawn = [value for line in series for index in range(num_epochs) if (value := line.at(index)) is not None]
    if bounds is not None:
        return (bounds[1] - bounds[0]) / 4, *bounds
    if not drawn:
        return 1.0, 0.0, 1.0
    low, high = min(drawn), max(drawn)
    if high - low < abs(high) * 1e-3:  # an almost constant line should look constant
        low, high = min(low, 0.0), max(high, 0.0)
    step = nice_step(high - low, num_steps=3)
    bottom, top = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return step, bottom, max(top, bottom + step)


def _line(plot: Plot, line: Series, epochs: Sequence[int], marked: int | None) -> tuple[str, list[tuple[float, float]]]:
    """Return the SVG path of a line, and the coordinates of its dots.

    The path is interrupted where a value is missing. Dots mark isolated values and the marked epoch.
    """
    path, dots, last = [], [], len(epochs) - 1
    drawn = [line.at(index) for index in range(len(epochs))]
    for index, value in enumerate(drawn):
        if value is None:
            continue
        x, y = plot.x(epochs[index]), plot.y(value)
        joined = index > 0 and drawn[index - 1] is not None
        path.append(f"{'L' if joined else 'M'}{x:.1f},{y:.1f}")
        alone = not joined and (index == last or drawn[index + 1] is None)
        if alone or epochs[index] == marked:
            dots.append((x, y))
    return "".join(path), dots


def _legend(series: Sequence[Series], plot: Plot) -> list[tuple[float, float, str, str]]:
    """Return the positions of the sample and the name of each line, placed from right to left."""
    entries, right = [], float(plot.width - plot.right)
    for line in reversed(series):
        letters = sum(_CAPITAL if letter.isupper() or letter == "@" else _CHAR for letter in line.name)
        sample = right - letters - _SAMPLE - 6
        entries.append((sample, right, line.name, line.kind))
        right = sample - _GAP
    return entries


@dataclass(frozen=True, slots=True)
class Heatmap:
    """A confusion matrix of at most ``MAX_LABELS`` labels, drawn as one row of square cells per true label."""

    label_names: Sequence[str]
    confusion: Sequence[Sequence[int]]

    @property
    def short_names(self) -> list[str]:
        return [shorten(visible(name), max_chars=_LABEL_CHARS) for name in self.label_names]

    @property
    def cell(self) -> int:
        """The side of a cell in pixels."""
        return _LARGE_CELL if len(self.label_names) <= _FEW_LABELS else _SMALL_CELL

    @property
    def left(self) -> float:
        """The width in pixels of the space for the row labels."""
        return max(sum(map(_letter_width, name)) for name in self.short_names) + 12

    @property
    def slant(self) -> float:
        """The space in pixels for the slanted column labels, above and to the right of the cells."""
        return self.left * 0.72

    @staticmethod
    def short_count(count: int) -> str:
        """Format a count in at most four characters, so that it fits into a cell."""
        for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
            if count >= max(size, 10**4):
                return f"{count // size}{unit}"
        return str(count)


def _letter_width(letter: str) -> float:
    return _WIDE_LETTER if east_asian_width(letter) in "WF" else _LETTER
