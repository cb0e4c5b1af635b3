"""The report page of a training, and its model card."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from raypipe import text
from raypipe.records import MAX_MISTAKES, THIS_MODEL, EpochMetrics, TrainingRecord, confused_pairs, is_thumbnail
from raypipe.report.charts import HALF, MAX_LABELS, NARROW, WIDE, Chart, Heatmap, Series, epoch_chart, thinned
from raypipe.report.templating import Tile, leaves, render, render_page

_MAX_PAIRS = 25
_LABEL_CHARS = 24
_TRIAL_METRICS = ("ndcg_at_10", "hr_at_10", "accuracy", "macro_f1", "validation_loss", "train_loss")
_MODEL_NAMES = {
    "classify": "Video classifier",
    "self_train": "Video classifier, self-trained",
    "masked_frame": "GPT-2 over video frames, masked frames",
    "frame_order": "GPT-2 over video frames, frame order",
    "next_video": "GPT-2 over watched videos",
}
_WORST = 10
_TAGS = {"next_video": ["recommendation", "video"]}
_MAX_SETTINGS = 40
_SETTINGS = (  # shown on the model card
    "objective",
    "init_from",
    "problem_type",
    "model",
    "self_train",
    "data",
    "optimizer",
    "seed",
)
_RANKER_SETTINGS = ("objective", "ranker", "optimizer", "seed")
_FACTS = {  # of a history, as a report shows them
    "holdout": "Events that were held out",
    "cut": "Cut",
    "num_events": "Fitted events",
    "num_users": "Users with fitted events",
    "first_event_at": "First event",
    "last_event_at": "Last event",
    "index_version": "Version of the index",
    "embedding_fingerprint": "Fingerprint of the embeddings",
}
_METRICS = (("accuracy", "accuracy", "Accuracy"), ("macro_f1", "f1", "Macro-F1"))  # field; metric type, name on the Hub


class _Curves(NamedTuple):
    """The lines of one chart. ``names`` maps metrics of an epoch to their displayed names. ``show`` formats a value."""

    title: str
    names: Mapping[str, str]
    show: Callable[[float], str]
    bounds: tuple[float, float] | None = None
    height: int = 190


_LOSS = _Curves("Loss", {"train_loss": "training", "validation_loss": "validation"}, text.format_loss)
_SCORE = _Curves(
    "Accuracy and macro-F1", {"accuracy": "accuracy", "macro_f1": "macro-F1"}, text.format_score, (0.0, 1.0)
)
_RANKS = _Curves("NDCG@10 and HR@10", {"hr_at_10": "HR@10", "ndcg_at_10": "NDCG@10"}, "{:.4f}".format)
_RATE = _Curves("Learning rate", {"learning_rate": "learning rate"}, "{:.2g}".format, height=110)


def training_page(record: TrainingRecord) -> str:
    """Return the report of a training as one HTML document."""
    inputs = ("index", "history") if record.objective == "next_video" else ("embeddings", "labels")
    run = {name: getattr(record, f"{name}_uri") for name in (*inputs, "output", "model")}
    trials = [trial.metrics for trial in record.trials]
    return render_page(
        "training.html",
        record,
        job="train",
        headline=headline(record),
        uris=(getattr(record, f"{inputs[0]}_uri"), record.output_uri),
        tiles=_tiles(record),
        bad_tile="Left out",
        run={"objective": record.objective} | run,
        loss_trouble=_loss_trouble(record),
        curves=_curves(record),
        facts=learned_from(record),
        deletion=_deletion(record),
        confusion=_confusion(record),
        classes=_classes(record),
        mistakes=sorted(record.mistakes, key=lambda mistake: -text.finite(mistake.score))[:MAX_MISTAKES],
        is_thumbnail=is_thumbnail,
        this_model=THIS_MODEL,
        trial_metrics=[name for name in _TRIAL_METRICS if any(getattr(m, name, None) is not None for m in trials)],
    )


def headline(record: TrainingRecord) -> str:
    """Describe the quality of the kept checkpoint in one sentence."""
    kept = record.kept
    if kept is None:
        ended = {"failed": "Training failed", "interrupted": "Training was interrupted"}.get(record.outcome)
        return f"{ended} before the first epoch ended" if ended else "No epoch has ended"
    if kept.ndcg_at_10 is not None:
        users = text.plural(record.num_validation_videos, "user")
        return f"NDCG@10 {text.format_metric('ndcg_at_10', kept.ndcg_at_10)} for {users}"
    videos = text.plural(record.num_validation_videos, "validation video")
    if record.objective == "classify" and not record.several_labels and _is_number(kept.accuracy):
        return f"{text.format_metric('accuracy', kept.accuracy)} of {videos} right"
    if record.objective == "classify" and _is_number(kept.macro_f1):
        return f"Macro-F1 {text.format_metric('macro_f1', kept.macro_f1)} on {videos}"
    if kept.validation_loss is not None:
        return f"Loss {text.format_loss(kept.validation_loss)} on {videos}"
    return f"Training loss {text.format_loss(kept.train_loss)}, with no validation {record.sample_noun}s"


def most_common_label(record: TrainingRecord) -> tuple[str, float] | None:
    """Return the most common true label, and the accuracy of a model that always predicts it.

    Return None if videos may have several labels, or if there are no validation videos.
    """
    whole = sum(metrics.support for metrics in record.classes)
    if record.several_labels or not whole:
        return None
    largest = max(record.classes, key=lambda metrics: metrics.support)
    return largest.label, largest.support / whole


def left_out(record: TrainingRecord) -> str:
    """Describe the videos that could not be used for training. Return an empty text if all were used."""
    counts = {"embeddings": record.num_unknown_labels, "frames": record.num_without_frames}
    return ", ".join(f"{text.format_count(count)} without {what}" for what, count in counts.items() if count)


def learned_from(record: TrainingRecord) -> list[tuple[str, str]]:
    """Return what was learned from besides labelled videos, and how many events were left out, as pairs of texts."""
    if record.self_training is not None:
        return [("Given labels", str(record.self_training))]
    facts = {
        _FACTS[name]: value for name, value in record.history_facts.items() if name in _FACTS and value is not None
    }
    if record.is_refitted and record.kept is not None:
        facts["Fitted again on all these events, for"] = text.plural(record.kept.epoch, "epoch")
    shown = {name: text.format_count(value) if isinstance(value, int) else str(value) for name, value in facts.items()}
    counts = {reason.replace("_", " "): count for reason, count in record.history_counts.items()}
    return [*shown.items(), *((f"Left out: {reason}", text.format_count(count)) for reason, count in counts.items())]


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _loss_trouble(record: TrainingRecord) -> str:
    """Describe the first loss that is NaN or infinite. Return an empty text if all losses are finite."""
    for metrics in record.epochs:
        for name in ("train_loss", "validation_loss"):
            if (value := getattr(metrics, name)) is not None and not math.isfinite(value):
                what = f"The {text.metric_name(name)} of epoch {metrics.epoch} is {text.format_loss(value)}"
                return f"{what}: a smaller learning rate or float32 may help."
    return ""


def _tiles(record: TrainingRecord) -> list[Tile]:
    """Return the tiles at the top of the page, as (name, number, note)."""
    tiles = _score_tiles(record)
    held_out = text.format_count(record.num_validation_videos)
    note = f"and {held_out} for validation" if record.num_validation_videos else ""
    tiles.append((f"Training {record.sample_noun}s", text.format_count(record.num_train_videos), note))
    if record.objective == "classify":
        each = "a video may have several" if record.several_labels else "one per video"
        tiles.append(("Labels", text.format_count(len(record.label_names)), each))
    if missing := record.num_unknown_labels + record.num_without_frames:
        tiles.append(("Left out", text.format_count(missing), left_out(record)))
    if record.num_parameters:
        everything = record.num_trainable_parameters == record.num_parameters
        trained = "all" if everything else text.format_parameters(record.num_trainable_parameters)
        tiles.append(("Parameters", text.format_parameters(record.num_parameters), f"{trained} trained"))
    if steps := [metrics for metrics in record.epochs if metrics.epoch]:
        speeds = sorted(text.finite(metrics.samples_per_second) for metrics in steps)
        tiles.append(("Samples per second", text.format_speed(speeds[len(speeds) // 2]), "median over epochs"))
    restarts = f", {text.plural(record.num_restarts, 'restart')}" if record.num_restarts else ""
    workers = f"on {text.plural(record.num_workers, 'worker')}{restarts}"
    return [*tiles, ("Wall time", text.format_seconds(record.elapsed_seconds), workers)]


def _score_tiles(record: TrainingRecord) -> list[Tile]:
    kept = record.kept
    if kept is None:
        return []
    notes = {"macro-F1": "mean over labels"}
    if (common := most_common_label(record)) is not None:
        label, share = common
        label = text.shorten(label, max_chars=_LABEL_CHARS)
        notes["accuracy"] = f"{text.format_share(share)} by always predicting {label}"
    if record.several_labels:
        notes["accuracy"] = "videos with all labels correct"
    tiles = [(text.heading(name), number, notes.get(name, "")) for name, number in record.kept_metrics]
    last = record.epochs[-1].epoch
    if kept.epoch == 0:
        return [
            *tiles,
            ("Kept", "probe", f"GPT-2 did not help in {text.plural(last, 'epoch')}" if last else "as asked"),
        ]
    chosen = record.kept_why if record.best_epoch is not None else "the last one"
    return [*tiles, ("Kept epoch", f"{kept.epoch} of {last}" if last > 1 else f"{kept.epoch}", chosen)]


def _curves(record: TrainingRecord) -> Mapping[str, object] | None:
    """Return the charts, and the epochs and metrics for the table below the charts.

    Return None if no epoch has ended.
    """
    numbers = [metrics.epoch for metrics in record.epochs]
    if not numbers:
        return None
    kept = numbers.index(record.best_epoch) if record.best_epoch in numbers else None
    epochs = [record.epochs[index] for index in thinned(len(numbers), kept)]
    scores = [
        curves
        for curves in (_SCORE, _RANKS)
        if any(getattr(metrics, name) is not None for metrics in epochs for name in curves.names)
    ]
    row = [(_LOSS, HALF), (scores[0], HALF)] if scores else [(_LOSS, WIDE)]
    rows = [row, [(_RATE, WIDE)]] if len(epochs) > 1 else [row]
    note = "Measured after each epoch."
    if record.best_epoch is not None:
        note += f" Epoch {record.best_epoch} (dotted line) is kept: it has {record.kept_why}."
    measured = [name for name in record.metric_names if any(getattr(metrics, name) is not None for metrics in epochs)]
    return {
        "charts": [
            [[_chart(curves, epochs, record.best_epoch, pixels) for pixels in (width, NARROW)] for curves, width in row]
            for row in rows
        ],
        "note": note,
        "epochs": epochs,
        "metrics": measured,
    }


def _chart(curves: _Curves, epochs: Sequence[EpochMetrics], marked: int | None, width: int) -> Chart:
    values = {name: [getattr(metrics, name) for metrics in epochs] for name in curves.names}
    present = [name for name in values if any(value is not None for value in values[name])]
    series = [Series(curves.names[name], "main" if name == present[-1] else "other", values[name]) for name in present]
    numbers, (title, _, show, bounds, height) = [metrics.epoch for metrics in epochs], curves
    return epoch_chart(
        numbers, series, title=title, marked=marked, show=show, bounds=bounds, width=width, height=height
    )


def _deletion(record: TrainingRecord) -> Mapping[str, object] | None:
    """Return the chart of the deletion test, and what it found. Return None if it was not run."""
    found = record.deletion
    if found is None:
        return None
    percents = [round(100 * fraction) for fraction in found.fractions]
    series = [Series("random", "other", found.at_random), Series("by score", "main", found.by_score)]
    charts = [
        epoch_chart(
            percents,
            series,
            title="Probability of the label",
            marked=None,
            show=text.format_score,
            bounds=(0.0, 1.0),
            noun="percent of frames",
            width=width,
            height=190,
        )
        for width in (WIDE, NARROW)
    ]
    verdict = "they name the frames that a prediction depends on" if found.is_better else "do not rely on them"
    interval = f"[{found.difference_low:+.3f}, {found.difference_high:+.3f}]"
    videos = text.plural(found.num_videos, "validation video")
    note = f"Area between the curves {found.difference:+.3f} {interval}, on {videos}: {verdict}."
    return {"charts": [[charts]], "note": note}


def _confusion(record: TrainingRecord) -> Mapping[str, object] | None:
    """Return the confusion matrix if it is small enough to draw, otherwise the most frequently confused labels."""
    if not record.confusion or not any(map(any, record.confusion)):
        return None
    if len(record.label_names) <= MAX_LABELS:
        note = "Rows are true labels, columns are predicted labels. The color shows the share of the row."
        heatmap = Heatmap(record.label_names, record.confusion)
        return {"title": "Confusion matrix", "heatmap": heatmap, "pairs": [], "note": note}
    pairs = confused_pairs(record)
    shown = pairs[:_MAX_PAIRS]
    most = f"The {len(shown)} most frequently confused of {text.plural(len(pairs), 'pair')}"
    note = f"{most}, with the share of the true label's videos." if pairs else ""
    return {"title": "Confused labels", "heatmap": None, "pairs": shown, "note": note}


def _classes(record: TrainingRecord) -> Mapping[str, object] | None:
    """Return the metrics of all labels, worst F1 first. Labels without a validation video come last."""
    if not record.classes:
        return None
    note = "On the validation videos, worst F1 first."
    if missing := sum(not metrics.support for metrics in record.classes):
        note += f" Nothing is known about {text.plural(missing, 'label')} without a validation video."
    ranked = sorted(record.classes, key=lambda metrics: (not metrics.support, text.finite(metrics.f1)))
    return {"rows": ranked, "note": note}


def model_card(record: TrainingRecord) -> str:
    """Return the ``README.md`` of the kept checkpoint. Text from users is never parsed as Markdown."""
    name = _MODEL_NAMES[record.objective]
    names = _RANKER_SETTINGS if record.objective == "next_video" else _SETTINGS
    settings = {key: value for key, value in record.settings.items() if key in names}
    seen = sorted((label for label in record.classes if label.support), key=lambda label: text.finite(label.f1))
    body = render(
        "model_card.md",
        record=record,
        name=name,
        headline=headline(record),
        left_out=left_out(record),
        most_common_label=most_common_label(record),
        settings=list(leaves(settings))[:_MAX_SETTINGS],
        facts=learned_from(record),
        worst=seen[:_WORST],
        num_seen=len(seen),
        num_unseen=len(record.classes) - len(seen),
        fingerprint=str(record.settings.get("embedding_fingerprint") or ""),
    )
    return f"---\n{_header(record, name)}\n---\n\n{body}"


def _header(record: TrainingRecord, name: str) -> str:
    """Return the YAML metadata for the Hub. It contains no text from users."""
    # This import is slow, and only trainings write a card.
    from huggingface_hub import EvalResult, ModelCardData  # noqa: PLC0415

    classifies = bool(record.label_names)
    kind = "multi-label" if record.several_labels else "video"
    measured = classifies and record.num_validation_videos
    results = [
        EvalResult(
            task_type="video-classification",
            task_name="Video classification",
            dataset_type="raypipe-embeddings",
            dataset_name="validation split",
            metric_type=metric_type,
            metric_name=metric_name,
            metric_value=round(float(value), 6),
        )
        for field, metric_type, metric_name in _METRICS
        if measured and (value := getattr(record.kept, field, None)) is not None and math.isfinite(value)
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="video-classification" if classifies else "feature-extraction",
        tags=["raypipe", "gpt2", *_TAGS.get(record.objective, ["frame-embeddings", kind])],
        model_name=name if results else None,
        eval_results=results or None,
    ).to_yaml()
