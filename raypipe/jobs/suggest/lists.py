"""The two lists of suggest, and their CSV files."""

import csv
import io
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from raypipe import schema
from raypipe.dataset.read import column_by_id
from raypipe.evaluation.label_errors import Doubt
from raypipe.jobs.suggest.advice import NextLabels
from raypipe.jobs.train.inputs import ids_by_file
from raypipe.records import LabelToCheck, VideoToLabel
from raypipe.report.suggestion_page import MAX_SHOWN
from raypipe.storage import Folder

_NUM_LABELS = 2
_MAX_UNDECIDED = 0.5  # the difference between the two most probable labels, below which a video is undecided


def videos_to_label(
    found: NextLabels | None, samples: pa.Table, embeddings: Folder, names: Sequence[str]
) -> tuple[VideoToLabel, ...]:
    """Return the chosen videos with their most probable labels, their URIs and thumbnails."""
    if found is None:
        return ()
    chosen = samples.take(pa.array(found.rows))
    uris, thumbnails = _uris_and_thumbnails(chosen, embeddings)
    listed = []
    for rank, video_id in enumerate(chosen[schema.VIDEO_ID].to_pylist()):
        labels: list[int] = []
        if found.probabilities is not None:
            labels = np.argsort(-found.probabilities[rank], kind="stable")[:_NUM_LABELS].tolist()
        listed.append(
            VideoToLabel(
                video_id=video_id,
                video_uri=uris[video_id],
                labels=tuple(names[label] for label in labels),
                probabilities=tuple(
                    float(found.probabilities[rank, label]) for label in labels if found.probabilities is not None
                ),
                num_similar=int(found.num_similar[rank]),
                thumbnail=thumbnails.get(video_id, b""),
            )
        )
    return tuple(listed)


def labels_to_check(
    doubts: Sequence[Doubt], samples: pa.Table, embeddings: Folder, names: Sequence[str]
) -> tuple[LabelToCheck, ...]:
    """Return the doubtful labels with the URIs and thumbnails of their videos."""
    chosen = samples.take(pa.array([doubt.row for doubt in doubts], pa.int64()))
    uris, thumbnails = _uris_and_thumbnails(chosen, embeddings)
    return tuple(
        LabelToCheck(
            video_id=video_id,
            video_uri=uris[video_id],
            label=None if doubt.label is None else names[doubt.label],
            suggested=None if doubt.suggested is None else names[doubt.suggested],
            probability=doubt.probability,
            suggested_probability=doubt.suggested_probability,
            thumbnail=thumbnails.get(video_id, b""),
        )
        for doubt, video_id in zip(doubts, chosen[schema.VIDEO_ID].to_pylist(), strict=True)
    )


def _uris_and_thumbnails(chosen: pa.Table, embeddings: Folder) -> tuple[dict[str, str], dict[str, bytes]]:
    """Return the URIs of the chosen videos, and the thumbnails of those that a page shows, by video ID."""
    uris = column_by_id(embeddings, ids_by_file(chosen), schema.VIDEO_URI)
    thumbnails = column_by_id(embeddings, ids_by_file(chosen[:MAX_SHOWN]), schema.THUMBNAIL)
    return uris, {video_id: data for video_id, data in thumbnails.items() if data is not None}


def to_label_csv(videos: Iterable[VideoToLabel]) -> bytes:
    """Return a CSV file with one row per video. ``why`` is ``undecided``, or ``typical`` of similar videos."""
    header = ("rank", schema.VIDEO_ID, schema.VIDEO_URI, "label_1", "probability_1", "label_2", "probability_2")
    rows = []
    for rank, video in enumerate(videos, start=1):
        thought = [part for pair in zip(video.labels, _rounded(video.probabilities), strict=True) for part in pair]
        cells = [*thought, *[""] * (2 * _NUM_LABELS - len(thought)), _why(video.probabilities), video.num_similar]
        rows.append((rank, video.video_id, video.video_uri, *cells))
    return _csv((*header, "why", "num_similar"), rows)


def to_check_csv(doubts: Iterable[LabelToCheck]) -> bytes:
    """Return a CSV file with one row per doubtful label. ``problem`` is ``wrong``, ``missing`` or ``too_much``."""
    header = ("rank", schema.VIDEO_ID, schema.VIDEO_URI, schema.LABEL, "suggested_label")
    rows = []
    for rank, doubt in enumerate(doubts, start=1):
        problem = "missing" if doubt.label is None else "too_much" if doubt.suggested is None else "wrong"
        chances = _rounded((doubt.probability, doubt.suggested_probability))
        labels = (doubt.label or "", doubt.suggested or "")
        rows.append((rank, doubt.video_id, doubt.video_uri, *labels, *chances, problem))
    return _csv((*header, "label_probability", "suggested_probability", "problem"), rows)


def _why(probabilities: Sequence[float]) -> str:
    is_undecided = len(probabilities) == _NUM_LABELS and probabilities[0] - probabilities[1] < _MAX_UNDECIDED
    return "undecided" if is_undecided else "typical"


def _rounded(probabilities: Iterable[float]) -> list[str]:
    return [f"{probability:.4f}" for probability in probabilities]


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()
