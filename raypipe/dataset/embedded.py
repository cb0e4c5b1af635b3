"""Plan and read the videos of a sealed output of embed: the inputs of the jobs that score or label embedded videos.

A shard is a table with one row per video, in the order of the plan.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raypipe import schema
from raypipe.config.classify import EmbeddedShardConfig
from raypipe.dataset.footer import not_sealed, read_parquet
from raypipe.dataset.plan import PlannedVideo, data_name, gone_flags, plan_table
from raypipe.dataset.read import planned_rows, with_half_frames
from raypipe.storage import Folder
from raypipe.text import one_line

NUM_VECTOR_BYTES = "num_vector_bytes"
READ_SECONDS = "read_seconds"
_OF_THE_FILE = (schema.STATUS, schema.ERROR, schema.NUM_FRAMES, schema.FRAME_EMBEDDINGS)
_FLOAT16_BYTES = 2


@dataclass(frozen=True, slots=True)
class StoredEmbedding(PlannedVideo):
    """An embedded video. ``file`` is the embeddings file with its row, and ``etag`` is that row's ``row_version``."""

    file: str


def row_version(generation: int, etag: str) -> str:
    """Return the version of a video's row, which changes when the video changes or is embedded again."""
    return f"{generation}-{etag}"


def find_embedded(embeddings: Folder, manifests: list[dict[str, Any]]) -> Iterator[StoredEmbedding]:
    """Yield every video of the embeddings, including videos that are gone, with the location of its current row.

    This reads only plans, no vectors.

    Raises:
        CommitError: a stored plan is corrupt.
    """
    columns = (schema.VIDEO_ID, schema.VIDEO_URI, schema.ETAG, schema.SIZE_BYTES, schema.SHARD)
    for generation, rows in planned_rows(embeddings, manifests):
        values = zip(*(rows[name].to_pylist() for name in columns), gone_flags(rows), strict=True)
        for video_id, uri, etag, size_bytes, shard, is_gone in values:
            version, file = row_version(generation, etag), data_name(generation, shard)
            yield StoredEmbedding(video_id, uri, version, size_bytes, file, is_gone=is_gone)


def frames_per_video(manifests: Sequence[dict[str, Any]]) -> int:
    """Return the mean number of frames per video, rounded up and at least 1."""
    num_frames: int = sum(manifest["num_frames"] for manifest in manifests)
    num_videos: int = sum(manifest["num_videos"] for manifest in manifests)
    return max(1, math.ceil(num_frames / num_videos))


def packing_of(
    config: EmbeddedShardConfig, manifests: Sequence[dict[str, Any]], *, num_slots: int
) -> Callable[[Sequence[StoredEmbedding]], pa.Table]:
    """Return ``pack`` with the limits of a job's shards."""
    return partial(
        pack,
        max_videos=config.max_videos,
        max_frames=config.max_frames,
        frames_per_video=frames_per_video(manifests),
        slots=num_slots,
    )


def pack(
    videos: Sequence[StoredEmbedding], *, max_videos: int, max_frames: int, frames_per_video: int, slots: int
) -> pa.Table:
    """Return a plan that assigns each video to a numbered shard.

    Videos from the same embeddings file stay in one shard, so that each file is read once. A file is split only if it
    exceeds ``max_videos`` or ``max_frames``. Shards are small enough for every slot (parallel actor) to get work, if
    there are enough files.
    """
    ordered = sorted(videos, key=lambda video: (video.file, video.video_id))
    at_most = min(max_videos, max(1, max_frames // frames_per_video))
    wanted = min(at_most, max(1, -(-len(ordered) // (4 * slots))))
    shards: list[int] = []
    shard, members = 0, 0
    for _, group in groupby(ordered, key=lambda video: video.file):
        rows = list(group)
        if members and members + len(rows) > wanted:
            shard, members = shard + 1, 0
        for _ in rows:
            if members == at_most:
                shard, members = shard + 1, 0
            shards.append(shard)
            members += 1
    files = pa.array([video.file for video in ordered], pa.string())
    return plan_table(ordered, shards).append_column(schema.EMBEDDINGS_FILE, files)


def read_shard(rows: pa.Table, embeddings: Folder, *, embedding_dim: int, columns: Sequence[str] = ()) -> pa.Table:
    """Add the status, error, frame embeddings and the given ``columns`` of each video to the planned rows.

    Each embeddings file is read once, and only the columns that are needed.

    Raises:
        CommitError: an embeddings file lacks rows that its sealed plan promises.
    """
    start = time.perf_counter()
    names = rows[schema.EMBEDDINGS_FILE].to_pylist()
    at, parts = 0, []
    for name, group in groupby(names):
        planned = rows.slice(at, len(list(group)))
        parts.append(_read_rows(planned, embeddings, name, embedding_dim=embedding_dim, columns=columns))
        at += planned.num_rows
    found = pa.concat_tables(parts)
    for column in (*_OF_THE_FILE, *columns):
        rows = rows.append_column(column, found[column])
    seconds = (time.perf_counter() - start) / len(names)
    num_bytes = pc.multiply(rows[schema.NUM_FRAMES].cast(pa.int64()), embedding_dim * _FLOAT16_BYTES)
    rows = rows.append_column(NUM_VECTOR_BYTES, num_bytes)
    return rows.append_column(READ_SECONDS, pa.repeat(pa.scalar(seconds), rows.num_rows))


def _read_rows(
    planned: pa.Table, embeddings: Folder, name: str, *, embedding_dim: int, columns: Sequence[str]
) -> pa.Table:
    """Return the rows of one embeddings file that were planned, in the order of the plan."""
    read = (schema.VIDEO_ID, schema.GENERATION, schema.ETAG, *_OF_THE_FILE, *columns)
    table = read_parquet(embeddings, name, columns=read)
    try:
        positions = pc.index_in(planned[schema.VIDEO_ID], value_set=table[schema.VIDEO_ID].combine_chunks())
        found = with_half_frames(table.take(positions))
        versions = list(map(row_version, found[schema.GENERATION].to_pylist(), found[schema.ETAG].to_pylist()))
        dim = found.schema.field(schema.FRAME_EMBEDDINGS).type.value_type.list_size
    except (pa.ArrowException, AttributeError, ValueError) as error:
        raise not_sealed(embeddings, name, one_line(error)) from None
    if dim != embedding_dim:
        reason = f"its vectors have {dim} dimensions, not {embedding_dim}"
        raise not_sealed(embeddings, name, reason, value=dim, expected=embedding_dim)
    names = (schema.VIDEO_ID, schema.ETAG)
    for version, video_id, wanted in zip(versions, *(planned[name].to_pylist() for name in names), strict=True):
        if version != wanted:
            raise not_sealed(embeddings, name, f"it has no version {wanted!r} of {video_id!r}", expected=wanted)
    return found


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """Where the embeddings are stored, their dimension, and the columns to read in addition to the frames."""

    embeddings_uri: str
    embedding_dim: int
    columns: tuple[str, ...] = ()


class ReadEmbeddings:
    """A step that adds the frame embeddings to the planned rows of a shard."""

    def __init__(self, settings: ReadSettings) -> None:
        self._embeddings = Folder(settings.embeddings_uri)
        self._settings = settings

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Read one shard."""
        settings = self._settings
        return read_shard(rows, self._embeddings, embedding_dim=settings.embedding_dim, columns=settings.columns)
