"""The card of a trained model: Markdown with the YAML header that the Hugging Face Hub reads."""

import math

from raypipe.records import TrainingRecord
from raypipe.report.templating import leaves, render
from raypipe.report.training_page import headline, left_out, most_common_label
from raypipe.text import finite

_WORST = 10
_MAX_SETTINGS = 40
_SETTINGS = ("objective", "init_from", "problem_type", "model", "data", "optimizer", "seed")  # the relevant ones
_METRICS = (("accuracy", "accuracy", "Accuracy"), ("macro_f1", "f1", "Macro-F1"))  # field; type and name on the Hub


def model_card(record: TrainingRecord) -> str:
    """Return the ``README.md`` of the kept checkpoint. Text of users is shown as it is and never read as Markdown."""
    settings = {key: value for key, value in record.settings.items() if key in _SETTINGS}
    seen = sorted((metrics for metrics in record.classes if metrics.support), key=lambda metrics: finite(metrics.f1))
    body = render(
        "model_card.md",
        record=record,
        name=_name(record),
        headline=headline(record),
        left_out=left_out(record),
        most_common_label=most_common_label(record),
        settings=list(leaves(settings))[:_MAX_SETTINGS],
        worst=seen[:_WORST],
        num_seen=len(seen),
        num_unseen=len(record.classes) - len(seen),
        fingerprint=str(record.settings.get("embedding_fingerprint") or ""),
    )
    return f"---\n{_header(record)}\n---\n\n{body}"


def _name(record: TrainingRecord) -> str:
    return "GPT-2 over video frames" + (", masked frames" if record.objective == "masked_frame" else "")


def _header(record: TrainingRecord) -> str:
    """Return the YAML for the Hub, which contains nothing that a user wrote."""
    # Importing it is slow, and only trainings write a card.
    from huggingface_hub import EvalResult, ModelCardData  # noqa: PLC0415

    classifies = record.objective == "classify"
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
    header = ModelCardData(
        library_name="transformers",
        pipeline_tag="video-classification" if classifies else "feature-extraction",
        tags=["raypipe", "gpt2", "frame-embeddings", "multi-label" if record.several_labels else "video"],
        model_name=_name(record) if results else None,
        eval_results=results or None,
    )
    return header.to_yaml()
