"""The inputs of classify: the current row of each video in a sealed output of embed, as videos to plan."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa

from raypipe import schema
from raypipe.dataset.plan import PlannedVideo, data_name, gone_flags, plan_table
from raypipe.dataset.read import planned_rows
from raypipe.storage import Folder


@dataclass(frozen=True, slots=True)
class VideoToClassify(PlannedVideo):
    """An embedded video. ``file`` is the embeddings file with its row, and ``etag`` is that row's ``row_version``."""

    file: str


def row_version(generation: int, etag: str) -> str:
    """Return the version of a video's row, which changes when the video changes or is embedded again."""
    return f"{generation}-{etag}"


def find_embedded(embeddings: Folder, manifests: list[dict[str, Any]]) -> Iterator[VideoToClassify]:
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
            yield VideoToClassify(video_id, uri, version, size_bytes, file, is_gone=is_gone)


def frames_per_video(manifests: Sequence[dict[str, Any]]) -> int:
    """Return the mean number of frames per video, rounded up and at least 1."""
    num_frames: int = sum(manifest["num_frames"] for manifest in manifests)
    num_videos: int = sum(manifest["num_videos"] for manifest in manifests)
    return max(1, math.ceil(num_frames / num_videos))


def pack(
    videos: Sequence[VideoToClassify], *, max_videos: int, max_frames: int, frames_per_video: int, slots: int
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
