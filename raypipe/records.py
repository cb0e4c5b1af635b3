"""The data that jobs report: summaries of shards, and records of batch runs and trainings."""

import heapq
import math
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from hashlib import blake2b
from importlib import metadata
from typing import Any, Literal

from raypipe import __version__
from raypipe.status import NOT_FAILED_IN_ANY_JOB, Status
from raypipe.text import (
    error_kind,
    finite,
    format_count,
    format_metric,
    format_share,
    metric_name,
    plural,
    redact,
    shorten,
)

Outcome = Literal["running", "finished", "failed", "interrupted"]
Objective = Literal["classify", "self_train", "masked_frame", "frame_order", "next_video"]
ProblemType = Literal["single_label_classification", "multi_label_classification"]

MAX_SLOWEST = 20
MAX_FAILURES = 200
MAX_FAILURE_KINDS = 200
MAX_PROBLEMS = 50
MAX_THUMBNAILS = 48
MAX_THUMBNAIL_BYTES = 65_536
MAX_BUCKETS = 300
MAX_MISTAKES = 48
OTHER_KINDS = "other errors"
_MAX_ID_CHARS = 1024
_MAX_ERROR_CHARS = 500
_SHARDS_PER_POINT = 3  # with fewer, a chart consists of spikes, because shards finish in batches
_MIN_POINTS = 8
_TOP = 5  # the 5 in top-5 accuracy
RANKING_METRICS = ("ndcg_at_10", "hr_at_10", "coverage_at_10")
EPOCH_METRICS = ("train_loss", "validation_loss", "accuracy", "top5_accuracy", "macro_f1", *RANKING_METRICS)
_SELECTED = {"ndcg": "ndcg_at_10", "hr": "hr_at_10"}


@dataclass(slots=True)
class Bucket:
    """The work that finished in one time span."""

    num_shards: int = 0
    num_videos: int = 0
    num_failed: int = 0
    num_frames: int = 0
    size_bytes: int = 0

    def add(self, other: "Bucket") -> None:
        for counter in fields(self):
            setattr(self, counter.name, getattr(self, counter.name) + getattr(other, counter.name))


@dataclass(frozen=True, slots=True)
class Point:
    """A time span in a chart, in seconds since the start of the run, and the work that finished in it."""

    start_seconds: float
    end_seconds: float
    work: Bucket

    @property
    def width_seconds(self) -> float:
        return self.end_seconds - self.start_seconds


@dataclass(slots=True)
class Timeline:
    """At most ``MAX_BUCKETS`` buckets of equal width, starting at 0. When all are in use, neighbors are merged."""

    bucket_seconds: float = 1.0
    buckets: list[Bucket] = field(default_factory=list)

    def add(self, at_seconds: float, work: Bucket) -> None:
        """Count ``work`` as finished ``at_seconds`` after the start. Times before the start count as 0."""
        at_seconds = max(0.0, at_seconds)
        while at_seconds >= self.bucket_seconds * MAX_BUCKETS:
            for left, right in zip(self.buckets[::2], self.buckets[1::2], strict=False):
                left.add(right)
            self.buckets = self.buckets[::2]
            self.bucket_seconds *= 2
        index = min(int(at_seconds / self.bucket_seconds), MAX_BUCKETS - 1)
        self.buckets.extend(Bucket() for _ in range(len(self.buckets), index + 1))
        self.buckets[index].add(work)

    def points(self, elapsed_seconds: float, *, max_points: int = 100) -> Iterator[Point]:
        """Divide the run into time spans that are wide enough for a chart. The last one ends at ``elapsed_seconds``."""
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
            starts.pop()  # the rate over a fraction of a span would be a spike or a gap
        for start, stop in zip(starts, [*starts[1:], max(num_buckets, len(self.buckets))], strict=True):
            work = Bucket()
            for bucket in self.buckets[start:stop]:
                work.add(bucket)
            last = start == starts[-1]
            yield Point(start * self.bucket_seconds, end_seconds if last else stop * self.bucket_seconds, work)


