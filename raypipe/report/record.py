"""What a run tells about itself: the summary of one shard, and the bounded record of all of them."""

import heapq
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Literal

from raypipe.report.text import error_kind, finite, redact, shorten
from raypipe.report.timeline import Bucket, Timeline
from raypipe.status import NOT_FAILED, Status

Outcome = Literal["running", "finished", "failed", "interrupted"]

MAX_SLOWEST = 20
MAX_FAILURES = 200
MAX_FAILURE_KINDS = 200
MAX_PROBLEMS = 50
MAX_THUMBNAILS = 48
MAX_THUMBNAIL_BYTES = 65_536
OTHER_KINDS = "other errors"
FLAG_TEXTS = {
    "num_corrupt_videos": "corrupt video",
    "num_corrupt_frames": "corrupt frame",
    "num_interlaced_videos": "deinterlaced video",
    "num_repaired_timelines": "repaired timeline",
}
_MAX_ID_CHARS = 1024
_MAX_ERROR_CHARS = 500


@dataclass(frozen=True, slots=True)
class VideoNote:
    """One video worth naming in a report."""

    video_id: str
    status: str
    error: str
    seconds: float  # download + decode


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """What a shard's stages tell the driver: small, whatever the size of the shard."""

    plan: int
    shard: int
    statuses: dict[str, int]  # status -> videos; sums to the shard's rows
    num_frames: int
    size_bytes: int  # bytes read: of videos, or of their vectors
    stage_seconds: dict[str, float]  # fetch, decode, embed, put -> seconds of one processor's wall clock
    finished_at: float  # Unix time
    slowest: tuple[VideoNote, ...] = ()  # the slowest few videos
    failures: tuple[VideoNote, ...] = ()  # the first few rows that failed
    thumbnails: tuple[tuple[str, bytes], ...] = ()  # a few (video_id, JPEG)
    labels: dict[str, int] = field(default_factory=dict)  # of classify: best label -> videos
    flags: dict[str, int] = field(default_factory=dict)  # of embed: a key of FLAG_TEXTS -> how many
    wait_seconds: float = 0.0  # of an actor on a GPU, for this shard to be decoded
    num_throttles: int = 0  # replies of S3 that asked for fewer requests
    already_committed: bool = False  # another attempt or another driver had put it
    problem: str = ""  # one line when the shard could not be finished; its counts are then empty


