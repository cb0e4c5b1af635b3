"""Classify one shard: the steps that an actor runs, and the table functions that they call. Ray is not used here.

A shard is a table with one row per video, in the order of the plan.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe import schema
from raypipe.dataset.embedded import NUM_VECTOR_BYTES, READ_SECONDS
from raypipe.dataset.read import frame_embeddings
from raypipe.errors import JobError
from raypipe.records import ShardSummary, VideoNote
from raypipe.runs.stages import Shared, identity
from raypipe.status import HAS_FRAMES, NOT_FAILED

if TYPE_CHECKING:
    from raypipe.models.classifier import VideoClassifier

CLASSIFY_SECONDS = "classify_seconds"
Vectors = npt.NDArray[np.float16]
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ClassifyOptions:
    """How to run the model.

    ``top_k`` is the number of labels to store per video. ``frame_scores`` says whether to score each frame as well: its
    part in the probe and, as ``order_scores``, in GPT-2.
    ``batch_size`` is the number of videos per batch.
    """

    top_k: int
    frame_scores: bool
    batch_size: int


def classify_shard(read: pa.Table, model: "VideoClassifier", options: ClassifyOptions) -> pa.Table:
    """Replace the vectors of a shard with the model's labels and scores. Videos without frames get null.

    Raises:
        JobError: a score is not finite.
    """
    start = time.perf_counter()
    statuses = read[schema.STATUS].to_pylist()
    has_frames = np.array([status in HAS_FRAMES for status in statuses])
    vectors = [one for one, some in zip(frame_embeddings(read), has_frames, strict=True) if some]
    columns = {name: read[name] for name in read.column_names if name != schema.FRAME_EMBEDDINGS}
    columns |= _answers(vectors, has_frames, model, options)
    seconds = (time.perf_counter() - start) / max(1, len(statuses))
    columns[CLASSIFY_SECONDS] = pa.repeat(pa.scalar(seconds), len(statuses))
    return pa.table(columns)


def _answers(
    vectors: Sequence[Vectors], has_frames: npt.NDArray[np.bool_], model: "VideoClassifier", options: ClassifyOptions
) -> dict[str, pa.Array]:
    names = model.config.label_names
    probabilities = np.empty((0, len(names)), np.float32)
    frame_scores: list[Scores] | None = None
    order_scores: list[Scores] | None = None
    if vectors:
        said = model.classify(vectors, frame_scores=options.frame_scores, batch_size=options.batch_size)
        probabilities, frame_scores, order_scores = said.probabilities, said.frame_scores, said.order_scores
    scores = (probabilities, *(frame_scores or ()), *(order_scores or ()))
    if not all(np.isfinite(numbers).all() for numbers in scores):
        msg = "The model returned scores that are not finite."
        raise JobError(msg, key=schema.SCORE, remedy="Train it again with a lower learning rate.")
    ranked = np.argsort(-probabilities, axis=1, kind="stable")
    best = ranked[:, : options.top_k]
    top_labels = [[names[number] for number in numbers] for numbers in best]
    top_scores = np.take_along_axis(probabilities, best, axis=1)
    labels = [some[:1] for some in top_labels]
    if model.config.problem_type == "multi_label_classification":
        labels = [
            [names[number] for number in numbers if row[number] >= schema.LABEL_THRESHOLD]
            for numbers, row in zip(ranked, probabilities, strict=True)
        ]
    made: dict[str, Sequence[object]] = {
        schema.LABEL: [some[0] for some in top_labels],
        schema.SCORE: [float(some[0]) for some in top_scores],
        schema.LABELS: labels,
        schema.TOP_LABELS: top_labels,
        schema.TOP_SCORES: top_scores.tolist(),
        schema.FRAME_SCORES: _of_frames(frame_scores, num_videos=len(vectors)),
        schema.ORDER_SCORES: _of_frames(order_scores, num_videos=len(vectors)),
    }
    wanted = schema.predictions_schema()
    return {name: _spread(values, has_frames, wanted.field(name).type) for name, values in made.items()}


def _of_frames(scores: Sequence[Scores] | None, *, num_videos: int) -> Sequence[object]:
    """Return one list of scores per video, or one None if there are no scores."""
    return [None] * num_videos if scores is None else [each.tolist() for each in scores]


def _spread(values: Sequence[object], has_frames: npt.NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    """Return an array with one entry per video: the next of ``values`` if the video has frames, otherwise null."""
    coming = iter(values)
    return pa.array([next(coming) if some else None for some in has_frames], kind)


def summarize(classified: pa.Table) -> ShardSummary:
    """Return the summary of a classified shard, which the driver adds to its record."""
    columns = (classified[name].to_pylist() for name in (schema.VIDEO_ID, schema.STATUS, schema.ERROR))
    return ShardSummary(
        *identity(classified),
        size_bytes=int(classified[NUM_VECTOR_BYTES].to_numpy().sum()),
        stage_seconds={
            "read": float(classified[READ_SECONDS].to_numpy().sum()),
            "classify": float(classified[CLASSIFY_SECONDS].to_numpy().sum()),
        },
        failures=tuple(
            VideoNote(video_id, status, error or "", 0.0)
            for video_id, status, error in zip(*columns, strict=True)
            if status not in NOT_FAILED
        ),
        labels=dict(Counter(label for label in classified[schema.LABEL].to_pylist() if label is not None)),
    )


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The settings of ``ClassifyVideos``. Calling ``files`` returns the model's files."""

    files: Shared
    options: ClassifyOptions
    device: str


class ClassifyVideos:
    """A step that replaces the frame embeddings of a shard with labels and scores."""

    def __init__(self, settings: ModelSettings) -> None:
        import torch  # noqa: PLC0415  # importing it takes seconds; the driver does not need it
        from torch import nn  # noqa: PLC0415

        from raypipe.models.classifier_files import build_classifier  # noqa: PLC0415

        if settings.device == "cpu":
            torch.set_num_threads(1)  # there is one such actor per processor
        self._model = build_classifier(settings.files())
        nn.Module.to(self._model, settings.device)
        self._options = settings.options

    def __call__(self, read: pa.Table) -> pa.Table:
        """Classify one shard."""
        return classify_shard(read, self._model, self._options)
