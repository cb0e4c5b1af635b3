"""The epochs of a training on its page: drawn as lines, and number by number below them."""

from collections.abc import Callable, Mapping

from raypipe.records import EpochMetrics, TrainingRecord
from raypipe.report import document, sections
from raypipe.report.curves import Series, epoch_chart, thinned
from raypipe.report.markup import Html, tag
from raypipe.report.training_text import (
    format_loss,
    format_metric,
    format_score,
    metric_name,
    metric_names,
    selected_name,
    title,
)
from raypipe.text import format_seconds

_NARROW = 340  # the width for a phone, in pixels: each chart is drawn twice, so that its labels keep their size
_WIDE, _HALF = 920, 432


def curves(record: TrainingRecord) -> Html:
    """Draw what was measured after each epoch."""
    shown = _drawn(record)
    if not shown:
        return Html("")
    loss = {"train_loss": "training", "validation_loss": "validation"}
    score = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
    scored = any(getattr(metrics, name) is not None for metrics in shown for name in score)

    def chart(heading: str, names: Mapping[str, str], width: int, *, height: int = 190) -> Html:
        show = {"Loss": format_loss, "Learning rate": "{:.2g}".format}.get(heading, format_score)
        bounds = (0.0, 1.0) if names is score else None
        wide, narrow = (
            _chart(shown, heading, names, record.best_epoch, show=show, bounds=bounds, size=(pixels, height))
            for pixels in (width, _NARROW)
        )
        return tag("div", tag("div", wide, class_="wide"), tag("div", narrow, class_="narrow"), class_="curve")

    first = chart("Loss", loss, _HALF if scored else _WIDE)
    if scored:
        first = tag("div", first, chart("Accuracy and macro-F1", score, _HALF), class_="pair")
    rate = Html("")
    if len(shown) > 1:
        rate = chart("Learning rate", {"learning_rate": "learning rate"}, _WIDE, height=110)
    note = "After each epoch."
    if record.best_epoch is not None:
        note += f" Epoch {record.best_epoch}, at the dotted line, is kept: it has the best {selected_name(record)}."
    return sections.section("Curves", first, rate, _table(record, shown), note=note)


def _drawn(record: TrainingRecord) -> list[EpochMetrics]:
    epochs = [metrics.epoch for metrics in record.epochs]
    kept = epochs.index(record.best_epoch) if record.best_epoch in epochs else None
    return [record.epochs[index] for index in thinned(len(epochs), kept)] if epochs else []


def _chart(
    shown: list[EpochMetrics],
    heading: str,
    names: Mapping[str, str],
    marked: int | None,
    *,
    show: Callable[[float], str],
    bounds: tuple[float, float] | None,
    size: tuple[int, int],
) -> Html:
    measured = {name: [getattr(metrics, name) for metrics in shown] for name in names}
    present = [name for name, values in measured.items() if any(value is not None for value in values)]
    series = [
        Series(names[name], "other" if index < len(present) - 1 else "main", measured[name])
        for index, name in enumerate(present)
    ]
    epochs = [metrics.epoch for metrics in shown]
    width, height = size
    return epoch_chart(
        epochs, series, title=heading, marked=marked, show=show, bounds=bounds, width=width, height=height
    )


def _table(record: TrainingRecord, shown: list[EpochMetrics]) -> Html:
    names = [name for name in metric_names(record) if any(getattr(metrics, name) is not None for metrics in shown)]
    rows = [
        tag(
            "tr",
            tag("th", f"{metrics.epoch}", scope="row"),
            *(tag("td", format_metric(name, getattr(metrics, name)), class_="num") for name in names),
            tag("td", format_seconds(metrics.seconds), class_="num"),
            class_="best" if metrics.epoch == record.best_epoch else "",
        )
        for metrics in shown
    ]
    head = document.table_head("Epoch", *(title(metric_name(name)) for name in names), "Time")
    return tag(
        "details",
        tag("summary", "Epoch by epoch"),
        tag("div", tag("table", head, *rows, class_="epochs"), class_="scroll"),
    )
