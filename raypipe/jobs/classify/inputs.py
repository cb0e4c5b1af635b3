"""What there is to classify: the rows that count of sealed embeddings, as videos to plan."""

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
    """A video whose row is in a file of the embeddings; its etag is ``row_version``."""

    file: str


def row_version(generation: int, etag: str) -> str:
    """What tells one embedding of a video from another: a new content, or the same one embedded again."""
    return f"{generation}-{etag}"


def find_embedded(embeddings: Folder, manifests: list[dict[str, Any]]) -> Iterator[VideoToClassify]:
    """Yield every video that has a row, by the row that counts, also one that is gone; reads plans and no vector.

    Raises:
        CommitError: a stored plan is none.
    """
    columns = (schema.VIDEO_ID, schema.VIDEO_URI, schema.ETAG, schema.SIZE_BYTES, schema.SHARD)
    for generation, rows in planned_rows(embeddings, manifests):
        values = zip(*(rows[name].to_pylist() for name in columns), gone_flags(rows), strict=True)
        for video_id, uri, etag, size_bytes, shard, is_gone in values:
            version, file = row_version(generation, etag), data_name(generation, shard)
            yield VideoToClassify(video_id, uri, version, size_bytes, file, is_gone=is_gone)


def frames_per_video(manifests: Sequence[dict[str, Any]]) -> int:
    """The mean over the catalogue, rounded up, and at least 1."""
    num_frames: int = sum(manifest["num_frames"] for manifest in manifests)
    num_videos: int = sum(manifest["num_videos"] for manifest in manifests)
    return max(1, math.ceil(num_frames / num_videos))


def pack(
    videos: Sequence[VideoToClassify], *, max_videos: int, max_frames: int, frames_per_video: int, slots: int
) -> pa.Table:
    """Number the shards of one plan: whole files of the embeddings together, so that each is read once.

    There are enough shards for every slot where there are enough files; a file is cut only at the limits.
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
