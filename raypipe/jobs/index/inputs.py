"""The inputs of index: the rows of sealed embeddings, joined with the user's catalogue and with labels of classify."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe import schema
from raypipe.dataset.footer import not_sealed, read_parquet
from raypipe.dataset.plan import data_name
from raypipe.dataset.read import matrix_of, planned_rows, read_rows
from raypipe.errors import ConfigError
from raypipe.search.build import Batch
from raypipe.search.items import BOOST_COLUMNS, DUPLICATE_GROUP
from raypipe.status import Status
from raypipe.storage import Folder
from raypipe.tables import ColumnReading, Kind, TypedTable, empty_rows, read_table, table_place

ROW_COLUMNS = (schema.VIDEO_ID, schema.VIDEO_URI, schema.ETAG, schema.GENERATION, schema.DURATION_SECONDS)
LABEL_COLUMNS = {schema.LABEL: pa.string(), schema.SCORE: pa.float32()}
_RESERVED = (*ROW_COLUMNS[1:], *LABEL_COLUMNS, DUPLICATE_GROUP)
_TEXT = (schema.VIDEO_ID, "title", "category", "language")  # always text: the title "1917" is not a number
_EXPECTED: dict[str, Kind] = {BOOST_COLUMNS["freshness"]: "dates", BOOST_COLUMNS["popularity"]: "numbers"}
_READS_AT_ONCE = 8
_ItemT = TypeVar("_ItemT")
_ReadT = TypeVar("_ReadT")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IndexedRows:
    """The rows to index: the current row of every video with status ``ok``, starting with the latest plan.

    ``items`` has the columns ``ROW_COLUMNS``. The selection is fixed: plans that another driver seals later do not
    change it.
    """

    embeddings: Folder
    embedding_dim: int
    items: pa.Table
    num_left_out: int  # videos whose status is neither ``ok`` nor ``gone``
    _files: tuple[tuple[str, npt.NDArray[np.bool_]], ...]  # the name of each file, and a mask of its indexed rows

    def batches(self) -> Iterator[Batch]:
        """Yield the vectors and thumbnails in the order of ``items``. Only a few files are in memory at a time.

        Raises:
            CommitError: a file has changed since it was sealed.
        """
        for batch in _read_ahead(self._read, self._files):
            if len(batch[1]):
                yield batch

    def _read(self, file: tuple[str, npt.NDArray[np.bool_]]) -> Batch:
        name, is_indexed = file
        table = read_parquet(self.embeddings, name, columns=(schema.EMBEDDING, schema.THUMBNAIL))
        if (found := table.num_rows) != (expected := len(is_indexed)):
            reason = f"it has {found} rows, not {expected}"
            raise not_sealed(self.embeddings, name, reason, value=found, expected=expected)
        rows = table.filter(pa.array(is_indexed))
        kind = (vectors := rows[schema.EMBEDDING].combine_chunks()).type
        if not pa.types.is_fixed_size_list(kind) or kind.list_size != self.embedding_dim or vectors.null_count:
            reason = f"its embeddings are {kind}, or some are missing"
            raise not_sealed(self.embeddings, name, reason, value=str(kind), expected=self.embedding_dim)
        return matrix_of(vectors).astype(np.float32, copy=False), rows[schema.THUMBNAIL].to_pylist()


def find_rows(embeddings: Folder, manifests: Sequence[dict[str, Any]], *, embedding_dim: int) -> IndexedRows:
    """Select the rows of the sealed plans that will be indexed. No vectors are read.

    Raises:
        ConfigError: no video has status ok.
        CommitError: a file has changed since it was sealed.
    """
    files, tables, num_left_out = [], [], 0
    planned_files = _planned_files(embeddings, manifests)
    for name, is_current, table in _read_ahead(lambda planned: _read_current(embeddings, *planned), planned_files):
        is_ok = pc.equal(table[schema.STATUS], str(Status.OK)).to_numpy() & is_current
        is_gone = pc.equal(table[schema.STATUS], str(Status.GONE)).to_numpy() & is_current
        num_left_out += int(is_current.sum() - is_ok.sum() - is_gone.sum())
        files.append((name, is_ok))
        tables.append(table.filter(pa.array(is_ok)).select(ROW_COLUMNS))
    items = pa.concat_tables(tables).combine_chunks()
    if not items.num_rows:
        msg = f"{embeddings} contains no video with status ok ({num_left_out} have another status)."
        remedy = "Check them with raypipe verify."
        raise ConfigError(msg, key=str(embeddings), value=num_left_out, remedy=remedy)
    return IndexedRows(embeddings, embedding_dim, items, num_left_out, tuple(files))


def _planned_files(embeddings: Folder, manifests: Sequence[dict[str, Any]]) -> Iterator[tuple[str, pa.Array]]:
    """Yield the name of each file that has current rows, and the video ids of these rows."""
    for number, planned in planned_rows(embeddings, list(manifests)):
        shards, first = np.unique(planned[schema.SHARD].to_numpy(), return_index=True)  # plans are sorted by shard
        for shard, (start, stop) in zip(shards, pairwise([*first, planned.num_rows]), strict=True):
            yield data_name(number, int(shard)), planned[schema.VIDEO_ID].slice(start, stop - start).combine_chunks()


def _read_current(embeddings: Folder, name: str, ids: pa.Array) -> tuple[str, npt.NDArray[np.bool_], pa.Table]:
    table = read_parquet(embeddings, name, columns=(*ROW_COLUMNS, schema.STATUS))
    is_current = pc.is_in(table[schema.VIDEO_ID], value_set=ids).to_numpy()
    found, expected = int(is_current.sum()), len(ids)
    if found != expected:
        reason = f"it has {found} of its {expected} planned videos"
        raise not_sealed(embeddings, name, reason, value=found, expected=expected)
    return name, is_current, table


def _read_ahead(read: Callable[[_ItemT], _ReadT], items: Iterable[_ItemT]) -> Iterator[_ReadT]:
    """Yield ``read(item)`` for each item, in order. A few reads run ahead in threads."""
    coming = iter(items)
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        reads: deque[Future[_ReadT]] = deque()
        reads.extend(pool.submit(read, item) for item in islice(coming, _READS_AT_ONCE))
        while reads:
            done = reads.popleft().result()
            reads.extend(pool.submit(read, item) for item in islice(coming, 1))
            yield done


@dataclass(frozen=True, slots=True)
class Joined:
    """The items of an index, and how many videos had no match in the catalogue or the labels.

    A count is None if the catalogue or the labels that it depends on were not given.
    """

    items: pa.Table
    num_uncatalogued: int | None = None  # videos that are embedded, but not in the catalogue
    num_not_embedded: int | None = None  # videos that are in the catalogue, but not embedded
    num_unlabelled: int | None = None  # videos without a label
    readings: tuple[ColumnReading, ...] = ()  # how columns of the catalogue were parsed


def read_catalogue(uri: str) -> TypedTable:
    """Read the user's catalogue: ``video_id`` and any other columns, with inferred types.

    Columns with unusable values are logged as warnings.

    Raises:
        ConfigError: the file cannot be read, a row has no ``video_id``, a video has several rows, or a column has a
            reserved name.
    """
    folder, name = table_place(uri, what="catalogue")
    found = read_table(folder, name, text=_TEXT, required=(schema.VIDEO_ID,), what="catalogue", expected=_EXPECTED)
    table = found.table
    if taken := [column for column in table.column_names if column in _RESERVED]:
        msg = f"{uri} has a column {taken[0]!r}, a name that is reserved for the index."
        raise ConfigError(msg, key=taken[0], remedy=f"Rename it. Reserved names are {', '.join(_RESERVED)}.")
    if lacking := empty_rows(table[schema.VIDEO_ID]):
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


def read_labels(uri: str) -> pa.Table:
    """Read the predictions of a sealed output of ``raypipe classify``."""
    return pa.concat_tables(read_rows(Folder(uri), columns=(schema.VIDEO_ID, schema.ETAG, *LABEL_COLUMNS)))


def join(rows: pa.Table, *, catalogue: TypedTable | None, labels: pa.Table | None) -> Joined:
    """Add a label and the columns of the catalogue to each row. Values that do not exist for a video are null.

    ``labels`` are rows that ``raypipe classify`` wrote. A label is used only if it was computed from exactly the
    embedding in ``rows``, not from an earlier one of the same video.
    """
    items = rows
    for name, column in _labels_of(rows, labels).items():
        items = items.append_column(name, column)
    num_unlabelled = None if labels is None else items[schema.LABEL].null_count
    if catalogue is None:
        return Joined(items, num_unlabelled=num_unlabelled)
    positions = _positions(rows, catalogue.table)
    found = catalogue.table.take(positions)
    for name in found.drop_columns(schema.VIDEO_ID).column_names:
        items = items.append_column(name, found[name])
    num_not_embedded = catalogue.table.num_rows - (len(positions) - positions.null_count)
    return Joined(items, positions.null_count, num_not_embedded, num_unlabelled, catalogue.readings)


def _labels_of(rows: pa.Table, labels: pa.Table | None) -> dict[str, pa.ChunkedArray | pa.Array]:
    if labels is None:
        return {name: pa.nulls(rows.num_rows, kind) for name, kind in LABEL_COLUMNS.items()}
    found = labels.take(_positions(rows, labels))
    generation = rows[schema.GENERATION].cast(pa.string())
    version = pc.binary_join_element_wise(generation, rows[schema.ETAG], "-")  # as in a prediction's etag
    is_of_this = pc.equal(found[schema.ETAG], version).fill_null(False)  # noqa: FBT003 - Arrow's signature
    return {
        name: pc.if_else(is_of_this, found[name].cast(kind), pa.scalar(None, kind))
        for name, kind in LABEL_COLUMNS.items()
    }


def _positions(rows: pa.Table, others: pa.Table) -> pa.ChunkedArray:
    """Return for each row the position of its video in ``others``, or null if ``others`` does not contain it."""
    return pc.index_in(rows[schema.VIDEO_ID], value_set=others[schema.VIDEO_ID].combine_chunks())
