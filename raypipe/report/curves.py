"""Lines over epochs as inline SVG: a legend above, both axes, the kept epoch marked."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from raypipe.report.charts import nice_step
from raypipe.report.markup import Html, join, tag

MAX_POINTS = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 8, 26, 24  # pixels around the plot, for its labels
_CHAR = 7.0  # pixels of a letter of a legend, about
_SAMPLE = 16  # pixels of line in a legend
_GAP = 14
_LARGEST = 1e30  # what is larger is left out like a NaN, and what is smaller than one part of it is 0


@dataclass(frozen=True, slots=True)
class Series:
    """One line: a value for each epoch, or None where there is none; ``class_`` gives its colour."""

    name: str
    class_: str
    values: Sequence[float | None]

    def at(self, index: int) -> float | None:
        """Return the value that can be drawn there, or None."""
        value = self.values[index]
        if value is None or not math.isfinite(value) or abs(value) > _LARGEST:
            return None
        return value if abs(value) * _LARGEST > 1 else 0.0


@dataclass(frozen=True, slots=True)
class _Plot:
    """Where an epoch and a value stand in the drawing, in pixels."""

    width: int
    height: int
    epochs: Sequence[int]
    low: float
    high: float

    def x(self, epoch: float) -> float:
        first, last = self.epochs[0], self.epochs[-1]
        inner = self.width - _LEFT - _RIGHT
        return _LEFT + inner * ((epoch - first) / (last - first) if last > first else 0.5)

    def y(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.height - _BOTTOM - (self.height - _TOP - _BOTTOM) * share


def epoch_chart(
    epochs: Sequence[int],
    series: Sequence[Series],
    *,
    title: str,
    marked: int | None,
    show: Callable[[float], str],
    bounds: tuple[float, float] | None = None,
    width: int,
    height: int,
) -> Html:
    """Draw lines over rising ``epochs``, of which there is at least one; ``show`` writes a value for a person."""
    step, low, high = _range(series, len(epochs), bounds)
    plot = _Plot(width, height, epochs, low, high)
    names = ", ".join(line.name for line in series)
    return tag(
        "svg",
        tag("text", title, class_="unit", x=0, y=12),
        _legend([line for line in series if line.name != title.lower()], width),
        _value_axis(plot, step),
        _epoch_axis(plot),
        _mark(plot, marked) if marked in epochs else Html(""),
        *(_line(plot, line, marked) for line in series),
        _tooltips(plot, series, show),
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=f"{title} over {len(epochs)} epochs: {names}",
        class_="chart",
    )


def thinned(num_epochs: int, keep: int | None) -> list[int]:
    """Return which of many epochs are drawn, by index: evenly, with the last one and ``keep``."""
    stride = math.ceil(num_epochs / MAX_POINTS) or 1
    wanted = {*range(0, num_epochs, stride), num_epochs - 1}
    return sorted(wanted if keep is None else wanted | {keep})


def _range(series: Sequence[Series], num_epochs: int, bounds: tuple[float, float] | None) -> tuple[float, float, float]:
    """Return the distance of two grid lines, the lowest and the highest of them."""
    drawn = [value for line in series for index in range(num_epochs) if (value := line.at(index)) is not None]
    if bounds is not None:
        return (bounds[1] - bounds[0]) / 4, *bounds
    if not drawn:
        return 1.0, 0.0, 1.0
    low, high = min(drawn), max(drawn)
    if high - low < abs(high) * 1e-3:  # a line that hardly moves must not look as if it did
        low, high = min(low, 0.0), max(high, 0.0)
    step = nice_step(high - low, num_steps=3)
    bottom, top = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return step, bottom, max(top, bottom + step)


def _value_axis(plot: _Plot, step: float) -> Html:
    marks = []
    for index in range(round((plot.high - plot.low) / step) + 1):
        value = plot.low + index * step
        y = plot.y(value)
        marks.append(tag("line", x1=_LEFT, x2=plot.width - _RIGHT, y1=y, y2=y, class_="grid" if index else "axis"))
        shown = 0.0 if abs(value) < step / 1000 else value
        marks.append(tag("text", f"{shown:.4g}", x=_LEFT - 8, y=y + 4, class_="end"))
    return join(*marks)


def _epoch_axis(plot: _Plot) -> Html:
    first, last = plot.epochs[0], plot.epochs[-1]
    wanted = max(2, (plot.width - _LEFT - _RIGHT) // 55)
    step = max(1, round(nice_step(max(last - first, 1), num_steps=wanted)))
    ticks = [epoch for epoch in range(first, last + 1) if epoch % step == 0 or last == first]
    y = plot.height - 6
    return join(*(tag("text", str(epoch), x=plot.x(epoch), y=y, class_="mid") for epoch in ticks))


def _mark(plot: _Plot, marked: int | None) -> Html:
    x = plot.x(marked or 0)
    return tag("line", x1=x, x2=x, y1=_TOP, y2=plot.height - _BOTTOM, class_="mean")


def _line(plot: _Plot, line: Series, marked: int | None) -> Html:
    """Draw a line that breaks off where a value is missing; a value alone, and the marked one, are dots."""
    path, dots, last = [], [], len(plot.epochs) - 1
    drawn = [line.at(index) for index in range(len(plot.epochs))]
    for index, value in enumerate(drawn):
        if value is None:
            continue
        x, y = plot.x(plot.epochs[index]), plot.y(value)
        joined = index > 0 and drawn[index - 1] is not None
        path.append(f"{'L' if joined else 'M'}{x:.1f},{y:.1f}")
        alone = not joined and (index == last or drawn[index + 1] is None)
        if alone or plot.epochs[index] == marked:
            dots.append(tag("circle", cx=x, cy=y, r=3.2, class_=f"dot {line.class_}"))
    return join(tag("path", d="".join(path), class_=f"line {line.class_}") if path else Html(""), *dots)


def _legend(series: Sequence[Series], width: int) -> Html:
    pieces: list[Html] = []
    right = float(width - _RIGHT)
    for line in reversed(series):
        left = right - _CHAR * len(line.name)
        pieces.append(tag("text", line.name, x=right, y=12, class_="end"))
        pieces.append(tag("line", x1=left - _SAMPLE - 6, x2=left - 6, y1=8, y2=8, class_=f"line {line.class_}"))
        right = left - _SAMPLE - 6 - _GAP
    return join(*pieces)


def _tooltips(plot: _Plot, series: Sequence[Series], show: Callable[[float], str]) -> Html:
    """Cover the plot with one invisible strip per epoch, which says its values."""
    places = [plot.x(epoch) for epoch in plot.epochs]
    edges = [_LEFT, *((left + right) / 2 for left, right in pairwise(places))]
    ends = [*edges[1:], plot.width - _RIGHT]
    strips = []
    for index, (start, end) in enumerate(zip(edges, ends, strict=True)):
        values = [(line.name, line.values[index]) for line in series]
        shown = ", ".join(f"{name} {show(value)}" for name, value in values if value is not None)
        strips.append(
            tag(
                "rect",
                tag("title", f"epoch {plot.epochs[index]}: {shown}"),
                x=start,
                y=_TOP,
                width=end - start,
                height=plot.height - _TOP - _BOTTOM,
                class_="hit",
            )
        )
    return join(*strips)
