"""How good a finished model is, label by label and video by video, from what it says of the validation split."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe import schema
from raypipe.dataset.footer import read_parquet
from raypipe.jobs.train.samples import FILE
from raypipe.jobs.train.scores import f1
from raypipe.jobs.train.setup import Setup
from raypipe.records import MAX_MISTAKES, ClassMetrics, Mistake, TrainingRecord
from raypipe.storage import Folder

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


def describe_outcome(record: TrainingRecord, setup: Setup, ended: Mapping[str, Any]) -> TrainingRecord:
    """Add the confusion matrix, the labels' metrics and the worst mistakes to a record."""
    parts = ended.get("predictions") or []
    if not parts or not setup.samples.label_names:
        return record
    index = np.concatenate([np.asarray(part["index"], dtype=np.int64) for part in parts])
    probabilities: Floats = np.concatenate([part["probabilities"] for part in parts])
    targets = [target for part in parts for target in part["targets"]]
    truth: Bools = np.zeros(probabilities.shape, dtype=bool)
    for row, target in enumerate(targets):
        truth[row, target] = True
    best = probabilities.argmax(axis=1)
    if setup.samples.multi_label:
        given: Bools = probabilities >= schema.LABEL_THRESHOLD
    else:
        given = np.zeros_like(truth)
        given[np.arange(len(best)), best] = True
    return replace(
        record,
        confusion=None if setup.samples.multi_label else confusion(truth, given),
        classes=class_metrics(truth, given, setup.samples.label_names),
        mistakes=_mistakes(setup, index, probabilities, truth, best),
    )


def confusion(truth: Bools, given: Bools) -> list[list[int]]:
    """How many videos of each true label (rows) were given each label (columns), from ``[V, C]`` of one label each."""
    counts: list[list[int]] = (truth.astype(np.int64).T @ given.astype(np.int64)).tolist()
    return counts


def class_metrics(truth: Bools, given: Bools, label_names: tuple[str, ...]) -> tuple[ClassMetrics, ...]:
    """Precision, recall and F1 of each label, from which labels each video has and was given ``[V, C]``."""
    sums = np.stack([truth.sum(axis=0), given.sum(axis=0), (truth & given).sum(axis=0)]).astype(np.float64)
    support, predicted, both = sums
    precision, recall = both / np.maximum(predicted, 1), both / np.maximum(support, 1)
    return tuple(
        ClassMetrics(
            label=label,
            support=int(support[at]),
            predicted=int(predicted[at]),
            precision=float(precision[at]),
            recall=float(recall[at]),
            f1=float(f1(sums)[at]),
        )
        for at, label in enumerate(label_names)
    )


def _mistakes(
    setup: Setup, index: npt.NDArray[np.int64], probabilities: Floats, truth: Bools, best: npt.NDArray[np.int64]
) -> tuple[Mistake, ...]:
    """The videos whose likeliest label is none of theirs, the surest first, with their thumbnails."""
    rows = np.arange(len(best))
    wrong = np.flatnonzero(~truth[rows, best])
    wrong = wrong[np.argsort(-probabilities[wrong, best[wrong]], kind="stable")][:MAX_MISTAKES]
    videos = setup.samples.validation.take(pa.array(index[wrong]))
    thumbnails = _thumbnails(setup.config.embeddings, videos)
    names = setup.samples.label_names
    mistakes = []
    for row, video_id in zip(wrong.tolist(), videos[schema.VIDEO_ID].to_pylist(), strict=True):
        true = max(np.flatnonzero(truth[row]), key=lambda label: probabilities[row, label])
        mistakes.append(
            Mistake(
                video_id=video_id,
                label=", ".join(names[label] for label in np.flatnonzero(truth[row])),
                predicted=names[best[row]],
                score=float(probabilities[row, best[row]]),
                label_score=float(probabilities[row, true]),
                thumbnail=thumbnails.get(video_id),
            )
        )
    return tuple(mistakes)


def _thumbnails(embeddings_uri: str, videos: pa.Table) -> dict[str, bytes]:
    output = Folder(embeddings_uri)
    found: dict[str, bytes] = {}
    for name in pc.unique(videos[FILE]).to_pylist():
        rows = read_parquet(output, name, columns=[schema.VIDEO_ID, schema.THUMBNAIL])
        rows = rows.filter(pc.is_in(rows[schema.VIDEO_ID], videos[schema.VIDEO_ID].combine_chunks()))
        found |= dict(zip(rows[schema.VIDEO_ID].to_pylist(), rows[schema.THUMBNAIL].to_pylist(), strict=True))
    return found
