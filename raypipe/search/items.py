"""The metadata of the videos in an index: ids, catalogue columns and thumbnails. Row i describes vector i."""

import datetime as dt
import decimal
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe import schema
from raypipe.errors import IndexVersionError
from raypipe.text import one_line

Kind: TypeAlias = Literal["text", "boolean", "integer", "number", "time"]

MICROSECONDS = 1_000_000
_UTC = pa.timestamp("us", tz="UTC")
ITEMS, THUMBNAILS = "items.parquet", "thumbnails.arrow"
DUPLICATE_GROUP = "duplicate_group"
TITLE = "title"
BOOST_COLUMNS = {"freshness": "published_at", "popularity": "popularity"}  # the catalogue column of each boost
_FEW_VALUES = 4_096  # a text column with at most this many distinct values is compared by its dictionary codes
_THUMBNAILS = pa.schema([(schema.THUMBNAIL, pa.large_binary())])
_BATCH_ROWS, _BATCH_BYTES = 1_024, 33_554_432  # the limits of one record batch of thumbnails

_HASH_ROWS = 262_144  # ids hashed at a time: hashing takes about 30 times their size in memory
_NUM_WEIGHTS = 1_024  # the maximum length of an S3 key; longer texts reuse the weights
_WEIGHTS = np.random.Generator(np.random.PCG64(1)).integers(1, 2**64, size=_NUM_WEIGHTS, dtype=np.uint64) | np.uint64(1)
_LENGTH_WEIGHT = np.uint64(0x9E3779B97F4A7C15)


def kind_of(column_type: pa.DataType) -> Kind | None:
    """Return the kind of value with which filters compare a plain column, or None for lists, structs and bytes."""
    types = pa.types
    if types.is_large_string(column_type):
        return "text"
    if types.is_boolean(column_type):
        return "boolean"
    if types.is_integer(column_type):
        return "integer"
    if types.is_floating(column_type):
        return "number"
    return "time" if types.is_timestamp(column_type) or types.is_date(column_type) else None


def plain_column(column: pa.ChunkedArray) -> pa.Array:
    """Return the column as one array: text as large strings, times as microseconds in UTC, decimals as floats.

    A time without a zone is read as UTC.
    """
    types, found = pa.types, column.type
    if types.is_dictionary(found):
        return plain_column(column.cast(found.value_type))
    if types.is_string(found) or types.is_null(found) or found == pa.string_view():
        column = column.cast(pa.large_string())
    elif types.is_timestamp(found):
        column = column.cast(_UTC, safe=False)
    elif types.is_date64(found):
        column = column.cast(pa.date32())
    elif types.is_decimal(found) or types.is_float16(found):
        column = column.cast(pa.float64())
    elif types.is_uint64(found):
        try:
            column = column.cast(pa.int64())
        except pa.ArrowInvalid:
            column = column.cast(pa.float64(), safe=False)
    array = column.combine_chunks()
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def comparable(array: pa.Array) -> pa.Array:
    """Convert a plain column to the type in which filters compare it.

    Text stays a large string, integers become int64, other numbers float64, and booleans int8. Times become int64
    microseconds since 1970.
    """
    kind = kind_of(array.type)
    if kind == "time":
        return array.cast(_UTC).cast(pa.int64())
    types = {"boolean": pa.int8(), "integer": pa.int64(), "number": pa.float64()}
    return array.cast(types[kind]) if kind in types else array


def as_numbers(array: pa.Array) -> npt.NDArray[np.float64] | None:
    """Convert a plain column of numbers or times to float64. Return None for any other column.

    Times become seconds since 1970, and null becomes NaN.
    """
    kind = kind_of(array.type)
    if kind not in {"number", "integer", "time"}:
        return None
    whole = comparable(array).cast(pa.float64(), safe=False)
    numbers: npt.NDArray[np.float64] = whole.fill_null(math.nan).to_numpy(zero_copy_only=False)
    return numbers / MICROSECONDS if kind == "time" else numbers


def as_json(scalar: pa.Scalar) -> Any:  # noqa: ANN401 - any value of a catalogue
    """Convert a value of the catalogue for JSON. Times become ISO text.

    NaN, infinity and times that Python's ``datetime`` cannot represent become None.
    """
    try:
        return _json_value(scalar.as_py())
    except (ValueError, OverflowError):
        return None


