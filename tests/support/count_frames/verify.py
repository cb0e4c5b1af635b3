"""A video has frames if and only if its status says so."""

from raypipe.dataset.verify import OF_VIDEOS, RowChecks, Violation
from raypipe.status import HAS_FRAMES
from support.count_frames.shard import ROWS

CHECKS = RowChecks("count_frames", lambda _: ROWS, OF_VIDEOS, lambda rows: (
    Violation("frames", f"{row['video_id']!r} is {row['status']} with {row['num_frames']} frames.")
    for row in rows.to_pylist() if (row["num_frames"] > 0) != (row["status"] in HAS_FRAMES)
))  # fmt: skip
