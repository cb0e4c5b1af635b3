"""What a run tells about itself, as data: shard summaries, and the records of a batch run and of a training."""

import heapq
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from hashlib import blake2b
from typing import Literal

from raypipe.status import NOT_FAILED_IN_ANY_JOB, Status
from raypipe.text import error_kind, finite, format_metric, metric_name, redact, shorten

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
MAX_BUCKETS = 300
_SHARDS_PER_POINT = 3  # fewer make a chart of spikes: shards finish in lumps
_MIN_POINTS = 8
_TOP = 5  # of top-5 accuracy
Objective = Literal["classify", "masked_frame"]
ProblemType = Literal["single_label_classification", "multi_label_classification"]

MAX_MISTAKES = 48
_LOSSES = {"loss": "validation_loss", "validation_loss": "validation_loss", "train_loss": "train_loss"}


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
    statuses: dict[str, int] = field(default_factory=dict)  # status -> rows; sums to the rows of the shard
    num_frames: int = 0
    size_bytes: int = 0  # bytes read: of videos, or of their vectors
    stage_seconds: dict[str, float] = field(default_factory=dict)  # fetch, decode, embed, put -> seconds of an actor
    finished_at: float = 0.0  # Unix time
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
    noun: str = "video"  # what has one row; the counts of videos are counts of these
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
        num_failed = sum(count for status, count in summary.statuses.items() if status not in NOT_FAILED_IN_ANY_JOB)
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
        return sum(count for status, count in self.statuses.items() if status not in NOT_FAILED_IN_ANY_JOB)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochMetrics:
    """One epoch, counted from 1; ``step`` counts optimizer steps from the start of the training.

    What was not measured is None: all but losses with ``masked_frame``, all but the training loss where no videos were
    held out. ``accuracy`` is the share of held-out videos that are right; of several labels each, that all are.
    """

    epoch: int
    step: int
    train_loss: float
    validation_loss: float | None = None
    accuracy: float | None = None
    top5_accuracy: float | None = None
    macro_f1: float | None = None
    learning_rate: float
    samples_per_second: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMetrics:
    """One label on the validation split: ``support`` videos have it, ``predicted`` were given it."""

    label: str
    support: int
    predicted: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A validation video that is predicted wrong: with which probability, and with which its true label."""

    video_id: str
    label: str
    predicted: str
    score: float
    label_score: float
    thumbnail: bytes | None = None  # JPEG


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One training of a search: what it set differently, and its best epoch."""

    name: str
    settings: Mapping[str, object]
    outcome: Outcome
    best_epoch: int | None = None
    metrics: EpochMetrics | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """Everything a report says about one training.

    ``selected_by`` names the metric that chose ``best_epoch``, whose checkpoint is kept: ``loss``, ``accuracy`` or
    ``macro_f1``. ``confusion`` (rows: true label, columns: predicted, both as ``label_names``), ``classes`` and
    ``mistakes`` are of that checkpoint on the validation split. Times are Unix seconds.
    """

    objective: Objective
    problem_type: ProblemType = "single_label_classification"
    command: str = ""
    embeddings_uri: str = ""
    labels_uri: str = ""
    output_uri: str = ""
    model_uri: str = ""
    outcome: Outcome
    message: str = ""
    started_at: float
    finished_at: float | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, object] = field(default_factory=dict)
    label_names: Sequence[str] = ()
    num_train_videos: int = 0
    num_validation_videos: int = 0
    num_unknown_labels: int = 0  # videos that have a label and no embeddings
    num_without_frames: int = 0  # videos whose embeddings have no frame
    num_parameters: int = 0
    num_trainable_parameters: int = 0
    num_workers: int = 1
    epochs: tuple[EpochMetrics, ...] = ()
    best_epoch: int | None = None
    selected_by: str = "loss"
    num_restarts: int = 0
    confusion: Sequence[Sequence[int]] | None = None
    classes: tuple[ClassMetrics, ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    trials: tuple[Trial, ...] = ()

    @property
    def kept(self) -> EpochMetrics | None:
        """The epoch whose checkpoint is kept; the last one where none was chosen, None where none ended."""
        chosen = [metrics for metrics in self.epochs if metrics.epoch == self.best_epoch] or self.epochs
        return chosen[-1] if chosen else None

    @property
    def elapsed_seconds(self) -> float:
        """Wall time; that of the epochs while the training goes on."""
        if self.finished_at is None:
            return sum(finite(metrics.seconds) for metrics in self.epochs)
        return max(0.0, self.finished_at - self.started_at)

    @property
    def several_labels(self) -> bool:
        """Whether a video may have several labels at once."""
        return self.problem_type == "multi_label_classification"

    @property
    def metric_names(self) -> list[str]:
        """The metrics of an epoch that are meaningful for this training, in the order in which they are shown."""
        names = ["accuracy", "top5_accuracy", "macro_f1", "validation_loss", "train_loss"]
        if len(self.label_names) <= _TOP or self.several_labels:
            names.remove("top5_accuracy")  # with five labels it is 100% for every model
        return names

    @property
    def kept_metrics(self) -> list[tuple[str, str]]:
        """The metrics of the kept epoch for people, as (name, number)."""
        values = [(name, getattr(self.kept, name, None)) for name in self.metric_names]
        return [(metric_name(name), format_metric(name, value)) for name, value in values if value is not None]

    @property
    def selected_name(self) -> str:
        """The metric that selected the kept epoch, in words."""
        unheld = self.kept is None or self.kept.validation_loss is None
        return metric_name("train_loss" if self.selected_by == "loss" and unheld else self.selected_by)

    @property
    def best_trial(self) -> Trial | None:
        """The trial with the best metrics by ``selected_by``; None where no trial has any."""
        ranked = [(value, trial) for trial in self.trials if (value := self._rank(trial.metrics)) is not None]
        return max(ranked, key=lambda item: item[0])[1] if ranked else None

    def _rank(self, metrics: EpochMetrics | None) -> float | None:
        if metrics is None:
            return None
        value = selecting_value(metrics, self.selected_by)
        if value is None or value != value:  # noqa: PLR0124  a NaN is nobody's best
            return None
        return -value if self.selected_by in _LOSSES else value


def selecting_value(metrics: EpochMetrics, selected_by: str) -> float | None:
    """Return the metric named ``selected_by``; for a loss that of training where nothing was held out."""
    if selected_by in _LOSSES:
        value: float | None = getattr(metrics, _LOSSES[selected_by])
        return metrics.train_loss if value is None else value
    found = getattr(metrics, selected_by, None)
    return found if isinstance(found, int | float) else None


def confused_pairs(record: TrainingRecord) -> list[tuple[str, str, int, int]]:
    """Return (true label, predicted label, videos, videos of that true label) of what is confused, the most first."""
    pairs = []
    for row, counts in enumerate(record.confusion or ()):
        whole = sum(counts)
        pairs += [(row, column, count, whole) for column, count in enumerate(counts) if count and column != row]
    pairs.sort(key=lambda pair: (-pair[2], pair[0], pair[1]))
    return [(record.label_names[row], record.label_names[column], count, whole) for row, column, count, whole in pairs]