def _json_value(value: Any) -> Any:  # noqa: ANN401 - any value of a catalogue
    match value:
        case None | bool() | int() | str():
            plain: Any = value
        case float() | decimal.Decimal():
            plain = float(value) if math.isfinite(value) else None
        case dt.date() | dt.time():
            plain = value.isoformat()
        case bytes():
            plain = value.decode(errors="replace")
        case dict():
            plain = {str(key): _json_value(inner) for key, inner in value.items()}
        case list() | tuple():
            plain = [_json_value(inner) for inner in value]
        case _:
            plain = str(value)
    return plain


class Items:
    """The items of an index: columns in memory, thumbnails memory-mapped. Thread-safe."""

    def __init__(self, table: pa.Table, thumbnails: pa.ChunkedArray | None) -> None:
        """Take the table of ``items.parquet`` and the thumbnails of its rows.

        Raises:
            IndexVersionError: there is no column ``video_id``, or the numbers of thumbnails and rows differ.
        """
        if schema.VIDEO_ID not in table.column_names:
            names = table.column_names
            msg = f"The items of this index have no column {schema.VIDEO_ID!r}, only {', '.join(names)}."
            raise IndexVersionError(msg, key=schema.VIDEO_ID, value=names)
        if thumbnails is not None and len(thumbnails) != table.num_rows:
            found, expected = len(thumbnails), table.num_rows
            msg = f"This index has {expected} items, but {found} thumbnails."
            raise IndexVersionError(msg, key=THUMBNAILS, value=found, expected=expected, remedy="Build it again.")
        self._arrays = {name: plain_column(table[name]) for name in table.column_names}
        self._ids = self._arrays[schema.VIDEO_ID]
        self._thumbnails = thumbnails
        self._comparable: dict[str, pa.Array] = {}
        self._codes: dict[str, tuple[npt.NDArray[np.int32], pa.Array]] = {}
        self._many_values: set[str] = set()
        self._numbers: dict[str, npt.NDArray[np.float64] | None] = {}
        self._lookup = _Lookup(self._ids)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the items of a version, and memory-map its thumbnails.

        Raises:
            IndexVersionError: a file cannot be read, or the files do not match.
        """
        try:
            table = pq.read_table(folder / ITEMS)
            with pa.memory_map(str(folder / THUMBNAILS)) as file:
                thumbnails = pa.ipc.open_file(file).read_all()[schema.THUMBNAIL]
            return cls(table, thumbnails)
        except (pa.ArrowException, OSError, KeyError) as error:
            msg = f"Cannot read the items of {folder}: {one_line(error)}"
            raise IndexVersionError(msg, key=str(folder)) from None

    def __len__(self) -> int:
        return len(self._ids)

    @cached_property
    def columns(self) -> dict[str, pa.DataType]:
        """The type of each column that a filter can compare, by name. Lists, structs and bytes are left out."""
        return {name: array.type for name, array in self._arrays.items() if kind_of(array.type)}

    def position(self, video_id: str) -> int | None:
        """Return the position of a video, or None if it is not in the index."""
        return self.positions([video_id])[0]

    def positions(self, ids: Sequence[str]) -> list[int | None]:
        """Return the position of each video, or None if it is not in the index."""
        return self._lookup.positions(ids)

    def find(self, ids: pa.ChunkedArray) -> npt.NDArray[np.int64]:
        """Return the position of each video, or -1 if it is not in the index. Much faster than ``positions``."""
        encoded = ids.combine_chunks().dictionary_encode()
        found = self._lookup.find(encoded.dictionary.cast(pa.large_string()))
        positions: npt.NDArray[np.int64] = np.append(found, -1)[encoded.indices.fill_null(-1).to_numpy()]
        return positions

    def only_ids(self) -> "Items":
        """Return the same items without their other columns."""
        return Items(pa.table({schema.VIDEO_ID: self._ids}), None)

    @property
    def video_ids(self) -> pa.LargeStringArray:
        """The id of each item."""
        return self._ids

    def video_id(self, position: int) -> str:
        return str(self._ids[position].as_py())

    def row(self, position: int) -> dict[str, Any]:
        """Return all columns of one video, as values for JSON."""
        return {name: as_json(array[position]) for name, array in self._arrays.items()}

    def thumbnail(self, position: int) -> bytes | None:
        """Return the JPEG thumbnail of one video, or None if the video has no thumbnail."""
        return None if self._thumbnails is None else self._thumbnails[position].as_py()

    def containing(self, text: str, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the given positions whose title or id contains the text, ignoring case."""
        is_found = np.zeros(len(positions), np.bool_)
        for name in (TITLE, schema.VIDEO_ID):
            array = self._arrays.get(name)
            if array is None or kind_of(array.type) != "text":
                continue
            among = array if len(positions) == len(self) else array.take(pa.array(positions))
            hits = pc.match_substring(among, text, ignore_case=True)
            is_found |= hits.fill_null(False).to_numpy(zero_copy_only=False)  # noqa: FBT003 - Arrow's signature
        return positions[is_found]

    def values(self, column: str, *, limit: int) -> list[str]:
        """Return the ``limit`` most frequent values of a text column. The list is empty if there is no such column."""
        array = self._arrays.get(column)
        if array is None or kind_of(array.type) != "text":
            return []
        codes, values = self._encoded(column)
        counts = np.bincount(codes[codes >= 0], minlength=len(values))
        most_frequent = np.argsort(-counts, kind="stable")[:limit]
        texts: list[str] = values.take(pa.array(most_frequent)).to_pylist()
        return texts

    def codes(self, column: str) -> npt.NDArray[np.int32] | None:
        """Return an integer code per row, or None for an unknown column. Equal values get equal codes; null gets -1."""
        return self._encoded(column)[0] if column in self.columns else None

    def few_values(self, column: str) -> tuple[npt.NDArray[np.int32], pa.Array] | None:
        """Return the code of each row and the distinct values of a text column, if there are few distinct values.

        Return None for any other column.
        """
        if column in self._many_values or kind_of(self._arrays[column].type) != "text":
            return None
        if column not in self._codes and pc.count_distinct(self._arrays[column]).as_py() > _FEW_VALUES:
            self._many_values.add(column)
            return None
        return self._encoded(column)

    def _encoded(self, column: str) -> tuple[npt.NDArray[np.int32], pa.Array]:
        if column not in self._codes:
            encoded = self._arrays[column].dictionary_encode()
            codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            self._codes[column] = codes, encoded.dictionary
        return self._codes[column]

    def numbers(self, column: str) -> npt.NDArray[np.float64] | None:
        """Return a column converted by ``as_numbers``, or None if there is no such column of numbers or times."""
        if column not in self._numbers:
            array = self._arrays.get(column)
            self._numbers[column] = None if array is None else as_numbers(array)
        return self._numbers[column]

    def comparable(self, column: str) -> pa.Array:
        """Return a column converted by the function ``comparable``."""
        if column not in self._comparable:
            self._comparable[column] = comparable(self._arrays[column])
        return self._comparable[column]

    @cached_property
    def duplicate_groups(self) -> npt.NDArray[np.int64]:
        """The group of near-duplicates of each video, identified by its smallest row, or -1 without a group."""
        array = self._arrays.get(DUPLICATE_GROUP)
        if array is None or kind_of(array.type) != "integer":
            return np.full(len(self), -1, np.int64)
        return np.asarray(array.cast(pa.int64()).fill_null(-1))

    def with_duplicates(self, positions: Sequence[int]) -> list[int]:
        """Return these videos and all of their near-duplicates."""
        if not positions:
            return []
        groups = self.duplicate_groups[list(positions)]
        return [*positions, *np.flatnonzero(np.isin(self.duplicate_groups, groups[groups >= 0])).tolist()]