@dataclass(frozen=True, slots=True)
class VideoNote:
    """A video that a report mentions by name."""

    video_id: str
    status: str
    error: str
    seconds: float  # download + decode


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """What the stages of a shard report to the driver. It is small, whatever the size of the shard."""

    plan: int
    shard: int
    statuses: dict[str, int] = field(default_factory=dict)  # status -> rows; sums to the rows of the shard
    num_frames: int = 0
    size_bytes: int = 0  # bytes read, of videos or of their embeddings
    stage_seconds: dict[str, float] = field(default_factory=dict)  # fetch, decode, … -> wall-clock seconds on one actor
    finished_at: float = 0.0  # Unix time
    slowest: tuple[VideoNote, ...] = ()  # the slowest few videos
    failures: tuple[VideoNote, ...] = ()  # the first few rows that failed
    thumbnails: tuple[tuple[str, bytes], ...] = ()  # a few (video_id, JPEG)
    labels: dict[str, int] = field(default_factory=dict)  # classify: best label -> videos
    flags: dict[str, int] = field(default_factory=dict)  # embed: a key of text.FLAG_TEXTS -> count
    wait_seconds: float = 0.0  # how long a GPU actor waited for this shard to be decoded
    num_throttles: int = 0  # S3 responses that asked for fewer requests
    already_committed: bool = False  # another attempt or another driver had committed the shard
    problem: str = ""  # the error, if the shard could not be finished; the counts are then empty


