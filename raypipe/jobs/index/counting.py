"""Count a large history in parts: tasks read the file, group its events by user, and count pairs of videos.

The result is bit-identical to counting all events in one process, for any number of parts:

1. Tasks read row groups, and divide their events by user into partitions.
2. For each partition, a task groups the events by user and keeps those that may be fitted on.
3. For each partition, a task counts views and transitions, and divides the transitions into ranges of first videos.
4. For each range, a task adds the counts of all partitions and keeps the largest.

A partition, and a range, must fit into the memory of one process.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from raypipe.evaluation.holdouts import fittable
from raypipe.search.items import Items
from raypipe.search.successors import Pairs, Successors, TransitionCounts
from raypipe.search.watch_events import Events, Hashes, Ints, Numbers, combined_hashes, hashed
from raypipe.tables.event_groups import NUM_BAD_TIMES, NUM_TIMES, EventBlock, EventGroups, GroupedEvents, add_counts
from raypipe.tables.event_table import nonzero, refuse_empty

if TYPE_CHECKING:  # it imports Ray, which takes a second, and few histories are large
    from raypipe.runs.ray_tasks import Reference, Tasks

PARTITION_EVENTS, READ_EVENTS = 2_000_000, 1_000_000  # of the file, per partition and per task that reads
DAY_SECONDS = 86_400.0
_HASHED_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class Fitting:
    """Which events are counted, and which are recent.

    Attributes:
        holdout, cut: As in ``fittable``; ``cut`` is in seconds.
        key: The configuration key that chose the holdout.
        is_ordered: Whether the order of events without times is the order of watching.
        popular_days: How many days before the newest event are recent.
    """

    holdout: str
    cut: float | None
    key: str
    is_ordered: bool
    popular_days: float


@dataclass(frozen=True, slots=True)
class WatchCounts:
    """What a history says about the videos of an index.

    Attributes:
        successors: What users watched after each video.
        views: How many users watched each video lately, [N].
        hashes: The hash of each event that was counted, ascending.
        num_users: How many users watched them.
        cut: The cut in seconds if the holdout is ``time``.
        left_out: How many events or rows could not be used, by reason.
    """

    successors: Successors
    views: npt.NDArray[np.float32]
    hashes: Hashes
    num_users: int
    cut: float | None
    left_out: dict[str, int]


def count_in_parts(
    groups: EventGroups,
    items: Items,
    fitting: Fitting,
    tasks: "Tasks",
    *,
    partition_events: int = PARTITION_EVENTS,
    read_events: int = READ_EVENTS,
) -> WatchCounts:
    """Count the transitions of a history.

    Raises:
        ConfigError: the history has no events that can be used, or has changed.
        JobError: the tasks cannot continue.
    """
    num_partitions = max(1, -(-groups.num_events // partition_events))
    blocks, left_out = _read(groups, items, tasks, num_partitions=num_partitions, read_events=read_events)
    cut = fitting.cut if fitting.holdout == "time" else None
    if fitting.holdout == "time" and cut is None:
        cut = _cut(blocks, tasks, uri=groups.file.stored.uri)
    started = [tasks.call_many(fit, fitting, cut, *partition, num_results=2) for partition in blocks]
    facts: list[FittedFacts] = [tasks.get(reference) for reference, _ in started]
    fitted = [events for _, events in started]
    del blocks, started  # Ray deletes events as soon as nothing refers to them
    refuse_empty(groups.file.stored.uri, num_events=sum(one.num_all for one in facts))
    for one in facts:
        add_counts(left_out, one.left_out)
    newest = max((one.newest for one in facts if one.newest is not None), default=None)
    recent_from = None if newest is None else newest - fitting.popular_days * DAY_SECONDS
    counted = _count(fitted, items, tasks, recent_from=recent_from, num_events=sum(one.num_events for one in facts))
    return WatchCounts(*counted, num_users=sum(one.num_users for one in facts), cut=cut, left_out=nonzero(left_out))


def check_holdout(groups: EventGroups, fitting: Fitting) -> None:
    """Raise ConfigError before any work if the file lacks a column that the holdout needs."""
    nothing: Numbers = np.empty(0)
    events = Events(np.empty(0, np.int64), np.zeros(1, np.int64), nothing if groups.has_times else None)
    parts = np.empty(0, np.int64) if groups.has_parts else None
    fittable(events, parts, holdout=fitting.holdout, cut=0.0, key=fitting.key)


def _read(
    groups: EventGroups, items: Items, tasks: "Tasks", *, num_partitions: int, read_events: int
) -> tuple[list[list["Reference"]], dict[str, int]]:
    """Return the blocks of each partition in the order of the file, and how many events were left out, by reason."""
    shared, now = tasks.share(items.only_ids()), time.time()
    started = [
        tasks.call_many(read, groups, row_groups, shared, now, num_partitions, num_results=1 + num_partitions)
        for row_groups in groups.tasks(read_events)
    ]
    counts: dict[str, int] = {}
    for reference, *_ in started:
        add_counts(counts, tasks.get(reference))
    groups.refuse_bad_times(counts)
    left_out = {name: count for name, count in counts.items() if name not in {NUM_TIMES, NUM_BAD_TIMES}}
    return [list(partition) for partition in zip(*(blocks for _, *blocks in started), strict=True)], left_out


def _cut(blocks: Sequence[Sequence["Reference"]], tasks: "Tasks", *, uri: str) -> float:
    """Return the 90 % quantile of all times, as ``by_time`` does. It takes 8 bytes per event in this process."""
    started = [tasks.call(event_times, *partition) for partition in blocks]
    times = np.concatenate([tasks.get(reference) for reference in started])
    refuse_empty(uri, num_events=len(times))
    return float(np.quantile(times, 0.9, overwrite_input=True))


def _count(
    fitted: list["Reference"], items: Items, tasks: "Tasks", *, recent_from: float | None, num_events: int
) -> tuple[Successors, npt.NDArray[np.float32], Hashes]:
    """Return the successors, views and hashes of fitted events. Empties ``fitted``, so that Ray deletes the events."""
    bounds = np.linspace(0, len(items), len(fitted) + 1).astype(np.int64).tolist()
    videos, shared_bounds = tasks.share(_video_hashes(items)), tasks.share(bounds)
    started = [
        tasks.call_many(count, events, videos, recent_from, shared_bounds, num_results=1 + len(bounds))
        for events in fitted
    ]
    fitted.clear()
    hashes, views, at = np.empty(num_events, np.uint64), np.zeros((2, len(items)), np.int64), 0
    for found, viewed, *_ in started:
        of_partition = tasks.get(found)
        hashes[at : at + len(of_partition)] = of_partition
        at += len(of_partition)
        views += tasks.get(viewed)
    ranges = list(zip(*(pairs for _, _, *pairs in started), strict=True))
    del started
    references = [
        tasks.call(largest, stop - start, start, *pairs)
        for start, stop, pairs in zip(bounds[:-1], bounds[1:], ranges, strict=True)
    ]
    del ranges
    hashes.sort()
    successors = Successors.joined([tasks.get(reference) for reference in references])
    return successors, views_of(*views), hashes


def _video_hashes(items: Items) -> Hashes:
    pieces = (items.video_ids.slice(at, _HASHED_AT_ONCE) for at in range(0, len(items), _HASHED_AT_ONCE))
    return np.concatenate([hashed(piece.to_pylist()) for piece in pieces])


def count_views(events: Events, num_items: int, *, recent_from: float | None) -> Ints:
    """Return how many users watched each video at all and lately, [2, N].

    Events after ``recent_from`` are recent; without it or without times, all are.
    """
    is_recent = slice(None) if recent_from is None or events.times is None else events.times > recent_from
    return np.stack([np.bincount(items, minlength=num_items) for items in (events.items, events.items[is_recent])])


def views_of(total: Ints, recent: Ints) -> npt.NDArray[np.float32]:
    """Return how often each video was watched lately; of equal videos, those with more views in all get a little more.

    ``total`` and ``recent`` are the number of users who watched each video at all, and lately.
    """
    found: npt.NDArray[np.float32] = (recent + total / (total.max(initial=0) + 1)).astype(np.float32)
    return found


# The functions below run in tasks.


def read(
    groups: EventGroups, row_groups: Sequence[int], items: Items, now: float, num_partitions: int
) -> list[dict[str, int] | EventBlock]:
    """Return how many events of some row groups were left out, and the others divided by user."""
    block = groups.read(row_groups, items, now=now)
    return [dict(block.counts), *block.divided(num_partitions)]


def event_times(*blocks: EventBlock) -> Numbers:
    """Return the times of the events of a partition."""
    times = EventBlock.joined(blocks).grouped(is_ordered=True).events.times
    return np.empty(0) if times is None else times


@dataclass(frozen=True, slots=True)
class FittedFacts:
    """What is known of a partition: ``num_all`` events before the holdout, and the others after it."""

    num_all: int
    num_events: int
    num_users: int
    newest: float | None
    left_out: Mapping[str, int]


def fit(fitting: Fitting, cut: float | None, *blocks: EventBlock) -> list[FittedFacts | GroupedEvents]:
    """Return the events of a partition that may be fitted on, by user, and facts about them."""
    found = EventBlock.joined(blocks).grouped(is_ordered=fitting.is_ordered)
    events, _ = fittable(found.events, found.parts, holdout=fitting.holdout, cut=cut, key=fitting.key)
    num_users = int((np.diff(events.starts) > 0).sum())
    newest = float(events.times.max()) if events.times is not None and len(events) else None
    facts = FittedFacts(len(found.events), len(events), num_users, newest, found.counts)
    return [facts, GroupedEvents(events, found.users, None, {})]


def count(
    found: GroupedEvents, videos: Hashes, recent_from: float | None, bounds: Sequence[int]
) -> list[npt.NDArray[np.generic] | TransitionCounts]:
    """Return what the events of a partition say about N videos.

    Args:
        found: The events.
        videos: The hash of each video, [N].
        recent_from: Later events are recent; None if all are.
        bounds: Where each range of first videos starts, and N.

    Returns:
        The hash of each event; the number of users who watched each video at all and lately, [2, N]; and the
        transitions of each range.
    """
    events, num_items = found.events, len(videos)
    views = count_views(events, num_items, recent_from=recent_from)
    pairs = TransitionCounts.of(events, num_items)
    ranges = (pairs.between(start, stop) for start, stop in itertools.pairwise(bounds))
    return [combined_hashes(events, found.users, videos), views.astype(np.int32), *ranges]


def largest(num_firsts: int, start: int, *pairs: TransitionCounts) -> Successors:
    """Add the transitions of all partitions, and return the successors of the first videos from ``start`` on."""
    found = TransitionCounts.sum(pairs).largest()
    moved = Pairs(found.firsts - start, found.seconds, found.weights, found.users)
    return Successors.of("transitions", moved, num_items=num_firsts)