class ThumbnailWriter:
    """Writes the thumbnails of a version to an Arrow file with one column and record batches of up to 1,024 rows."""

    def __init__(self, path: Path) -> None:
        self._writer = pa.ipc.new_file(str(path), _THUMBNAILS)
        self._waiting: list[bytes | None] = []
        self._num_bytes = 0

    def add(self, thumbnails: list[bytes | None]) -> None:
        """Append thumbnails; None means that a video has no thumbnail."""
        for thumbnail in thumbnails:
            self._waiting.append(thumbnail)
            self._num_bytes += len(thumbnail or b"")
            if len(self._waiting) >= _BATCH_ROWS or self._num_bytes >= _BATCH_BYTES:
                self._flush()

    def _flush(self) -> None:
        self._writer.write_batch(pa.record_batch([pa.array(self._waiting, pa.large_binary())], schema=_THUMBNAILS))
        self._waiting, self._num_bytes = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._writer:
            if kind is None and self._waiting:
                self._flush()


class _Lookup:
    """Finds the position of an id by binary search in sorted hashes. If ids are equal, it finds the first one.

    It takes 12 bytes per id, and a dict would take over 100.
    """

    def __init__(self, texts: pa.LargeStringArray) -> None:
        """Hash and sort the ids. Null is never found."""
        pieces = range(0, max(1, len(texts)), _HASH_ROWS)
        hashes = np.concatenate([_hash_rows(texts.slice(at, _HASH_ROWS)) for at in pieces])
        order = np.argsort(hashes, kind="stable")
        self._texts = texts
        self._hashes = hashes[order]
        self._positions = order.astype(np.uint32 if len(texts) < 2**32 else np.int64)

    def positions(self, texts: Sequence[str]) -> list[int | None]:
        if not texts:
            return []
        wanted = np.fromiter((_hash(text) for text in texts), np.uint64, len(texts))
        starts = np.searchsorted(self._hashes, wanted)
        return [self._find(text, at, key) for text, at, key in zip(texts, starts.tolist(), wanted, strict=True)]

    def find(self, texts: pa.LargeStringArray) -> npt.NDArray[np.int64]:
        """Return the position of each id, or -1 if it is unknown."""
        pieces = range(0, len(texts) if len(self._hashes) else 0, _HASH_ROWS)
        found = [self._find_rows(texts.slice(at, _HASH_ROWS)) for at in pieces]
        return np.concatenate(found) if found else np.full(len(texts), -1, np.int64)

    def _find_rows(self, texts: pa.LargeStringArray) -> npt.NDArray[np.int64]:
        wanted = _hash_rows(texts)
        starts = np.searchsorted(self._hashes, wanted)
        at = np.minimum(starts, len(self._hashes) - 1)
        is_candidate = self._hashes[at] == wanted
        positions = self._positions[at].astype(np.int64)
        is_equal = pc.equal(texts, self._texts.take(pa.array(positions))).fill_null(False)  # noqa: FBT003 - Arrow's signature
        is_found = is_candidate & is_equal.to_numpy(zero_copy_only=False)
        positions[~is_found] = -1
        for row in np.flatnonzero(is_candidate & ~is_found).tolist():  # another id has the same hash
            found = self._find(texts[row].as_py(), int(starts[row]), wanted[row])
            positions[row] = -1 if found is None else found
        return positions

    def _find(self, text: str, at: int, key: np.uint64) -> int | None:
        """Return the position of an id, or None if it is unknown. Compare all ids with the same hash, usually one."""
        while at < len(self._hashes) and self._hashes[at] == key:
            position = int(self._positions[at])
            if self._texts[position].as_py() == text:
                return position
            at += 1
        return None


