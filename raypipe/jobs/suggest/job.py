"""The suggest job, from a configuration to the videos to label next and the labels to check."""

import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.exceptions import RayError
from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from torch.nn.functional import one_hot

from raypipe.config import SuggestConfig
from raypipe.config.load import command_line
from raypipe.errors import JobError
from raypipe.jobs.suggest.advice import fit_labelled, label_doubts, next_labels
from raypipe.jobs.suggest.inputs import SortedVideos, sort_videos
from raypipe.jobs.suggest.lists import labels_to_check, to_check_csv, to_label_csv, videos_to_label
from raypipe.jobs.train.classifier.probing import (
    LabelSpace,
    PooledVideos,
    TrainedProbe,
    pool_videos,
    probe_stride,
)
from raypipe.jobs.train.inputs import TARGETS, every_nth
from raypipe.records import LabelCounts, LabelToCheck, SuggestionRecord, versions
from raypipe.report.suggestion_page import suggestion_page
from raypipe.runs.actors import connect, reason_of
from raypipe.runs.progress import status
from raypipe.runs.summary_tables import summary_table
from raypipe.storage import Folder
from raypipe.text import format_count, format_seconds, format_share, plural

TO_LABEL, TO_CHECK, SUMMARY, REPORT = "to_label.csv", "check_labels.csv", "summary.json", "report.html"


@dataclass(frozen=True, slots=True)
class SuggestionRun:
    """The record of a run, and the URI of its report."""

    record: SuggestionRecord
    report_uri: str


def run_suggest(config: SuggestConfig, *, console: Console | None = None) -> SuggestionRun:
    """Fit a probe to the labelled videos, and write the videos to label next and the labels to check.

    Raises:
        ConfigError: the labels cannot be used, or no video has frames.
        JobError: the embeddings are not sealed, or cannot be read.
    """
    started_at = time.time()
    output = Folder(config.output)
    output.check_writable()
    videos = sort_videos(config)
    space = LabelSpace(len(videos.label_names), videos.multi_label)
    connect()
    with status(console, "Reading the embeddings"):
        labelled, labelled_rows = _pool(videos.labelled, videos, config.embeddings, space)
        unlabelled, unlabelled_rows = _pool(videos.unlabelled, videos, config.embeddings, space)
    with status(console, "Choosing the videos"):
        probe = fit_labelled(labelled, space)
        doubts = [] if probe is None or labelled is None else label_doubts(probe, labelled, space)
        found = None
        if unlabelled is not None:
            found = next_labels(probe, labelled, unlabelled, space, count=config.num_videos, seed=config.seed)
    embeddings = Folder(config.embeddings)
    to_label = videos_to_label(found, unlabelled_rows, embeddings, videos.label_names)
    to_check = labels_to_check(doubts, labelled_rows, embeddings, videos.label_names)
    labels = _label_counts(videos, labelled, probe, to_check)
    summary: dict[str, Any] = {
        "command": command_line("suggest", config),
        "num_labelled": videos.labelled.num_rows,
        "num_labelled_used": labelled_rows.num_rows,
        "num_unlabelled": videos.unlabelled.num_rows,
        "num_unlabelled_used": unlabelled_rows.num_rows,
        "num_test": videos.num_test,
        "num_unknown": videos.num_unknown,
        "num_without_frames": videos.num_without_frames,
        "multi_label": videos.multi_label,
        "has_model": probe is not None,
        "features": None if probe is None else probe.features,
        "accuracy": _accuracy(probe, labelled),
        "num_to_label": len(to_label),
        "num_to_check": len(to_check),
    }
    record = SuggestionRecord(
        command=summary["command"],
        embeddings_uri=embeddings.uri,
        output_uri=output.uri,
        settings=config.model_dump(mode="json"),
        versions=versions(("torch",)),
        started_at=started_at,
        finished_at=time.time(),
        summary=summary | {"seconds": round(time.time() - started_at, 1)},
        to_label=to_label,
        to_check=to_check,
        labels=labels,
    )
    _write(output, record)
    return SuggestionRun(record, output.child(REPORT))


