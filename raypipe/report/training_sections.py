"""The parts of a training's page below its headline: each takes the record and returns markup, or nothing."""

from collections.abc import Sequence

from raypipe.records import (
    MAX_MISTAKES,
    MAX_THUMBNAIL_BYTES,
    ClassMetrics,
    EpochMetrics,
    Mistake,
    TrainingRecord,
    confused_pairs,
)
from raypipe.report import document, sections
from raypipe.report.charts import share_bar
from raypipe.report.heatmap import MAX_LABELS, confusion_matrix
from raypipe.report.markup import Html, tag
from raypipe.report.training_text import (
    format_metric,
    format_score,
    loss_trouble,
    metric_name,
    selected_name,
    title,
)
from raypipe.text import NOTHING, finite, format_count, format_share, plural, redact, shorten

_OPEN_CLASSES = 15
_MAX_PAIRS = 25
_LABEL_CHARS = 60
_CAPTION_CHARS = 44


def troubles(record: TrainingRecord) -> Html:
    """Say how the training ended where it did not end well, and where a loss was no number."""
    lines = [line for line in (redact(record.message), loss_trouble(record)) if line]
    return tag("aside", *(tag("p", tag("bdi", line)) for line in lines), class_="trouble") if lines else Html("")


def confusion(record: TrainingRecord) -> Html:
    """Show which label is taken for which: all of them while they can be drawn, else the pairs confused most."""
    if not record.confusion or not any(map(any, record.confusion)):
        return Html("")
    if len(record.label_names) <= MAX_LABELS:
        drawn = tag("div", confusion_matrix(record.label_names, record.confusion), class_="scroll")
        note = "Rows: the true label; columns: the predicted one. The colour is the share of the row."
        return sections.section("Which label is taken for which", drawn, note=note)
    pairs = confused_pairs(record)
    rows = [
        tag(
            "tr",
            tag("td", _label(true), tag("span", " → ", class_="arrow"), _label(predicted), class_="wide"),
            tag("td", format_count(count), class_="num"),
            tag("td", format_share(count / whole), class_="num"),
        )
        for true, predicted, count, whole in pairs[:_MAX_PAIRS]
    ]
    if not rows:
        return sections.section("Which label is taken for which", tag("p", "No video is predicted wrong."))
    head = document.table_head("True → predicted", "Videos", "Share")
    most = f"The {plural(len(rows), 'pair')} confused most often, of {format_count(len(pairs))}"
    note = f"{most}, and their share of the true label's videos."
    return sections.section("Which label is taken for which", tag("table", head, *rows), note=note)


def classes(record: TrainingRecord) -> Html:
    """List the labels, those that are predicted worst first, those without a validation video last."""
    if not record.classes:
        return Html("")
    ranked = sorted(record.classes, key=lambda metrics: (not metrics.support, finite(metrics.f1)))
    shown, folded = ranked[:_OPEN_CLASSES], ranked[_OPEN_CLASSES:]
    more = Html("")
    if folded:
        more = tag("details", tag("summary", f"Show {format_count(len(folded))} more"), _class_table(folded))
    missing = sum(not metrics.support for metrics in ranked)
    note = "On the validation videos, the worst first."
    if missing:
        note += f" {plural(missing, 'label')} without a validation video, of which nothing is known."
    return sections.section("Label by label", _class_table(shown), more, note=note)


def _class_table(ranked: Sequence[ClassMetrics]) -> Html:
    rows = []
    for metrics in ranked:
        numbers = [metrics.f1, metrics.precision, metrics.recall]
        shown = [format_score(number) if metrics.support else NOTHING for number in numbers]
        rows.append(
            tag(
                "tr",
                tag("th", _label(metrics.label), class_="wide", scope="row"),
                tag("td", share_bar(finite(metrics.f1), "shade0"), class_="bar roomy"),
                *(tag("td", number, class_="num") for number in shown),
                tag("td", format_count(metrics.support), class_="num"),
                tag("td", format_count(metrics.predicted), class_="num roomy"),
            )
        )
    head = document.table_head("Label", "", "F1", "Precision", "Recall", "Videos", "Predicted", roomy={"", "Predicted"})
    return tag("table", head, *rows, class_="classes")