def _hash(text: str) -> np.uint64:
    data = np.frombuffer(text.encode(errors="surrogatepass"), np.uint8).astype(np.uint64)
    weights = _WEIGHTS if len(data) <= _NUM_WEIGHTS else np.resize(_WEIGHTS, len(data))
    total: np.uint64 = np.dot(data, weights[: len(data)])
    return total ^ np.uint64(len(data) * int(_LENGTH_WEIGHT) % 2**64)


def _hash_rows(texts: pa.LargeStringArray) -> npt.NDArray[np.uint64]:
    """Return the multilinear hash of each text.

    It is the sum of each byte times the weight of its position, modulo 2⁶⁴, XORed with the weighted length.
    """
    _, offsets_buffer, data_buffer = texts.buffers()
    if not len(texts) or data_buffer is None:
        return np.zeros(len(texts), np.uint64)
    offsets = np.frombuffer(offsets_buffer, np.int64, len(texts) + 1, texts.offset * 8)
    lengths = np.diff(offsets)
    ends = offsets - offsets[0]
    data = np.frombuffer(data_buffer, np.uint8, int(ends[-1]), int(offsets[0]))
    products = _WEIGHTS[(np.arange(len(data)) - np.repeat(ends[:-1], lengths)) % _NUM_WEIGHTS]
    products *= data
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(products, dtype=np.uint64)])
    hashes: npt.NDArray[np.uint64] = sums[ends[1:]] - sums[ends[:-1]]
    return hashes ^ (lengths.astype(np.uint64) * _LENGTH_WEIGHT)