def _pool(
    samples: pa.Table, videos: SortedVideos, embeddings_uri: str, space: LabelSpace
) -> tuple[PooledVideos | None, pa.Table]:
    """Return the statistics of videos, of at most 200,000 evenly chosen ones, and their samples."""
    if not samples.num_rows:
        return None, samples
    num_labels = len(videos.label_names)
    stride = probe_stride(samples.num_rows, embedding_dim=videos.embedding_dim, num_labels=num_labels)
    chosen = every_nth(samples, stride)
    try:
        pooled = pool_videos(chosen, embeddings_uri=embeddings_uri, space=space, max_frames=videos.max_frames)
    except RayError as error:
        msg = f"The embeddings cannot be read: {reason_of(error)}."
        raise JobError(msg, key=embeddings_uri, remedy="Run the same command again.") from error
    return pooled, chosen


def _label_counts(
    videos: SortedVideos, labelled: PooledVideos | None, probe: TrainedProbe | None, to_check: Iterable[LabelToCheck]
) -> tuple[LabelCounts, ...]:
    numbers = pc.list_flatten(videos.labelled[TARGETS]).to_numpy()
    counts = np.bincount(numbers, minlength=len(videos.label_names))
    recalls: list[float | None] = [None] * len(videos.label_names)
    if probe is not None and labelled is not None:
        recalls = _recalls(probe, labelled)
    doubtful = Counter(doubt.label or doubt.suggested for doubt in to_check)
    return tuple(
        LabelCounts(label=name, num_videos=int(count), recall=recall, num_to_check=doubtful[name])
        for name, count, recall in zip(videos.label_names, counts, recalls, strict=True)
    )


def _recalls(probe: TrainedProbe, labelled: PooledVideos) -> list[float | None]:
    """Return for each label the fraction of its videos that the probe finds without having seen them."""
    logits, labels = probe.out_of_fold, labelled.labels
    found, has = (logits >= 0).float(), labels
    if labels.ndim == 1:
        found, has = (one_hot(each, num_classes=logits.shape[1]) for each in (logits.argmax(dim=1), labels))
    hits, totals = (found * has).sum(dim=0).tolist(), has.sum(dim=0).tolist()
    return [hit / total if total else None for hit, total in zip(hits, totals, strict=True)]


def _accuracy(probe: TrainedProbe | None, labelled: PooledVideos | None) -> float | None:
    """Return the fraction of the labelled videos whose label the probe finds without having seen them."""
    if probe is None or labelled is None or labelled.labels.ndim > 1:
        return None
    return float((probe.out_of_fold.argmax(dim=1) == labelled.labels).float().mean())


def _write(output: Folder, record: SuggestionRecord) -> None:
    output.put(TO_LABEL, to_label_csv(record.to_label))
    output.put(TO_CHECK, to_check_csv(record.to_check))
    output.put(SUMMARY, json.dumps(record.summary, indent=1, allow_nan=False).encode())
    output.put(REPORT, suggestion_page(record).encode())


def suggestion_table(run: SuggestionRun) -> Padding:
    """Return the table that is printed at the end: what was found, and where it is."""
    record, summary = run.record, run.record.summary
    accuracy = summary["accuracy"]
    return summary_table(
        [
            ("labelled", plural(summary["num_labelled"], "video")),
            ("unlabelled", plural(summary["num_unlabelled"], "video")),
            ("probe", "" if accuracy is None else f"{format_share(accuracy)} accuracy on videos that it has not seen"),
            ("to label", f"{format_count(len(record.to_label))}  {TO_LABEL}"),
            ("to check", f"{format_count(len(record.to_check))}  {TO_CHECK}"),
            ("wall time", format_seconds(record.elapsed_seconds)),
            ("output", record.output_uri),
            ("report", Text(run.report_uri, "bold")),
        ]
    )
