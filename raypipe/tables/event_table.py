"""Read watch events from a table with one row per event or one row per user."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.errors import ConfigError
from raypipe.schema import USER_ID, VIDEO_ID
from raypipe.search.items import Items
from raypipe.search.watch_events import Events, Ints, Numbers, event_hashes
from raypipe.tables import TypedTable, read_table, table_place
from raypipe.tables.history import HISTORY, HistoryFile, parse, watched

WATCHED_AT, SPLIT = "watched_at", "split"
_BLOCK_ROWS = 65_536
_PARTS = {"train": 0, "validation": 1, "valid": 1, "val": 1, "test": 2}
_DAY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class WatchEvents:
    """The events of a file whose videos are in the index.

    Attributes:
        events: The first event of each user with each video.
        user_ids: The id of each user.
        counts: How many events were left out, by reason; reasons without an event are absent.
        parts: For each event 0 for training, 1 for validation, 2 for the test; None without a column ``split``.
    """

    events: Events
    user_ids: Sequence[str]
    counts: dict[str, int]
    parts: Ints | None = None

    def hashes(self, events: Events, items: Items) -> npt.NDArray[np.uint64]:
        """Return the hashes of some of the events, sorted (see ``event_hashes``)."""
        videos, numbers = np.unique(events.items, return_inverse=True)
        ids = [items.video_id(position) for position in videos.tolist()]
        return event_hashes(Events(numbers, events.starts), self.user_ids, ids)


@dataclass(frozen=True, slots=True)
class EventRows:
    """Rows with one event each, in the order of the file, without the rows that cannot be used.

    Attributes:
        users: The user ids, dictionary-encoded, [E].
        items: The position of each watched video in the index, [E].
        times: The time of each event in seconds, [E]; None without a column of times.
        parts: As in ``WatchEvents``.
        counts: How many rows were left out, by reason.
    """

    users: pa.DictionaryArray
    items: Ints
    times: Numbers | None
    parts: Ints | None
    counts: dict[str, int]

    @classmethod
    def of(cls, table: pa.Table, items: Items, *, uri: str, now: float) -> "EventRows":
        """Select the rows with a user, a video of the index and, if there is a column of times, a time until now.

        Raises:
            ConfigError: the column ``split`` has an unknown value.
        """
        counts: dict[str, int] = {}

        def keep(is_kept: npt.NDArray[np.bool_], reason: str) -> None:
            nonlocal table
            counts[reason] = int((~is_kept).sum())
            table = table.filter(pa.array(is_kept))

        keep(_is_text(table[USER_ID]) & _is_text(table[VIDEO_ID]), "without_user_or_video")
        has_times = WATCHED_AT in table.column_names
        if has_times:
            keep(table[WATCHED_AT].is_valid().to_numpy(), "without_time")
            keep(_seconds(table[WATCHED_AT]) <= now + _DAY_SECONDS, "in_future")
        positions = items.find(table[VIDEO_ID])
        keep(positions >= 0, "unknown_videos")
        return cls(
            table[USER_ID].combine_chunks().dictionary_encode(),
            positions[positions >= 0],
            _seconds(table[WATCHED_AT]) if has_times else None,
            _parts(table[SPLIT], uri) if SPLIT in table.column_names else None,
            counts,
        )


def read_events(uri: str, items: Items, *, is_ordered: bool = True) -> WatchEvents:
    """Read a table with one row per event (``user_id``, ``video_id``) or per user (``user_id``, ``history``).

    Without times and without ``is_ordered``, the events of each user are put into a random order, always the same one:
    the order of the file may be that of the ids, from which a ranker would learn what it cannot know later.

    Raises:
        ConfigError: the file cannot be read, lacks a column, or has no event of a video of the index.
    """
    place = table_place(uri, what="history")
    file = HistoryFile.find(*place)
    has_histories = HISTORY in file.columns()
    found = (
        _of_histories(file, items, is_ordered=is_ordered)
        if has_histories
        else _of_rows(uri, items, is_ordered=is_ordered)
    )
    refuse_empty(uri, num_events=len(found.events))
    return found if found.events.is_ordered else _shuffled(found)


def _shuffled(found: WatchEvents) -> WatchEvents:
    events = found.events
    order = np.lexsort((np.random.default_rng(0).random(len(events)), events.users))
    shuffled = Events(events.items[order], events.starts, is_ordered=False)
    return replace(found, events=shuffled, parts=None if found.parts is None else found.parts[order])


def refuse_empty(uri: str, *, num_events: int) -> None:
    """Raise ConfigError if a history has no events that can be used."""
    if not num_events:
        msg = f"{uri} has no event of a video that the index has."
        raise ConfigError(msg, key="history", value=uri, remedy="Check the ids.")


def _of_histories(file: HistoryFile, items: Items, *, is_ordered: bool) -> WatchEvents:
    histories: list[list[int]] = []
    user_ids: list[str] = []
    reasons = ("with_error", "repeated_users", "empty_histories", "unknown_videos", "repeated_events")
    counts = dict.fromkeys(reasons, 0)
    seen: set[str] = set()
    for block in file.blocks(_BLOCK_ROWS):
        for user in parse(block):
            if user.error is not None or user.user_id is None:
                counts["with_error"] += 1
            elif user.user_id in seen:
                counts["repeated_users"] += 1
            else:
                seen.add(user.user_id)
                positions = items.positions(watched(user, items.positions))
                known = [position for position in positions if position is not None]
                histories.append(list(dict.fromkeys(known)))
                user_ids.append(user.user_id)
                counts["empty_histories"] += not positions
                counts["unknown_videos"] += len(positions) - len(known)
                counts["repeated_events"] += len(known) - len(histories[-1])
    return WatchEvents(Events.of_histories(histories, is_ordered=is_ordered), user_ids, nonzero(counts))


def _of_rows(uri: str, items: Items, *, is_ordered: bool) -> WatchEvents:
    read = read_table(
        *table_place(uri, what="history"),
        text=(USER_ID, VIDEO_ID, SPLIT),
        required=(USER_ID, VIDEO_ID),
        what="history",
        expected={WATCHED_AT: "dates"},
    )
    table = read.table if _has_times(read, uri) else _without_times(read.table)
    rows = EventRows.of(table, items, uri=uri, now=time.time())
    users = rows.users.indices.to_numpy().astype(np.int64)
    events, kept, ids = Events.of_rows(users, rows.items, rows.times)
    events = replace(events, is_ordered=rows.times is not None or is_ordered)
    counts = {**rows.counts, "repeated_events": len(users) - len(events)}
    names = rows.users.dictionary.to_pylist()
    parts = None if rows.parts is None else rows.parts[kept]
    return WatchEvents(events, [names[number] for number in ids], nonzero(counts), parts)


def _has_times(read: TypedTable, uri: str) -> bool:
    """Return whether there is a column of times with at least one value.

    Raises:
        ConfigError: the column has values, but not times.
    """
    table = read.table
    if WATCHED_AT not in table.column_names or table[WATCHED_AT].null_count == table.num_rows:
        return False
    if not pa.types.is_timestamp(table[WATCHED_AT].type):
        bad = [text for one in read.readings if one.name == WATCHED_AT for text in one.examples]
        found = ", such as " + ", ".join(map(repr, bad)) if bad else ""
        msg = f"The column {WATCHED_AT!r} of {uri} contains values that are not dates{found}."
        remedy = "Write 2024-05-31, or epoch numbers of one unit, or remove the column."
        raise ConfigError(msg, key=WATCHED_AT, value=tuple(bad), remedy=remedy)
    return True


def _without_times(table: pa.Table) -> pa.Table:
    return table.drop_columns([WATCHED_AT]) if WATCHED_AT in table.column_names else table


def _is_text(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    is_text: npt.NDArray[np.bool_] = pc.not_equal(column, "").fill_null(False).to_numpy()  # noqa: FBT003 - Arrow's signature
    return is_text


def _seconds(column: pa.ChunkedArray) -> Numbers:
    seconds: Numbers = column.cast(pa.int64()).to_numpy().astype(np.float64) / 1e6
    return seconds


def _parts(column: pa.ChunkedArray, uri: str) -> Ints:
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    names = [str(name).strip().lower() for name in encoded.dictionary.to_pylist()]
    if wrong := sorted({name for name in names if name not in _PARTS}):
        msg = f"The column {SPLIT!r} of {uri} contains {wrong[0]!r}."
        raise ConfigError(msg, key=SPLIT, value=wrong[0], choices=_PARTS)
    parts: Ints = np.array([_PARTS[name] for name in names], np.int64)[encoded.indices.to_numpy()]
    return parts


def nonzero(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the counts that are not 0."""
    return {name: count for name, count in counts.items() if count}