@dataclass(kw_only=True)
class RunRecord:
    """Everything that a report shows about one run of one job. Its size is bounded for any number of shards.

    The fields up to ``clock`` are known at the start. ``num_planned_videos`` counts the whole plan, and
    ``num_resumed_videos`` counts the part of the plan that earlier runs committed. All other numbers are about this run
    only. ``num_slots`` is the number of actors that work in parallel, or 0 if unknown. Time that these actors do not
    spend in a stage is idle. ``clock`` returns Unix time, and ``started_at`` is the time when the record was created.
    """

    job: str = "embed"
    noun: str = "video"  # what one row stands for; counts of videos count these
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
    skipped: Mapping[str, int] = field(default_factory=dict)  # files of the input that were not planned, by reason
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
    failure_kinds: Counter[tuple[str, str]] = field(default_factory=Counter, init=False)  # of failures with a note
    problems: list[str] = field(default_factory=list, init=False)
    outcome: Outcome = field(default="running", init=False)
    message: str = field(default="", init=False)
    finished_at: float | None = field(default=None, init=False)
    _thumbnails: dict[bytes, tuple[str, bytes]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.started_at = self.clock()

    def add(self, summary: ShardSummary) -> None:
        """Count one attempt at a shard. If the summary has a problem, the attempt did not finish the shard."""
        self.num_shards += not summary.problem
        self.num_already_committed_shards += summary.already_committed
        self.num_frames += summary.num_frames
        self.size_bytes += summary.size_bytes
        self.statuses.update(summary.statuses)
        self.labels.update(summary.labels)
        self.flags.update(summary.flags)
        for stage, seconds in summary.stage_seconds.items():
            self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + finite(seconds)
        # A worker's clock may be ahead of the driver's, but no work finishes after its summary has arrived.
        at_seconds = min(finite(summary.finished_at) - self.started_at, self.elapsed_seconds)
        work = Bucket(
            num_shards=int(not summary.problem),
            num_videos=sum(summary.statuses.values()),
            num_failed=_num_failed(summary.statuses),
            num_frames=summary.num_frames,
            size_bytes=summary.size_bytes,
        )
        self.timeline.add(at_seconds, work)
        self._note_videos(summary)
        self.num_problems += bool(summary.problem)
        if summary.problem and len(self.problems) < MAX_PROBLEMS:
            self.problems.append(f"plan {summary.plan}, shard {summary.shard}: {_bounded_error(summary.problem)}")

    def close(self, *, outcome: Outcome, message: str = "") -> None:
        """Stop the clock and record how the run ended, with a one-line message. Only the first call has an effect."""
        if self.finished_at is None:
            self.finished_at = self.clock()
            self.outcome = outcome
            self.message = _bounded_error(message)

    @property
    def elapsed_seconds(self) -> float:
        """Wall time from the start until now or until ``close``."""
        return max(0.0, (self.clock() if self.finished_at is None else self.finished_at) - self.started_at)

    @property
    def num_videos(self) -> int:
        """Videos that this run finished, with any status."""
        return self.statuses.total()

    @property
    def num_failed_videos(self) -> int:
        """Videos that failed in this run. Videos that are gone do not count, because they were not tried."""
        return _num_failed(self.statuses)

    @property
    def num_tried_videos(self) -> int:
        """Videos that this run tried to process: all of its videos except the ones that are gone."""
        return self.num_videos - self.statuses[Status.GONE]

    @property
    def failed_fraction(self) -> float:
        return self.num_failed_videos / self.num_tried_videos if self.num_tried_videos else 0.0

    @property
    def num_done_videos(self) -> int:
        """Videos of the plan that this run and earlier runs committed."""
        return self.num_resumed_videos + self.num_videos

    @property
    def idle_seconds(self) -> float | None:
        """Total time of all slots that was not spent in a stage, or None if ``num_slots`` is unknown."""
        if self.num_slots <= 0:
            return None
        return max(0.0, self.num_slots * self.elapsed_seconds - sum(self.stage_seconds.values()))

    @property
    def thumbnails(self) -> list[tuple[str, bytes]]:
        """At most ``MAX_THUMBNAILS`` pairs (video_id, JPEG), chosen evenly from the run and sorted by video_id."""
        return sorted(self._thumbnails.values())

    def mean_rate(self, count: float) -> float:
        """Return ``count`` per second of wall time, or 0 before any time has passed."""
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
            if is_thumbnail(jpeg):
                # Keeping the smallest hashes chooses evenly, and depends on neither the order of shards nor chance.
                key = blake2b(video_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                self._thumbnails[key] = (video_id[:_MAX_ID_CHARS], jpeg)
                if len(self._thumbnails) > MAX_THUMBNAILS:
                    del self._thumbnails[max(self._thumbnails)]


def _num_failed(statuses: Mapping[str, int]) -> int:
    return sum(count for status, count in statuses.items() if status not in NOT_FAILED_IN_ANY_JOB)


def _bounded_error(error: str) -> str:
    return shorten(redact(error), max_chars=_MAX_ERROR_CHARS)


def _bounded(note: VideoNote) -> VideoNote:
    video_id, error = note.video_id[:_MAX_ID_CHARS], _bounded_error(note.error)
    return replace(note, video_id=video_id, error=error, seconds=finite(note.seconds))


def is_thumbnail(jpeg: bytes) -> bool:
    """Return whether ``jpeg`` is a JPEG that is small enough for a report."""
    return jpeg.startswith(b"\xff\xd8\xff") and len(jpeg) <= MAX_THUMBNAIL_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochMetrics:
    """The metrics of one epoch. Epochs count from 1. ``step`` counts optimizer steps since the start of the training.

    Values that were not measured are None. Without labels, only the losses are measured. Without validation
    videos, only the training loss is measured. ``accuracy`` is the fraction of validation videos that are predicted
    correctly. If a video may have several labels, all of its labels must be correct. Epoch 0 is the probe of a
    classifier. ``probe_gain`` is the difference between its validation loss and that of this epoch, with the standard
    error ``probe_gain_error``.

    For ``next_video``, every video that a user has not watched is ranked. ``hr_at_10`` and ``ndcg_at_10`` say how high
    the next video is, and ``coverage_at_10`` is the fraction of all videos that are among the first ten of some user.
    """

    epoch: int
    step: int
    train_loss: float
    validation_loss: float | None = None
    accuracy: float | None = None
    top5_accuracy: float | None = None
    macro_f1: float | None = None
    hr_at_10: float | None = None
    ndcg_at_10: float | None = None
    coverage_at_10: float | None = None
    probe_gain: float | None = None
    probe_gain_error: float | None = None
    learning_rate: float
    samples_per_second: float
    seconds: float


def selected_metric(select_by: str) -> str:
    """Return the field of ``EpochMetrics`` that ``optimizer.select_by`` names; ``loss`` stands for itself."""
    return _SELECTED.get(select_by, select_by)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMetrics:
    """The metrics of one label on the validation split.

    ``support`` is the number of videos that have the label. ``predicted`` is the number of videos for which it was
    predicted.
    """

    label: str
    support: int
    predicted: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A validation video with a wrong prediction.

    ``score`` is the probability of the predicted label, and ``label_score`` is the probability of the true label.
    """

    video_id: str
    label: str
    predicted: str
    score: float
    label_score: float
    thumbnail: bytes | None = None  # JPEG


# The names of models in a comparison.
THIS_MODEL, GPT2_ALONE, MAJORITY, NEAREST = "this model", "GPT-2 alone", "majority", "1-NN on mean"
LABEL_SPREADING = "label spreading on mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerMetrics:
    """How well one model classifies the validation videos, and how much better the trained model is.

    ``difference`` is the accuracy of the trained model minus that of this one, with a paired 95 % bootstrap interval.
    ``log_loss`` and ``calibration_error`` are None for a model that gives no probabilities.
    """

    name: str
    accuracy: float
    log_loss: float | None
    calibration_error: float | None
    difference: float
    difference_low: float
    difference_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionCurve:
    """The mean probability of the predicted label after a fraction of the frames was removed.

    ``by_score`` and ``at_random`` have one entry per entry of ``fractions``: after the removal of the frames with the
    highest scores, and of random frames. ``difference`` is the area between the two curves, as the mean over the videos
    with its 95 % interval.
    """

    fractions: tuple[float, ...]
    by_score: tuple[float, ...]
    at_random: tuple[float, ...]
    difference: float
    difference_low: float
    difference_high: float
    num_videos: int

    @property
    def is_better(self) -> bool:
        """Whether removing frames by score is measurably better than removing random frames."""
        return self.difference_low > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One training in a hyperparameter search: the settings that it changed, and the metrics of its best epoch."""

    name: str
    settings: Mapping[str, object]
    outcome: Outcome
    best_epoch: int | None = None
    metrics: EpochMetrics | None = None


@dataclass(frozen=True, slots=True)
class SelfTraining:
    """How many videos had no label, how many of them were given one, and by which model.

    ``accuracy`` is that of this model on labelled videos whose labels it was not given.
    """

    num_unlabelled: int
    num_given: int
    teacher: str
    accuracy: float

    def __str__(self) -> str:
        given = f"{format_count(self.num_given)} of {plural(self.num_unlabelled, 'video')} without one"
        return f"{given}, by {self.teacher} ({format_share(self.accuracy)} right)"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """Everything that a report shows about one training.

    ``selected_by`` is the metric that selected ``best_epoch``: ``loss`` or a field of ``EpochMetrics``. The checkpoint
    of that epoch is kept. ``confusion``, ``classes`` and ``mistakes`` describe this checkpoint on the validation split.
    The rows of ``confusion`` are true labels and its columns are predicted labels, both in the order of
    ``label_names``. Times are Unix seconds.

    The samples of ``next_video`` are histories of users, which ``num_train_videos`` and ``num_validation_videos`` count
    then. ``history_facts`` says which events were learned, and ``history_counts`` how many events of the file were left
    out, by reason. If the model was refitted on all events, ``epochs`` are of the training that selected the epoch.
    """

    objective: Objective
    problem_type: ProblemType = "single_label_classification"
    command: str = ""
    embeddings_uri: str = ""
    labels_uri: str = ""
    index_uri: str = ""
    history_uri: str = ""
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
    num_unknown_labels: int = 0  # videos with a label but without embeddings
    num_without_frames: int = 0  # videos whose embeddings have no frames
    history_facts: Mapping[str, Any] = field(default_factory=dict)
    history_counts: Mapping[str, int] = field(default_factory=dict)
    is_refitted: bool = False
    self_training: SelfTraining | None = None
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
    peers: tuple[PeerMetrics, ...] = ()
    deletion: DeletionCurve | None = None
    trials: tuple[Trial, ...] = ()

    @property
    def kept(self) -> EpochMetrics | None:
        """The metrics of the epoch whose checkpoint is kept.

        This is the best epoch or, if no epoch was selected, the last one. It is None if no epoch has ended.
        """
        chosen = [metrics for metrics in self.epochs if metrics.epoch == self.best_epoch] or self.epochs
        return chosen[-1] if chosen else None

    @property
    def kept_what(self) -> str:
        """Describe the kept epoch: ``epoch 7 of 30, the best accuracy``. Empty if no epoch has ended."""
        if self.kept is None:
            return ""
        last = self.epochs[-1].epoch
        if self.kept.epoch == 0:
            return "the linear probe" + (f", because GPT-2 did not help in {plural(last, 'epoch')}" if last else "")
        chosen = f", {self.kept_why}" if self.best_epoch is not None else ""
        return f"epoch {self.kept.epoch} of {last}{chosen}"

    @property
    def kept_why(self) -> str:
        """Describe why the epoch is kept. With a probe, only epochs that clearly beat it are compared."""
        among = " of the epochs that clearly beat the linear probe" if self.has_probe and self.best_epoch else ""
        return f"the best {self.selected_name}{among}"

    @property
    def has_probe(self) -> bool:
        """Whether the classifier has a linear probe. Its epoch 0 is measured."""
        return any(metrics.epoch == 0 for metrics in self.epochs)

    @property
    def advice(self) -> str:
        """One sentence that says whether the trained model beats the best simple model. Empty without a comparison."""
        others = [peer for peer in self.peers if peer.name != THIS_MODEL]
        if not others or self.kept is None:
            return ""
        best = max(others, key=lambda peer: peer.accuracy)
        found, low, high = (100 * value for value in (best.difference, best.difference_low, best.difference_high))
        points = f"{found:+.1f} points [{low:+.1f}, {high:+.1f}]"
        kept = "GPT-2 alone was trained"
        if self.has_probe:
            kept = "GPT-2 helps" if self.best_epoch else "The linear probe is enough"
        if best.difference_low > 0:
            return f"{kept}. Trust this model: it is better than {best.name}, by {points} of accuracy."
        if best.difference_high < 0:
            return f"{kept}, but {best.name} is better: {points} of accuracy. Use that, or add labels."
        videos = plural(self.num_validation_videos, "validation video")
        return f"{kept}. On {videos}, this model and {best.name} are not distinguishable: {points} of accuracy."

    @property
    def elapsed_seconds(self) -> float:
        """The wall time of the training. While the training is running, the total time of all epochs so far."""
        if self.finished_at is None:
            return sum(finite(metrics.seconds) for metrics in self.epochs)
        return max(0.0, self.finished_at - self.started_at)

    @property
    def sample_noun(self) -> str:
        """What a sample is: a video, or for ``next_video`` a user with a history."""
        return "user" if self.objective == "next_video" else "video"

    @property
    def several_labels(self) -> bool:
        return self.problem_type == "multi_label_classification"

    @property
    def metric_names(self) -> list[str]:
        """The names of the metrics that are meaningful for this training, in the order in which they are shown."""
        if self.objective == "next_video":
            return [*RANKING_METRICS, "train_loss"]
        names = ["accuracy", "top5_accuracy", "macro_f1", "validation_loss", "train_loss"]
        if len(self.label_names) <= _TOP or self.several_labels:
            names.remove("top5_accuracy")  # with five labels it is 100% for every model
        return names

    @property
    def kept_metrics(self) -> list[tuple[str, str]]:
        """The metrics of the kept epoch as (displayed name, formatted number)."""
        values = [(name, getattr(self.kept, name, None)) for name in self.metric_names]
        return [(metric_name(name), format_metric(name, value)) for name, value in values if value is not None]

    @property
    def selected_name(self) -> str:
        """The displayed name of the metric that selected the kept epoch."""
        unheld = self.kept is None or self.kept.validation_loss is None
        return metric_name("train_loss" if self.selected_by == "loss" and unheld else self.selected_by)

    @property
    def best_trial(self) -> Trial | None:
        """The trial that is best by the metric ``selected_by``, or None if no trial has measured this metric."""
        ranked = [(rank, trial) for trial in self.trials if (rank := self._rank(trial.metrics)) is not None]
        return max(ranked, key=lambda item: item[0])[1] if ranked else None

    def _rank(self, metrics: EpochMetrics | None) -> float | None:
        """Return the metric ``selected_by`` as a number where higher is better, or None if it was not measured."""
        rank: float | None = getattr(metrics, self.selected_by, None)
        if metrics is not None and self.selected_by == "loss":
            rank = -(metrics.train_loss if metrics.validation_loss is None else metrics.validation_loss)
        return None if rank is None or math.isnan(rank) else rank


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedVideo:
    """A video in the report of an evaluation: its title or id, its JPEG thumbnail, and whether it was watched next."""

    name: str
    thumbnail: bytes | None = None
    is_target: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleUser:
    """What a test user watched, the first recommended videos, and what the user watched next.

    ``place`` is the first place of a target in the list, and None if no target is there.
    """

    history: tuple[ListedVideo, ...]  # the newest ones, newest last
    listed: tuple[ListedVideo, ...]
    targets: tuple[ListedVideo, ...]
    place: int | None
    num_watched: int
    num_listed: int


class Timed:
    """A record of work that has ended. Its times are Unix times."""

    __slots__ = ()
    started_at: float
    finished_at: float

    @property
    def elapsed_seconds(self) -> float:
        """Return the wall time of the work."""
        return max(0.0, self.finished_at - self.started_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecord(Timed):
    """Everything that a report shows about one evaluation of an index.

    ``metrics`` is the content of ``metrics.json``. ``counts`` says how many events of the history were left out, by
    reason. Times are Unix times.
    """

    command: str
    index_uri: str
    history_uri: str
    output_uri: str
    settings: Mapping[str, object]
    versions: Mapping[str, str]
    started_at: float
    finished_at: float
    metrics: Mapping[str, Any]
    counts: Mapping[str, int]
    examples: tuple[ExampleUser, ...] = ()
    outcome: Outcome = "finished"
    machine: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoToLabel:
    """A video to label next. Without a model, there are no labels; with one, the two most probable ones."""

    video_id: str
    video_uri: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    num_similar: int  # unlabelled videos that resemble this one more than the others of the list
    thumbnail: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelToCheck:
    """A label that is probably wrong.

    If ``label`` is None, a multi-label video probably lacks the suggested label. If ``suggested`` is None, it probably
    has a label too many. ``probability`` is the probability that what is given is right.
    """

    video_id: str
    video_uri: str
    label: str | None
    suggested: str | None
    probability: float
    suggested_probability: float
    thumbnail: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCounts:
    """One label: how many videos have it, the fraction that a model finds unseen, and how many are to be checked."""

    label: str
    num_videos: int
    recall: float | None
    num_to_check: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SuggestionRecord(Timed):
    """Everything that a report shows about suggestions. ``summary`` is the content of ``summary.json``."""

    command: str
    embeddings_uri: str
    output_uri: str
    settings: Mapping[str, object]
    versions: Mapping[str, str]
    started_at: float
    finished_at: float
    summary: Mapping[str, Any]
    to_label: tuple[VideoToLabel, ...]
    to_check: tuple[LabelToCheck, ...]
    labels: tuple[LabelCounts, ...]
    outcome: Outcome = "finished"
    machine: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StrangeVideo:
    """One of the strangest videos in the report of anomalies, with the nearest video of the catalogue.

    ``frame_scores`` has one entry per frame; None where a frame was not scored. It is empty if no frame was.
    """

    video: ListedVideo
    p_value: float
    q_value: float
    is_anomaly: bool
    neighbor_distance: float
    mahalanobis_length: float
    closest: ListedVideo
    strangest_seconds: float | None
    frame_scores: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnomalyRecord(Timed):
    """Everything that a report shows about the anomalies of an output.

    ``metrics`` is the content of ``anomalies.json``, and ``cusum`` has one value per scored video, in their order.
    Times are Unix times.
    """

    command: str
    index_uri: str
    embeddings_uri: str
    output_uri: str
    settings: Mapping[str, object]
    versions: Mapping[str, str]
    started_at: float
    finished_at: float
    metrics: Mapping[str, Any]
    cusum: Sequence[float]
    videos: tuple[StrangeVideo, ...] = ()
    outcome: Outcome = "finished"
    machine: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateMetrics:
    """One candidate of a compression, measured on the validation samples.

    ``score`` is the accuracy or the NDCG@10, and None without labels. ``loss`` is the score of the original model minus
    that of the candidate or, without labels, the share of videos with another answer, with a paired 95 % bootstrap
    interval. ``agreement`` is the share of samples with the answer of the original model. ``speedup`` is the median of
    paired measurements on one core. ``others`` are further scores by name.
    """

    name: str
    num_blocks: int
    num_heads: int
    int8: bool
    num_parameters: int
    size_bytes: int
    samples_per_second: float
    speedup: float
    score: float | None
    loss: float
    loss_low: float
    loss_high: float
    agreement: float
    others: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionRecord(Timed):
    """Everything that a report shows about one compression.

    ``chosen`` is the name of a candidate; that of the first one if compression does not pay off. ``score_name`` is
    empty if no sample has a label. Times are Unix times.
    """

    kind: Literal["classifier", "ranker"]
    command: str
    model_uri: str
    input_uri: str
    output_uri: str
    settings: Mapping[str, object]
    versions: Mapping[str, str]
    machine: Mapping[str, object]
    started_at: float
    finished_at: float
    candidates: tuple[CandidateMetrics, ...]
    chosen: str
    pays_off: bool
    verdict: str
    score_name: str
    num_train: int
    num_labelled: int
    num_validation: int
    outcome: Outcome = "finished"

    @property
    def kept_candidate(self) -> CandidateMetrics:
        """Return the metrics of the chosen candidate."""
        return next(one for one in self.candidates if one.name == self.chosen)


def confused_pairs(record: TrainingRecord) -> list[tuple[str, str, int, int]]:
    """Return the pairs of labels that were confused, most frequent first.

    A pair is (true label, predicted label, number of confused videos, number of all videos with the true label).
    """
    pairs = []
    for row, counts in enumerate(record.confusion or ()):
        whole = sum(counts)
        pairs += [(row, column, count, whole) for column, count in enumerate(counts) if count and column != row]
    pairs.sort(key=lambda pair: (-pair[2], pair[0], pair[1]))
    return [(record.label_names[row], record.label_names[column], count, whole) for row, column, count, whole in pairs]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of the given packages and of the packages that every job uses, by package name.

    Packages that are not installed are left out.
    """
    found = {"raypipe": __version__, "python": platform.python_version()}
    for name in ("ray", *packages, "pyarrow", "s3fs", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
