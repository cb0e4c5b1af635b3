"""How the videos of one plan become shards."""

from collections.abc import Iterable

import pyarrow as pa

from raypipe.dataset.plan import Video, plan_table

_SHARD_MAX_BYTES = 1024**3  # so that a shard of large files is not hours of work to lose


def pack(videos: Iterable[Video], *, max_videos: int, max_frames: int, frames_per_video: int, slots: int) -> pa.Table:
    """Number the shards of one plan: every video in exactly one, the most work first, small enough for every slot.

    The size of a file stands for the work of decoding it.
    """
    ordered = sorted(videos, key=lambda video: (-video.size_bytes, video.video_uri, video.etag))
    per_shard = min(max_videos, max(1, max_frames // frames_per_video), max(1, -(-len(ordered) // (4 * slots))))
    shards: list[int] = []
    shard, members, size_bytes = 0, 0, 0
    for video in ordered:
        if members and (members == per_shard or size_bytes + video.size_bytes > _SHARD_MAX_BYTES):
            shard, members, size_bytes = shard + 1, 0, 0
        shards.append(shard)
        members += 1
        size_bytes += video.size_bytes
    return plan_table(ordered, shards)
