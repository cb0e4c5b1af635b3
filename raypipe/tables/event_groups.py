"""Read the watch events of a Parquet file a few row groups at a time, as arrays that processes can exchange."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from raypipe.errors import ConfigError
from raypipe.schema import USER_ID, VIDEO_ID
from raypipe.search.items import Items
from raypipe.search.watch_events import Events, Hashes, Ints, Numbers, hashed
from raypipe.tables.column_types import MAX_BAD_FRACTION, plausible_times
from raypipe.tables.event_table import SPLIT, WATCHED_AT, EventRows
from raypipe.tables.history import HISTORY, HistoryFile, check_history_columns, parse, watched
from raypipe.tables.reader import check_columns, refuse_changed, unreadable

_BATCH_ROWS = 262_144


@dataclass(frozen=True, slots=True)
class EventGroups:
    """A Parquet file of watch events whose row groups can be read one by one.

    Attributes:
        file: The file, pinned to the content that was found first.
        columns: The columns to read.
        sizes: The number of events in each row group, including those that cannot be used.
    """

    file: HistoryFile
    columns: tuple[str, ...]
    sizes: tuple[int, ...]

    @classmethod
    def find(cls, file: HistoryFile) -> Self | None:
        """Read the footer of a file. Return None if it is not Parquet, or if its times are not dates or timestamps.

        Whether texts or numbers are times can only be decided with all values of the column.

        Raises:
            ConfigError: the footer cannot be read, or a column is missing.
        """
        if not file.name.lower().endswith(".parquet"):
            return None
        uri = file.folder.child(file.name)
        with unreadable(uri, HISTORY), file.folder.open_input(file.name) as source:
            refuse_changed(file.folder, file.stored, HISTORY)
            parquet = pq.ParquetFile(source)
            schema, footer = parquet.schema_arrow, parquet.metadata
        names, counted = schema.names, HISTORY if HISTORY in schema.names else VIDEO_ID
        if counted == HISTORY:
            check_history_columns(uri, names)
            columns: tuple[str, ...] = (USER_ID, HISTORY)
        else:
            check_columns(uri, names, used=names, required=(USER_ID, VIDEO_ID))
            columns = tuple(name for name in (USER_ID, VIDEO_ID, WATCHED_AT, SPLIT) if name in names)
            if WATCHED_AT in names and not _holds_times(schema.field(WATCHED_AT).type):
                return None
        leaves = [footer.schema.column(leaf).path.partition(".")[0] for leaf in range(footer.num_columns)]
        at = leaves.index(counted)
        sizes = (footer.row_group(group).column(at).num_values for group in range(footer.num_row_groups))
        return cls(file, columns, tuple(sizes))

    @property
    def num_events(self) -> int:
        return sum(self.sizes)

    @property
    def has_times(self) -> bool:
        return WATCHED_AT in self.columns

    @property
    def has_parts(self) -> bool:
        return SPLIT in self.columns

    def tasks(self, events_at_once: int) -> list[list[int]]:
        """Divide the row groups into lists of consecutive ones with about this number of events each."""
        found: list[list[int]] = []
        room = 0
        for group, size in enumerate(self.sizes):
            if room <= 0:
                found.append([])
                room = events_at_once
            found[-1].append(group)
            room -= size
        return found

    def read(self, groups: Sequence[int], items: Items, *, now: float) -> "EventBlock":
        """Read some row groups. Raises ConfigError if the file cannot be read or has changed since it was found."""
        of_table = _of_histories if HISTORY in self.columns else _of_rows
        uri = self.file.folder.child(self.file.name)
        blocks: list[EventBlock] = []
        with unreadable(uri, HISTORY), self.file.folder.open_input(self.file.name) as source:
            refuse_changed(self.file.folder, self.file.stored, HISTORY)
            parquet = pq.ParquetFile(source)
            batches = parquet.iter_batches(_BATCH_ROWS, row_groups=list(groups), columns=list(self.columns))
            blocks.extend(of_table(pa.Table.from_batches([batch]), items, uri=uri, now=now) for batch in batches)
            if not blocks:  # the row groups are empty
                nothing = parquet.schema_arrow.empty_table().select(list(self.columns))
                blocks.append(of_table(nothing, items, uri=uri, now=now))
            refuse_changed(self.file.folder, self.file.stored, HISTORY)
        return EventBlock.joined(blocks)

    def refuse_bad_times(self, counts: Mapping[str, int]) -> None:
        """Raise ConfigError if the column of times has no dates, or too many values that are not plausible dates."""
        if not self.has_times:
            return
        num_times, num_bad = counts[NUM_TIMES], counts[NUM_BAD_TIMES]
        if num_times == num_bad or num_bad > MAX_BAD_FRACTION * num_times:
            msg = f"The column {WATCHED_AT} has {num_bad:,} implausible dates among {num_times:,} values."
            raise ConfigError(msg, key=WATCHED_AT, value=num_bad, remedy="Correct or remove this column.")


NUM_TIMES, NUM_BAD_TIMES = "num_times", "num_bad_times"  # counts of a block that are not about left-out events


def _holds_times(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


@dataclass(frozen=True, slots=True)
class EventBlock:
    """Watch events in the order of the file, whose videos are in the index.

    A row is one event or, in a file with one row per user, all events of a user. Then ``lengths`` is given.

    Attributes:
        users: The hash of the user of each row, [R].
        items: The position of each video in the index, [E].
        times: The time of each event in seconds, [E]; None if unknown.
        parts: The part of each event, as in ``WatchEvents``, [E].
        lengths: The number of events of each row, [R].
        unknown, repeated: How many events of each row were left out because the video is unknown or repeated, [R].
        counts: How many events or rows were left out, by reason.
    """

    users: Hashes
    items: npt.NDArray[np.int32]
    times: Numbers | None = None
    parts: npt.NDArray[np.int8] | None = None
    lengths: npt.NDArray[np.int32] | None = None
    unknown: npt.NDArray[np.int32] | None = None
    repeated: npt.NDArray[np.int32] | None = None
    counts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def joined(cls, blocks: Sequence["EventBlock"]) -> "EventBlock":
        """Return one block with the rows of all blocks, in order."""
        counts: dict[str, int] = {}
        for block in blocks:
            add_counts(counts, block.counts)
        columns: dict[str, Any] = {}
        for name in (*_BY_ROW, *_BY_EVENT):
            arrays = [getattr(block, name) for block in blocks]
            columns[name] = None if arrays[0] is None else np.concatenate(arrays)
        return cls(**columns, counts=counts)

    def divided(self, num_partitions: int) -> list["EventBlock"]:
        """Divide the rows by user, in order. The blocks have no counts."""
        by_row = (self.users % np.uint64(num_partitions)).astype(np.int64)
        rows = _by_partition(by_row, num_partitions)
        events = rows if self.lengths is None else _by_partition(np.repeat(by_row, self.lengths), num_partitions)
        return [self._taken(*places) for places in zip(rows, events, strict=True)]

    def _taken(self, rows: Ints, events: Ints) -> "EventBlock":
        columns: dict[str, Any] = dict.fromkeys(_BY_ROW, rows) | dict.fromkeys(_BY_EVENT, events)
        for name, places in columns.items():
            column = getattr(self, name)
            columns[name] = None if column is None else column[places]
        return EventBlock(**columns)

    def grouped(self, *, is_ordered: bool) -> "GroupedEvents":
        """Return the events by user, without repeated ones. The block must have all events of its users."""
        if self.lengths is None:
            users, numbers = np.unique(self.users, return_inverse=True)
            events, kept, _ = Events.of_rows(numbers, self.items.astype(np.int64), self.times)
            events = Events(events.items, events.starts, events.times, self.times is not None or is_ordered)
            parts = None if self.parts is None else self.parts[kept].astype(np.int64)
            return GroupedEvents(events, users, parts, {"repeated_events": len(self.users) - len(events)})
        _, first = np.unique(self.users, return_index=True)
        is_kept = np.zeros(len(self.users), np.bool_)
        is_kept[first] = True
        items = self.items[np.repeat(is_kept, self.lengths)].astype(np.int64)
        starts = np.append(0, np.cumsum(self.lengths[is_kept], dtype=np.int64))
        counts = {"repeated_users": int((~is_kept).sum())}
        for name, column in (("unknown_videos", self.unknown), ("repeated_events", self.repeated)):
            counts[name] = 0 if column is None else int(column[is_kept].sum())
        if self.unknown is not None:
            counts["empty_histories"] = int((is_kept & (self.lengths + self.unknown == 0)).sum())
        return GroupedEvents(Events(items, starts, is_ordered=is_ordered), self.users[is_kept], None, counts)


@dataclass(frozen=True, slots=True)
class GroupedEvents:
    """All events of some users.

    Attributes:
        events: The first event of each user with each video.
        users: The hash of each user, [U].
        parts: As in ``WatchEvents``.
        counts: How many events or rows were left out, by reason.
    """

    events: Events
    users: Hashes
    parts: Ints | None
    counts: Mapping[str, int]


_BY_ROW, _BY_EVENT = ("users", "lengths", "unknown", "repeated"), ("items", "times", "parts")


def add_counts(total: dict[str, int], counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        total[name] = total.get(name, 0) + count


def _by_partition(numbers: Ints, num_partitions: int) -> list[Ints]:
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.searchsorted(numbers[order], np.arange(1, num_partitions)))


def _hashes_of(users: pa.DictionaryArray) -> Hashes:
    found: Hashes = hashed(users.dictionary.to_pylist())[users.indices.to_numpy()]
    return found


def _of_rows(table: pa.Table, items: Items, *, uri: str, now: float) -> EventBlock:
    names, counts = table.column_names, {}
    columns = {name: table[name].cast(pa.string()) for name in names if name != WATCHED_AT}
    if WATCHED_AT in names:
        columns[WATCHED_AT] = plausible_times(table[WATCHED_AT])
        num_times = table.num_rows - table[WATCHED_AT].null_count
        num_dates = table.num_rows - columns[WATCHED_AT].null_count
        counts = {NUM_TIMES: num_times, NUM_BAD_TIMES: num_times - num_dates}
    rows = EventRows.of(pa.table(columns), items, uri=uri, now=now)
    parts = None if rows.parts is None else rows.parts.astype(np.int8)
    return EventBlock(
        _hashes_of(rows.users), rows.items.astype(np.int32), rows.times, parts, counts={**counts, **rows.counts}
    )


def _of_histories(table: pa.Table, items: Items, *, uri: str, now: float) -> EventBlock:  # noqa: ARG001 - as _of_rows
    users = [user for user in parse(table) if user.error is None and user.user_id is not None]
    histories = [watched(user, items.positions) for user in users]
    found = _positions(items, histories)
    known = [[position for position in history if position >= 0] for history in found]
    kept = [list(dict.fromkeys(history)) for history in known]
    num_events, num_known, lengths = (np.fromiter(map(len, one), np.int32, len(users)) for one in (found, known, kept))
    return EventBlock(
        hashed([str(user.user_id) for user in users]),
        np.array([position for history in kept for position in history], np.int32),
        lengths=lengths,
        unknown=num_events - num_known,
        repeated=num_known - lengths,
        counts={"with_error": table.num_rows - len(users)},
    )


def _positions(items: Items, histories: Sequence[Sequence[str]]) -> list[list[int]]:
    """Return the position of each video of each history, or -1 if it is unknown."""
    ends = np.cumsum([len(history) for history in histories], dtype=np.int64)
    ids = pa.chunked_array([pa.array([one for history in histories for one in history], pa.string())])
    return [part.tolist() for part in np.split(items.find(ids), ends)[:-1]]
