"""What is known of videos besides their embeddings: a catalogue that a user wrote, and labels that a model gave."""

import logging
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from raypipe import schema
from raypipe.errors import ConfigError
from raypipe.jobs.index.rows import OF_THE_ROWS
from raypipe.search.items import DUPLICATE_GROUP
from raypipe.search.recommend import BOOST_COLUMNS
from raypipe.storage.column_types import ColumnReading, Kind
from raypipe.storage.tables import TypedTable, empty_rows, read_table, table_place

_logger = logging.getLogger(__name__)
LABEL_COLUMNS = {schema.LABEL: pa.string(), schema.SCORE: pa.float32()}
_TEXT = (schema.VIDEO_ID, "title", "category", "language")  # 1917 is a title, and no number
_EXPECTED: dict[str, Kind] = {BOOST_COLUMNS["freshness"]: "dates", BOOST_COLUMNS["popularity"]: "numbers"}
_TAKEN = (*OF_THE_ROWS[1:], *LABEL_COLUMNS, DUPLICATE_GROUP)


@dataclass(frozen=True, slots=True)
class Joined:
    """The rows of an index, and what did not fit: each a number of videos, None where nothing was given."""

    items: pa.Table
    num_uncatalogued: int | None = None  # embedded, and not in the catalogue
    num_not_embedded: int | None = None  # in the catalogue, and not embedded
    num_unlabelled: int | None = None
    readings: tuple[ColumnReading, ...] = ()  # how columns of the catalogue were read


def read_catalogue(uri: str) -> TypedTable:
    """Read ``video_id`` and whatever else stands there, typed; warn of columns with bad values.

    Raises:
        ConfigError: it cannot be read, a video has no id or several rows, or a column has a name that an index uses.
    """
    folder, name = table_place(uri, what="catalogue")
    found = read_table(folder, name, text=_TEXT, required=(schema.VIDEO_ID,), what="catalogue", expected=_EXPECTED)
    table = found.table
    if taken := [column for column in table.column_names if column in _TAKEN]:
        msg = f"{uri} has a column {taken[0]!r}, a name that the index itself uses."
        raise ConfigError(msg, key=taken[0], remedy=f"Rename it. Reserved names are {', '.join(_TAKEN)}.")
    ids = table[schema.VIDEO_ID]
    if lacking := empty_rows(ids):
        msg = f"{uri}: {len(lacking)} rows have no video_id, the first is row {lacking[0]}. Every row needs one."
        raise ConfigError(msg, key=schema.VIDEO_ID, value="")
    counts = table.group_by(schema.VIDEO_ID, use_threads=False).aggregate([([], "count_all")])
    repeated = counts.filter(pc.greater(counts["count_all"], 1))
    if repeated.num_rows:
        first = repeated[schema.VIDEO_ID][0].as_py()
        msg = f"{uri}: {repeated.num_rows} videos have several rows, the first is {first!r}."
        raise ConfigError(msg, key=schema.VIDEO_ID, value=first, remedy="Give each video one row.")
    for reading in found.readings:
        if reading.warning:
            _logger.warning("%s: %s", uri, reading.warning)
    return TypedTable(table.combine_chunks(), found.readings)


def join(rows: pa.Table, *, catalogue: TypedTable | None, labels: pa.Table | None) -> Joined:
    """Put beside each row its label and its catalogue columns, null where there is none.

    ``labels`` are rows of ``raypipe classify``; one counts for the very embedding that it was made of.
    """
    ids = rows[schema.VIDEO_ID]
    items = rows
    label_columns = _labels_of(rows, labels)
    for name, column in label_columns.items():
        items = items.append_column(name, column)
    num_unlabelled = None if labels is None else label_columns[schema.LABEL].null_count
    if catalogue is None:
        return Joined(items, num_unlabelled=num_unlabelled)
    described = catalogue.table
    known = described[schema.VIDEO_ID]
    positions = pc.index_in(ids, value_set=known.combine_chunks())
    found = described.take(positions)
    for name in described.column_names:
        if name != schema.VIDEO_ID:
            items = items.append_column(name, found[name])
    num_known = len(ids) - positions.null_count
    return Joined(items, len(ids) - num_known, len(known) - num_known, num_unlabelled, catalogue.readings)


def _labels_of(rows: pa.Table, labels: pa.Table | None) -> dict[str, pa.ChunkedArray | pa.Array]:
    if labels is None:
        return {name: pa.nulls(rows.num_rows, kind) for name, kind in LABEL_COLUMNS.items()}
    positions = pc.index_in(rows[schema.VIDEO_ID], value_set=labels[schema.VIDEO_ID].combine_chunks())
    found = labels.take(positions)
    generation = rows[schema.GENERATION].cast(pa.string())
    version = pc.binary_join_element_wise(generation, rows[schema.ETAG], "-")  # as the etag of a prediction is written
    is_of_this = pc.equal(found[schema.ETAG], version).fill_null(False)  # noqa: FBT003 - Arrow's own signature
    return {
        name: pc.if_else(is_of_this, found[name].cast(kind), pa.scalar(None, kind))
        for name, kind in LABEL_COLUMNS.items()
    }
