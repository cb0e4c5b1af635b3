"""The card of a trained model: Markdown with the header that the Hugging Face Hub reads."""

import re
from collections.abc import Iterable, Sequence

import yaml

from raypipe.records import EpochMetrics, TrainingRecord
from raypipe.report import sections
from raypipe.report.training_text import (
    format_parameters,
    format_score,
    headline,
    left_out,
    measured,
    most_common_label,
    selected_name,
    title,
)
from raypipe.text import NOTHING, finite, format_count, plural, redact, shorten, visible

_WORST = 10
_MAX_CHARS = 120
_MAX_SETTINGS = 40
_SETTINGS = ("objective", "init_from", "problem_type", "model", "data", "optimizer", "seed")  # those that matter
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+!|~&@:$]|(?<=www)\.)", re.IGNORECASE)
_USE = """```python
from raypipe.models.classifier import VideoClassifier

model = VideoClassifier.from_pretrained("PATH")
```"""


def model_card(record: TrainingRecord) -> str:
    """Return the ``README.md`` of the kept checkpoint; text of users is shown as it is and never read as Markdown."""
    parts = [
        f"---\n{yaml.safe_dump(_header(record), sort_keys=False, width=1000)}---",
        f"# {_name(record)}",
        _what(record),
        "## Training",
        _training(record),
        "## Evaluation",
        *_evaluation(record),
        "## Use",
        *_use(record),
        "## Limits",
        _limits(record),
    ]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Return ``text`` so that Markdown shows it as it is, within a line or in a table."""
    return _MARKDOWN.sub(r"\\\1", shorten(visible(redact(text.strip())), max_chars=_MAX_CHARS)) or NOTHING


def _code(text: str) -> str:
    """Return ``text`` as code, between more backticks than it has in a row."""
    shown = shorten(visible(redact(text)), max_chars=2 * _MAX_CHARS)
    fence = "`" * (max(map(len, re.findall("`+", shown)), default=0) + 1)
    padded = f" {shown} " if "`" in shown or shown != shown.strip() else shown
    return f"{fence}{padded}{fence}"


def _name(record: TrainingRecord) -> str:
    return "GPT-2 over video frames" + (", masked frames" if record.objective == "masked_frame" else "")


def _header(record: TrainingRecord) -> dict[str, object]:
    classifies = record.objective == "classify"
    header: dict[str, object] = {
        "library_name": "transformers",
        "pipeline_tag": "video-classification" if classifies else "feature-extraction",
        "tags": ["raypipe", "gpt2", "frame-embeddings", "multi-label" if record.several_labels else "video"],
    }
    metrics = _values(record.kept) if classifies else []
    if metrics and record.num_validation_videos:
        result = {
            "task": {"type": "video-classification", "name": "Video classification"},
            "dataset": {"type": "raypipe-embeddings", "name": "validation split"},
            "metrics": metrics,
        }
        header["model-index"] = [{"name": _name(record), "results": [result]}]
    return header


def _values(kept: EpochMetrics | None) -> list[dict[str, object]]:
    names = {"accuracy": ("accuracy", "Accuracy"), "macro_f1": ("f1", "Macro-F1")}
    found = [(name, getattr(kept, name, None)) for name in names]
    return [
        {"type": names[name][0], "name": names[name][1], "value": round(float(value), 6)}
        for name, value in found
        if value is not None and finite(value) == value
    ]


def _what(record: TrainingRecord) -> str:
    if record.objective == "masked_frame":
        task = "It says what the embedding of a hidden frame is: the self-supervised start of a classifier."
    else:
        each = "any number of" if record.several_labels else "one of"
        task = f"It gives a video {each} {plural(len(record.label_names), 'label')}."
    early = record.outcome in {"failed", "interrupted"}
    ended = f" Its training ended early: it was {record.outcome}." if early else ""
    first = f"A GPT-2 that reads the embeddings of a video's frames instead of words. {task}{ended}"
    return f"{first}\n\n{headline(record)}."


def _training(record: TrainingRecord) -> str:
    trained, held_out = format_count(record.num_train_videos), format_count(record.num_validation_videos)
    weights = f"{format_parameters(record.num_parameters)}, of them trained: "
    weights += format_parameters(record.num_trainable_parameters)
    lines = [
        f"Embeddings: {_code(record.embeddings_uri)}" if record.embeddings_uri else "",
        f"Labels: {_code(record.labels_uri)}" if record.labels_uri else "",
        f"Videos: {trained} to train on, {held_out} held out",
        f"Left out: {left_out(record)}" if left_out(record) else "",
        f"Parameters: {weights}" if record.num_parameters else "",
        _epochs(record),
    ]
    settings = {key: value for key, value in record.settings.items() if key in _SETTINGS}
    rows = [(escaped(key), escaped(value)) for key, value in sections.leaves(settings)][:_MAX_SETTINGS]
    listed = "\n".join(f"- {line}" for line in lines if line)
    return f"{listed}\n\n{_table(('Setting', 'Value'), rows)}" if rows else listed


def _epochs(record: TrainingRecord) -> str:
    kept = record.kept
    if kept is None:
        return "No epoch has ended"
    chosen = f", which has the best {selected_name(record)}" if record.best_epoch is not None else ""
    return f"Kept: epoch {kept.epoch} of {record.epochs[-1].epoch}, {plural(kept.step, 'optimizer step')} in{chosen}"


def _evaluation(record: TrainingRecord) -> list[str]:
    kept = record.kept
    if kept is None:
        return ["Nothing was measured."]
    where = f"On {plural(record.num_validation_videos, 'video')} held out of the training."
    rows = [(title(name), number) for name, number in measured(record, kept)]
    parts = [where if record.num_validation_videos else "No videos were held out.", _table(("Metric", "Value"), rows)]
    common = most_common_label(record)
    if common is not None:
        parts.append(f"Always saying {escaped(common[0])} would have an accuracy of {100 * common[1]:.1f}%.")
    seen = sorted((metrics for metrics in record.classes if metrics.support), key=lambda metrics: finite(metrics.f1))
    if seen:
        worst = [
            (escaped(m.label), format_score(m.f1), format_score(m.precision), format_score(m.recall), f"{m.support:,}")
            for m in seen[:_WORST]
        ]
        told = "Label by label, the worst first:"
        if len(seen) > _WORST:
            told = f"The {_WORST} labels with the lowest F1:"
        parts += [told, _table(("Label", "F1", "Precision", "Recall", "Videos"), worst)]
    return parts


def _use(record: TrainingRecord) -> list[str]:
    if record.objective == "masked_frame":
        return ["Name this folder as `--init-from` of `raypipe train` to start a classifier from it."]
    inputs = "`model(frame_embeddings=..., attention_mask=...)` takes embeddings `[B, T, D]` and a mask `[B, T]`"
    names = "`model.config.label_names` are the labels, in the order of the logits."
    several = " A label applies where the sigmoid of its logit is above one half." if record.several_labels else ""
    return [
        "`PATH` is the folder of this card. It needs raypipe, and neither Ray nor a GPU.",
        _USE,
        f"{inputs} that is 0 behind a video's end. {names}{several}",
    ]


def _limits(record: TrainingRecord) -> str:
    fingerprint = record.settings.get("embedding_fingerprint")
    of = f" of fingerprint {_code(str(fingerprint))}" if fingerprint else " made with the settings it was trained on"
    lines = [f"It reads embeddings{of}. Those of another backbone or of other settings mean something else to it."]
    if record.num_validation_videos:
        lines.append(
            "The validation videos come from the same source as those it was trained on, and chose the epoch that is "
            "kept: the numbers above are a little too good, and say nothing about videos from elsewhere."
        )
    else:
        lines.append("No videos were held out, so nothing is known of how it does on videos it has not seen.")
    if record.objective == "classify":
        lines.append("It knows only its labels: a video of something else gets one of them all the same.")
        unseen = sum(not metrics.support for metrics in record.classes)
        if unseen:
            lines.append(f"{plural(unseen, 'label')} had no validation video, of which the numbers say nothing.")
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose cells are Markdown already; all columns but the first stand to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
