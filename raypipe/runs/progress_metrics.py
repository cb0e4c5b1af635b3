"""The counters of a run in Ray's Prometheus endpoint."""

import sys
from typing import TYPE_CHECKING

from raypipe.records import ShardSummary

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge

_COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "raypipe_videos_total": ("Videos ended, by status.", ("status",)),
    "raypipe_frames_total": ("Frames of finished shards.", ()),
    "raypipe_bytes_total": ("Bytes read, of videos or of their vectors.", ()),
    "raypipe_shards_total": ("Shards finished.", ()),
    "raypipe_stage_seconds_total": ("Seconds of work, by stage, all actors together.", ("stage",)),
    "raypipe_decode_wait_seconds_total": ("Seconds that actors on GPUs waited for decoded shards, all together.", ()),
    "raypipe_s3_throttles_total": ("Replies of S3 to finished shards that asked for fewer requests.", ()),
}
_GAUGES = {
    "raypipe_planned_videos": "Videos of the plan, done or not.",
    "raypipe_done_videos": "Videos of the plan that are done, by this run or an earlier one.",
}


class Metrics:
    """Counts shards in Prometheus while Ray runs in this process, and does nothing while it does not.

    Counters are ``raypipe_videos_total{status}``, ``raypipe_frames_total``, ``raypipe_bytes_total``,
    ``raypipe_shards_total``, ``raypipe_stage_seconds_total{stage}``, ``raypipe_decode_wait_seconds_total`` and
    ``raypipe_s3_throttles_total``; gauges are ``raypipe_planned_videos`` and ``raypipe_done_videos``.
    Ray puts ``ray_`` before each name.
    """

    def __init__(self, *, num_planned_videos: int, num_resumed_videos: int) -> None:
        self._num_planned_videos = num_planned_videos
        self._num_done_videos = num_resumed_videos
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}

    def add(self, summary: ShardSummary) -> None:
        """Count one shard."""
        self._num_done_videos += sum(summary.statuses.values())
        if not _ray_is_initialized():
            return
        if not self._counters:
            self._counters, self._gauges = _make_metrics()
        self._count("raypipe_shards_total", 1)
        self._count("raypipe_frames_total", summary.num_frames)
        self._count("raypipe_bytes_total", summary.size_bytes)
        self._count("raypipe_decode_wait_seconds_total", summary.wait_seconds)
        self._count("raypipe_s3_throttles_total", summary.num_throttles)
        for status, count in summary.statuses.items():
            self._count("raypipe_videos_total", count, status=str(status))
        for stage, seconds in summary.stage_seconds.items():
            self._count("raypipe_stage_seconds_total", seconds, stage=stage)
        # Each time, the one that does not change too: Ray forgets a gauge that nobody sets for some seconds.
        self._gauges["raypipe_planned_videos"].set(self._num_planned_videos)
        self._gauges["raypipe_done_videos"].set(self._num_done_videos)

    def _count(self, name: str, value: float, **tags: str) -> None:
        if value > 0:  # Ray refuses to count nothing
            self._counters[name].inc(value, tags)


def _ray_is_initialized() -> bool:
    ray = sys.modules.get("ray")  # whoever has started Ray has imported it
    return ray is not None and bool(ray.is_initialized())


def _make_metrics() -> "tuple[dict[str, Counter], dict[str, Gauge]]":
    from ray.util.metrics import Counter, Gauge  # noqa: PLC0415  only a process that runs Ray pays for it

    counters = {name: Counter(name, about, tags) for name, (about, tags) in _COUNTERS.items()}
    return counters, {name: Gauge(name, about) for name, about in _GAUGES.items()}