@dataclass(kw_only=True)
class RunRecord:
    """Everything a report says about one run of one job; bounded, whatever the number of shards.

    The first fields are the facts known at the start. ``num_planned_videos`` counts the whole plan,
    ``num_resumed_videos`` the part of it that earlier runs had committed; every other number is of this run only.
    ``num_slots`` is how many actors work at once: what their time did not go to stages is idle. 0 means unknown.
    ``clock`` gives Unix time; ``started_at`` is what it said when the record was made.
    """

    job: str = "embed"
    command: str = ""
    input_uri: str = ""
    output_uri: str = ""
    plans: tuple[int, ...] = ()
    fingerprint: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, object] = field(default_factory=dict)
    num_planned_videos: int = 0
    num_resumed_videos: int = 0
    num_slots: int = 0
    clock: Callable[[], float] = time.time
    started_at: float = field(init=False)
    num_shards: int = field(default=0, init=False)
    num_already_committed_shards: int = field(default=0, init=False)
    num_problems: int = field(default=0, init=False)
    num_frames: int = field(default=0, init=False)
    size_bytes: int = field(default=0, init=False)
    statuses: Counter[str] = field(default_factory=Counter, init=False)
    labels: Counter[str] = field(default_factory=Counter, init=False)
    flags: Counter[str] = field(default_factory=Counter, init=False)
    stage_seconds: dict[str, float] = field(default_factory=dict, init=False)
    timeline: Timeline = field(default_factory=Timeline, init=False)
    slowest: list[VideoNote] = field(default_factory=list, init=False)
    failures: list[VideoNote] = field(default_factory=list, init=False)
    failure_kinds: Counter[tuple[str, str]] = field(default_factory=Counter, init=False)
    problems: list[str] = field(default_factory=list, init=False)
    outcome: Outcome = field(default="running", init=False)
    message: str = field(default="", init=False)
    finished_at: float | None = field(default=None, init=False)
    _thumbnails: dict[bytes, tuple[str, bytes]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.started_at = self.clock()

    def add(self, summary: ShardSummary) -> None:
        """Count one attempt at a shard, which finished it unless it has a problem.

        ``failure_kinds`` counts only the failures that the shards name.
        """
        num_videos = sum(summary.statuses.values())
        num_failed = sum(count for status, count in summary.statuses.items() if status not in NOT_FAILED)
        num_shards = 0 if summary.problem else 1
        self.num_shards += num_shards
        self.num_already_committed_shards += summary.already_committed
        self.num_frames += summary.num_frames
        self.size_bytes += summary.size_bytes
        self.statuses.update(summary.statuses)
        self.labels.update(summary.labels)
        self.flags.update(summary.flags)
        for stage, seconds in summary.stage_seconds.items():
            self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + finite(seconds)
        # A worker's clock may be ahead of the driver's: nothing finishes after it was heard of.
        at_seconds = min(finite(summary.finished_at) - self.started_at, self.elapsed_seconds)
        self.timeline.add(
            at_seconds, Bucket(num_shards, num_videos, num_failed, summary.num_frames, summary.size_bytes)
        )
        self._note_videos(summary)
        if summary.problem:
            self.num_problems += 1
            if len(self.problems) < MAX_PROBLEMS:
                problem = shorten(redact(summary.problem), max_chars=_MAX_ERROR_CHARS)
                self.problems.append(f"plan {summary.plan}, shard {summary.shard}: {problem}")

    def close(self, *, outcome: Outcome, message: str = "") -> None:
        """Stop the clock and say how the run ended, in one line where there is more to say; the first call counts."""
        if self.finished_at is None:
            self.finished_at = self.clock()
            self.outcome = outcome
            self.message = shorten(redact(message), max_chars=_MAX_ERROR_CHARS)

    @property
    def elapsed_seconds(self) -> float:
        """Wall time since the start, up to ``close``."""
        return max(0.0, (self.clock() if self.finished_at is None else self.finished_at) - self.started_at)

    @property
    def num_videos(self) -> int:
        """Videos that this run ended, in whatever status."""
        return self.statuses.total()

    @property
    def num_failed_videos(self) -> int:
        """Videos of this run that gave no frames; those that are gone were not tried."""
        return sum(count for status, count in self.statuses.items() if status not in NOT_FAILED)

    @property
    def num_tried_videos(self) -> int:
        """Videos of this run but for those that are gone."""
        return self.num_videos - self.statuses[Status.GONE]

    @property
    def failed_fraction(self) -> float:
        """The share of the videos that this run tried that gave no frames."""
        return self.num_failed_videos / self.num_tried_videos if self.num_tried_videos else 0.0

    @property
    def num_done_videos(self) -> int:
        """Videos of the plan that are committed, by this run and those before."""
        return self.num_resumed_videos + self.num_videos

    @property
    def idle_seconds(self) -> float | None:
        """Seconds of all slots together that no stage accounts for; None where ``num_slots`` is unknown."""
        if self.num_slots <= 0:
            return None
        return max(0.0, self.num_slots * self.elapsed_seconds - sum(self.stage_seconds.values()))

    @property
    def thumbnails(self) -> list[tuple[str, bytes]]:
        """At most ``MAX_THUMBNAILS`` (video_id, JPEG), an even choice over the run, by video_id."""
        return sorted(self._thumbnails.values())

    def mean_rate(self, count: float) -> float:
        """Return ``count`` per second of this run's wall time; 0 before any time has passed."""
        return count / self.elapsed_seconds if self.elapsed_seconds > 0 else 0.0

    def _note_videos(self, summary: ShardSummary) -> None:
        slowest = [*self.slowest, *map(_bounded, summary.slowest)]
        self.slowest = heapq.nlargest(MAX_SLOWEST, slowest, key=lambda note: (note.seconds, note.video_id))
        for note in map(_bounded, summary.failures):
            if len(self.failures) < MAX_FAILURES:
                self.failures.append(note)
            kind = (note.status, error_kind(note.error))
            full = kind not in self.failure_kinds and len(self.failure_kinds) >= MAX_FAILURE_KINDS - 1
            self.failure_kinds[(OTHER_KINDS, "") if full else kind] += 1
        for video_id, jpeg in summary.thumbnails:
            if len(jpeg) <= MAX_THUMBNAIL_BYTES and jpeg.startswith(b"\xff\xd8\xff"):
                # The smallest hashes are an even choice that depends neither on order nor on chance.
                key = blake2b(video_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                self._thumbnails[key] = (video_id[:_MAX_ID_CHARS], jpeg)
                if len(self._thumbnails) > MAX_THUMBNAILS:
                    del self._thumbnails[max(self._thumbnails)]


def _bounded(note: VideoNote) -> VideoNote:
    return replace(
        note,
        video_id=note.video_id[:_MAX_ID_CHARS],
        error=shorten(redact(note.error), max_chars=_MAX_ERROR_CHARS),
        seconds=finite(note.seconds),
    )
