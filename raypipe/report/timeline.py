"""Work over time in a bounded number of buckets that stay exact in sum."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

MAX_BUCKETS = 300
_SHARDS_PER_POINT = 3  # fewer make a chart of spikes: shards finish in lumps
_MIN_POINTS = 8


@dataclass(slots=True)
class Bucket:
    """What finished in one span of time."""

    num_shards: int = 0
    num_videos: int = 0
    num_failed: int = 0
    num_frames: int = 0
    size_bytes: int = 0

    def add(self, other: "Bucket") -> None:
        """Add another span's work to this one."""
        for counter in fields(self):
            setattr(self, counter.name, getattr(self, counter.name) + getattr(other, counter.name))


@dataclass(frozen=True, slots=True)
class Point:
    """A span of a chart, in seconds since the start, and what finished in it."""

    start_seconds: float
    end_seconds: float
    work: Bucket

    @property
    def width_seconds(self) -> float:
        """The length of the span, above 0."""
        return self.end_seconds - self.start_seconds


@dataclass(slots=True)
class Timeline:
    """At most ``MAX_BUCKETS`` buckets of equal width from 0 on; when they are full, neighbours merge in pairs."""

    bucket_seconds: float = 1.0
    buckets: list[Bucket] = field(default_factory=list)

    def add(self, at_seconds: float, work: Bucket) -> None:
        """Count ``work`` as finished ``at_seconds`` after the start (before it counts as at it)."""
        at_seconds = max(0.0, at_seconds)
        while at_seconds >= self.bucket_seconds * MAX_BUCKETS:
            self._merge_neighbors()
        index = min(int(at_seconds / self.bucket_seconds), MAX_BUCKETS - 1)
        self.buckets.extend(Bucket() for _ in range(len(self.buckets), index + 1))
        self.buckets[index].add(work)

    def _merge_neighbors(self) -> None:
        for left, right in zip(self.buckets[::2], self.buckets[1::2], strict=False):
            left.add(right)
        self.buckets = self.buckets[::2]
        self.bucket_seconds *= 2

    def points(self, elapsed_seconds: float, *, max_points: int = 100) -> Iterator[Point]:
        """Yield the whole run as spans wide enough for a chart; the last ends at ``elapsed_seconds``."""
        end_seconds = max(elapsed_seconds, self.bucket_seconds * (len(self.buckets) - 1), 1e-3)
        num_buckets = max(1, math.ceil(end_seconds / self.bucket_seconds))
        num_shards = sum(bucket.num_shards for bucket in self.buckets)
        step = max(
            math.ceil(num_buckets / max_points),
            min(_SHARDS_PER_POINT * num_buckets // max(1, num_shards), num_buckets // _MIN_POINTS),
            1,
        )
        starts = list(range(0, num_buckets, step))
        if len(starts) > 1 and end_seconds - starts[-1] * self.bucket_seconds < step * self.bucket_seconds / 2:
            starts.pop()  # a rate over a fraction of a span would be a spike or a hole
        for start, stop in zip(starts, [*starts[1:], max(num_buckets, len(self.buckets))], strict=True):
            work = Bucket()
            for bucket in self.buckets[start:stop]:
                work.add(bucket)
            last = start == starts[-1]
            yield Point(start * self.bucket_seconds, end_seconds if last else stop * self.bucket_seconds, work)
