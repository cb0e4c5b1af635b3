"""Score one shard of embedded videos against an index: the steps that an actor runs. Ray is not used here.

A shard is a table with one row per video, in the order of the plan.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe import schema
from raypipe.dataset.embedded import NUM_VECTOR_BYTES, READ_SECONDS
from raypipe.dataset.read import frame_embeddings
from raypipe.records import ShardSummary, VideoNote
from raypipe.runs.stages import Shared, identity
from raypipe.search.index import VideoIndex
from raypipe.search.novelty import Novelty
from raypipe.search.projection import is_usable
from raypipe.search.versions import Versions, cache_folder
from raypipe.status import HAS_FRAMES, NOT_FAILED
from raypipe.storage import Folder

if TYPE_CHECKING:
    from raypipe.models.pretraining import MaskedFrameModel

READ_COLUMNS = (schema.EMBEDDING, schema.FRAME_PTS_SECONDS)
SCORE_SECONDS = "score_seconds"
SCORED = (
    schema.P_VALUE,
    schema.NEIGHBOR_DISTANCE,
    schema.MAHALANOBIS_LENGTH,
    schema.CLOSEST_VIDEO,
    schema.FRAME_SCORES,
    schema.STRANGEST_SECONDS,
)
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class IndexVersion:
    """One version of an index, and the local folder that caches versions from a bucket."""

    uri: str
    version: str
    cache: str | None

    def open(self) -> VideoIndex:
        """Open the version. Its files are fetched once per machine, and all actors of the machine share them.

        Raises:
            IndexVersionError: the version does not exist or is not complete.
        """
        versions = Versions(Folder(self.uri))
        folder = versions.fetch(self.version, cache_folder(self.cache))
        return VideoIndex.load(folder, versions.read_manifest(self.version))


@dataclass(frozen=True, slots=True)
class ScoreSettings:
    """The settings of ``ScoreVideos``. Calling ``calibration`` and ``files`` returns what all actors share.

    ``files`` are the files of a masked-frame model, or None.
    """

    index: IndexVersion
    calibration: Shared
    files: Shared | None
    frame_scores: bool


class ScoreVideos:
    """A step that replaces the embeddings of a shard with scores. The index is opened only once."""

    def __init__(self, settings: ScoreSettings) -> None:
        self._novelty = Novelty(settings.index.open(), settings.calibration())
        self._frame_scores = settings.frame_scores
        self._model = None if settings.files is None else _open_model(settings.files())

    def __call__(self, read: pa.Table) -> pa.Table:
        """Score one shard."""
        return score_shard(read, self._novelty, frame_scores=self._frame_scores, model=self._model)


def _open_model(files: Any) -> "MaskedFrameModel":  # noqa: ANN401 - importing its type takes seconds
    import torch  # noqa: PLC0415  # importing it takes seconds; a run without a model does not need it

    from raypipe.models.classifier_files import build_masked_frame_model  # noqa: PLC0415

    torch.set_num_threads(1)  # there is one such actor per processor
    return build_masked_frame_model(files)


def score_shard(
    read: pa.Table, novelty: Novelty, *, frame_scores: bool, model: "MaskedFrameModel | None" = None
) -> pa.Table:
    """Replace the embeddings of a shard with scores. Videos without frames, or with a zero embedding, get null."""
    start = time.perf_counter()
    embeddings = _embeddings(read)
    is_scored = is_usable(embeddings)
    rows = np.flatnonzero(is_scored)
    scores = novelty.score(embeddings[rows])
    names = [novelty.index.items.video_id(position) for position in scores.closest.tolist()]
    columns: dict[str, Sequence[Any]] = {
        schema.P_VALUE: novelty.calibration.p_values(scores).tolist(),
        schema.NEIGHBOR_DISTANCE: scores.distances.tolist(),
        schema.MAHALANOBIS_LENGTH: scores.lengths.tolist(),
        schema.CLOSEST_VIDEO: names,
    }
    moments: list[tuple[Floats, float | None]] = []
    if frame_scores:
        moments = _moments(read.take(pa.array(rows)), novelty, model)
    columns[schema.FRAME_SCORES] = [_with_nulls(of_frames) for of_frames, _ in moments] or [None] * len(rows)
    columns[schema.STRANGEST_SECONDS] = [seconds for _, seconds in moments] or [None] * len(rows)
    kept = read.drop_columns([schema.FRAME_EMBEDDINGS, *READ_COLUMNS])
    wanted = schema.anomalies_schema()
    for name in SCORED:
        kept = kept.append_column(name, _spread(columns[name], is_scored, wanted.field(name).type))
    seconds = [time.perf_counter() - start, *[0.0] * (kept.num_rows - 1)]
    return kept.append_column(SCORE_SECONDS, pa.array(seconds, pa.float64()))


def _embeddings(read: pa.Table) -> Floats:
    """Return the embedding of each video, ``[V, D]``. Videos without frames get zeros."""
    column = read[schema.EMBEDDING].combine_chunks()
    has_frames = np.array(
        [status in HAS_FRAMES for status in read[schema.STATUS].to_pylist()]
    ) & column.is_valid().to_numpy(zero_copy_only=False)
    embeddings = np.zeros((read.num_rows, column.type.list_size), np.float32)
    vectors = column.filter(pa.array(has_frames)).flatten().to_numpy(zero_copy_only=False)
    embeddings[has_frames] = vectors.reshape(-1, column.type.list_size)
    return embeddings


def _moments(read: pa.Table, novelty: Novelty, model: "MaskedFrameModel | None") -> list[tuple[Floats, float | None]]:
    """Return the scores of the frames of each video, and the time of its strangest frame in seconds."""
    frames = frame_embeddings(read)
    times = read[schema.FRAME_PTS_SECONDS].to_pylist()
    if model is None:
        found = [novelty.frame_distances(each.astype(np.float32)) for each in frames]
    else:
        found = [model.frame_errors(each) for each in frames]
        for errors in found:
            errors[0] = np.nan  # the model predicts the first frame from nothing, and so always badly
    return [(scores, _strangest(scores, pts)) for scores, pts in zip(found, times, strict=True)]


def _strangest(scores: Floats, pts_seconds: Sequence[float]) -> float | None:
    return float(pts_seconds[int(np.nanargmax(scores))]) if np.isfinite(scores).any() else None


def _with_nulls(scores: Floats) -> list[float | None]:
    return [score if np.isfinite(score) else None for score in scores.tolist()]


def _spread(values: Sequence[Any], is_scored: npt.NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    """Return an array with one entry per video: the next of ``values`` if the video has scores, otherwise null."""
    coming = iter(values)
    return pa.array([next(coming) if some else None for some in is_scored.tolist()], kind)


def summarize(scored: pa.Table) -> ShardSummary:
    """Return the summary of a scored shard, which the driver adds to its record."""
    columns = (scored[name].to_pylist() for name in (schema.VIDEO_ID, schema.STATUS, schema.ERROR))
    return ShardSummary(
        *identity(scored),
        size_bytes=int(scored[NUM_VECTOR_BYTES].to_numpy().sum()),
        stage_seconds={
            "read": float(scored[READ_SECONDS].to_numpy().sum()),
            "score": float(scored[SCORE_SECONDS].to_numpy().sum()),
        },
        failures=tuple(
            VideoNote(video_id, status, error or "", 0.0)
            for video_id, status, error in zip(*columns, strict=True)
            if status not in NOT_FAILED
        ),
    )