def trials(record: TrainingRecord) -> Html:
    """List the trainings of a search, the best marked."""
    if not record.trials:
        return Html("")
    measured = ("accuracy", "macro_f1", "validation_loss", "train_loss")
    names = [
        name for name in measured if any(getattr(trial.metrics, name, None) is not None for trial in record.trials)
    ]
    best = record.best_trial
    rows = []
    for trial in record.trials:
        changed = ", ".join(f"{key} {value}" for key, value in sections.leaves(trial.settings)) or NOTHING
        pill = tag("span", "best", class_="pill") if trial is best else Html("")
        rows.append(
            tag(
                "tr",
                tag("th", tag("bdi", shorten(trial.name, max_chars=_LABEL_CHARS)), pill, scope="row"),
                tag("td", tag("bdi", redact(changed)), class_="wide"),
                tag("td", trial.outcome, class_="" if trial.outcome == "finished" else "bad"),
                tag("td", NOTHING if trial.best_epoch is None else str(trial.best_epoch), class_="num"),
                *(tag("td", _measured(trial.metrics, name), class_="num") for name in names),
                class_="best" if trial is best else "",
            )
        )
    head = document.table_head(
        "Trial",
        "Settings",
        "Outcome",
        "Epoch",
        *(title(metric_name(name)) for name in names),
        left={"Settings", "Outcome"},
    )
    note = f"Each is a training of its own; the best {selected_name(record)} is kept."
    return sections.section(
        "Search", tag("div", tag("table", head, *rows, class_="trials"), class_="scroll"), note=note
    )


def mistakes(record: TrainingRecord) -> Html:
    """Show the videos whose true label seemed least likely, as pictures."""
    ranked = sorted(record.mistakes, key=lambda mistake: -finite(mistake.score))[:MAX_MISTAKES]
    if not ranked:
        return Html("")
    note = (
        "The validation videos that are predicted wrong with the highest probability: the predicted label, then the "
        "true one, with the probability of each. Labels that are themselves wrong are often found here."
    )
    figures = tag("div", *map(_figure, ranked), class_="gallery")
    return sections.section("The videos it is most wrong about", figures, note=note)


def _figure(mistake: Mistake) -> Html:
    jpeg = mistake.thumbnail or b""
    pictured = jpeg.startswith(b"\xff\xd8\xff") and len(jpeg) <= MAX_THUMBNAIL_BYTES
    return tag(
        "figure",
        sections.picture(jpeg) if pictured else tag("div", "no picture", class_="nopicture"),
        tag(
            "figcaption",
            tag("p", _label(mistake.predicted), f" {format_share(finite(mistake.score))}", class_="saidlabel"),
            tag("p", "is ", _label(mistake.label), f" {format_share(finite(mistake.label_score))}", class_="truelabel"),
            tag("p", tag("bdi", shorten(mistake.video_id, max_chars=_CAPTION_CHARS)), title=mistake.video_id),
        ),
    )


def settings(record: TrainingRecord) -> Html:
    """Show what the training was started with, on what, and with which versions."""
    run = {
        "objective": record.objective,
        "embeddings": record.embeddings_uri,
        "labels": record.labels_uri,
        "output": record.output_uri,
        "model": record.model_uri,
    }
    groups = (("Run", run), ("Settings", record.settings), ("Machine", record.machine), ("Versions", record.versions))
    return sections.facts(record.command, groups)


def _label(label: str) -> Html:
    shown = shorten(label, max_chars=_LABEL_CHARS)
    return tag("bdi", shown) if shown == label else tag("bdi", shown, title=label)


def _measured(metrics: EpochMetrics | None, name: str) -> str:
    return format_metric(name, getattr(metrics, name, None))
