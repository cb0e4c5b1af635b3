"""The counters of a run in Ray's Prometheus endpoint."""

import sys
from typing import TYPE_CHECKING

from raypipe.report import ShardSummary

if TYPE_CHECKING:
    from ray.util.metrics import Counter


class Metrics:
    """Counts shards in Prometheus while Ray runs in this process, and does nothing while it does not.

    Counters are ``raypipe_videos_total{status}``, ``raypipe_frames_total``, ``raypipe_bytes_total``,
    ``raypipe_shards_total`` and ``raypipe_stage_seconds_total{stage}``; a gauge is ``raypipe_planned_videos``.
    Ray puts ``ray_`` before each name.
    """

    def __init__(self, *, num_planned_videos: int) -> None:
        self._num_planned_videos = num_planned_videos
        self._counters: dict[str, Counter] = {}

    def add(self, summary: ShardSummary) -> None:
        """Count one shard."""
        if not _ray_is_initialized():
            return
        if not self._counters:
            self._counters = _make_metrics(self._num_planned_videos)
        self._count("raypipe_shards_total", 1)
        self._count("raypipe_frames_total", summary.num_frames)
        self._count("raypipe_bytes_total", summary.size_bytes)
        for status, count in summary.statuses.items():
            self._count("raypipe_videos_total", count, status=str(status))
        for stage, seconds in summary.stage_seconds.items():
            self._count("raypipe_stage_seconds_total", seconds, stage=stage)

    def _count(self, name: str, value: float, **tags: str) -> None:
        if value > 0:  # Ray refuses to count nothing
            self._counters[name].inc(value, tags)


def _ray_is_initialized() -> bool:
    ray = sys.modules.get("ray")  # whoever has started Ray has imported it
    return ray is not None and bool(ray.is_initialized())


def _make_metrics(num_planned_videos: int) -> "dict[str, Counter]":
    from ray.util.metrics import Counter, Gauge  # noqa: PLC0415  only a process that runs Ray pays for it

    Gauge("raypipe_planned_videos", "Videos of the plan, done or not.").set(num_planned_videos)
    return {
        "raypipe_videos_total": Counter("raypipe_videos_total", "Videos ended, by status.", ("status",)),
        "raypipe_frames_total": Counter("raypipe_frames_total", "Frames of finished shards."),
        "raypipe_bytes_total": Counter("raypipe_bytes_total", "Bytes read, of videos or of their vectors."),
        "raypipe_shards_total": Counter("raypipe_shards_total", "Shards finished."),
        "raypipe_stage_seconds_total": Counter(
            "raypipe_stage_seconds_total", "Seconds of work, by stage, all actors together.", ("stage",)
        ),
    }
