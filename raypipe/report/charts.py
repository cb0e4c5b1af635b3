"""The drawings of a report as inline SVG: no script, no style attribute, colours by class."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raypipe.report.markup import Html, join, tag
from raypipe.text import format_rate, format_seconds

_TIME_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 2, 26, 24  # pixels around the plot, for its labels


@dataclass(frozen=True, slots=True)
class Rate:
    """How much per second in one span of time."""

    start_seconds: float
    end_seconds: float
    per_second: float


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where a time and a rate stand in the drawing, in pixels."""

    width: int
    height: int
    max_seconds: float
    max_rate: float

    def x(self, seconds: float) -> float:
        return _LEFT + (self.width - _LEFT - _RIGHT) * seconds / self.max_seconds

    def y(self, per_second: float) -> float:
        return self.height - _BOTTOM - (self.height - _TOP - _BOTTOM) * per_second / self.max_rate


def rate_chart(rates: Sequence[Rate], *, mean: float, unit: str, width: int, height: int) -> Html:
    """Draw rates over time as steps, with both axes and a line at ``mean``; at least one rate, sizes in pixels."""
    step = nice_step(max(rate.per_second for rate in rates), num_steps=3)
    top = step * max(1, math.ceil(max(rate.per_second for rate in rates) / step - 1e-9))
    scale = _Scale(width, height, max_seconds=rates[-1].end_seconds, max_rate=top)
    edge = " ".join(
        f"H{scale.x(rate.start_seconds):.1f}V{scale.y(rate.per_second):.1f}H{scale.x(rate.end_seconds):.1f}"
        for rate in rates
    )
    base = scale.y(0)
    area = f"M{scale.x(0):.1f},{base:.1f}{edge}V{base:.1f}Z"
    line = f"M{scale.x(0):.1f},{scale.y(rates[0].per_second):.1f}{edge}"
    label = f"{unit} over {format_seconds(scale.max_seconds)}; mean {format_rate(mean)}"
    return tag(
        "svg",
        tag("text", unit, class_="unit", x=0, y=12),
        _mean_line(scale, min(mean, top), mean),
        _rate_axis(scale, step),
        tag("path", d=area, class_="area"),
        tag("path", d=line, class_="line"),
        _time_axis(scale),
        _tooltips(scale, rates, unit),
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
        class_="chart",
    )


def stacked_bar(parts: Sequence[tuple[str, float, str]]) -> Html:
    """Draw one bar of (class, share of one, title) parts side by side, as wide as its place."""
    pieces, start = [], 0.0
    for class_, share, title in parts:
        pieces.append(
            tag("rect", tag("title", title), x=1000 * start, y=0, width=1000 * share, height=20, class_=class_)
        )
        start += share
    label = ", ".join(title for _, _, title in parts)
    return tag(
        "svg", *pieces, viewBox="0 0 1000 20", preserveAspectRatio="none", role="img", aria_label=label, class_="stack"
    )


def share_bar(share: float, class_: str) -> Html:
    """Draw a bar that fills ``share`` of its place; what is above nothing is seen."""
    width = max(100 * min(share, 1.0), 1.0) if share > 0 else 0.0
    return tag(
        "svg",
        tag("rect", x=0, y=0, width=100, height=8, class_="track"),
        tag("rect", x=0, y=0, width=width, height=8, class_=class_),
        viewBox="0 0 100 8",
        preserveAspectRatio="none",
        aria_hidden="true",
        class_="share",
    )


def nice_step(largest: float, *, num_steps: int) -> float:
    """Return 1, 2 or 5 times a power of ten, so that about ``num_steps`` of it reach ``largest``."""
    if largest <= 0:
        return 1.0
    raw = largest / num_steps
    power = 10.0 ** math.floor(math.log10(raw))
    return power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))


def _rate_axis(scale: _Scale, step: float) -> Html:
    marks = []
    for index in range(round(scale.max_rate / step) + 1):
        y = scale.y(index * step)
        marks.append(tag("line", x1=_LEFT, x2=scale.width - _RIGHT, y1=y, y2=y, class_="grid" if index else "axis"))
        marks.append(tag("text", f"{index * step:,.10g}", x=_LEFT - 8, y=y + 4, class_="end"))
    return join(*marks)


def _time_axis(scale: _Scale) -> Html:
    # One label needs about 70 pixels.
    wanted = scale.max_seconds / max(2, (scale.width - _LEFT - _RIGHT) // 70)
    step = next((step for step in _TIME_STEPS if step >= wanted), 86_400 * math.ceil(wanted / 86_400))
    marks = []
    for index in range(int(scale.max_seconds / step + 1e-9) + 1):
        x = scale.x(index * step)
        last = x > scale.width - _RIGHT - 12
        marks.append(tag("text", _time_label(index * step), x=x, y=scale.height - 6, class_="end" if last else "mid"))
    return join(*marks)


def _time_label(seconds: int) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            whole, rest = divmod(seconds, size)
            half = {86_400: 3600, 3600: 60, 60: 1}[size]
            return f"{whole}{unit}{rest // half:02d}" if rest else f"{whole}{unit}"
    return f"{seconds}s" if seconds else "0"


def _mean_line(scale: _Scale, at: float, mean: float) -> Html:
    y = scale.y(at)
    return join(
        tag("line", x1=_LEFT, x2=scale.width - _RIGHT, y1=y, y2=y, class_="mean"),
        tag("text", f"mean {format_rate(mean)}", x=scale.width - _RIGHT, y=12, class_="end meanlabel"),
    )


def _tooltips(scale: _Scale, rates: Sequence[Rate], unit: str) -> Html:
    return join(
        *(
            tag(
                "rect",
                tag(
                    "title",
                    f"{format_seconds(rate.start_seconds)} to {format_seconds(rate.end_seconds)}: "
                    f"{format_rate(rate.per_second)} {unit}",
                ),
                x=scale.x(rate.start_seconds),
                y=_TOP,
                width=scale.x(rate.end_seconds) - scale.x(rate.start_seconds),
                height=scale.height - _TOP - _BOTTOM,
                class_="hit",
            )
            for rate in rates
        )
    )
