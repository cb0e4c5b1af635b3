"""What an index knows of its videos, besides their vectors: row i is the video of vector i."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe import schema
from raypipe.errors import IndexVersionError
from raypipe.search.columns import as_json, as_numbers, comparable, kind_of, plain_column
from raypipe.search.conditions import bitmap_of, mask_of, parse
from raypipe.search.lookup import Lookup
from raypipe.search.query import Filters

ITEMS, THUMBNAILS = "items.parquet", "thumbnails.arrow"
DUPLICATE_GROUP = "duplicate_group"
TITLE = "title"
_FEW_VALUES = 4_096  # a text column of no more distinct values is compared by their codes


class Items:
    """The items of an index in memory, their thumbnails in a mapped file; any thread may ask."""

    def __init__(self, table: pa.Table, thumbnails: pa.ChunkedArray | None) -> None:
        """Take the table as ``items.parquet`` has it; ``video_id`` it must have.

        Raises:
            IndexVersionError: it has no ``video_id``, or not as many thumbnails as rows.
        """
        if schema.VIDEO_ID not in table.column_names:
            names = table.column_names
            msg = f"The items of this index have no column {schema.VIDEO_ID!r}, only {', '.join(names)}."
            raise IndexVersionError(msg, key=schema.VIDEO_ID, value=names)
        if thumbnails is not None and len(thumbnails) != table.num_rows:
            found, expected = len(thumbnails), table.num_rows
            msg = f"This index has {expected} items and {found} thumbnails."
            raise IndexVersionError(msg, key=THUMBNAILS, value=found, expected=expected, remedy="Build it again.")
        self._arrays = {name: plain_column(table[name]) for name in table.column_names}
        self._ids = self._arrays[schema.VIDEO_ID]
        self._thumbnails = thumbnails
        self._comparable: dict[str, pa.Array] = {}
        self._codes: dict[str, tuple[npt.NDArray[np.int32], pa.Array]] = {}
        self._many_values: set[str] = set()
        self._numbers: dict[str, npt.NDArray[np.float64] | None] = {}
        self._lookup = Lookup(self._ids)

    @classmethod
    def open(cls, folder: Path) -> "Items":
        """Read a version's items and map its thumbnails.

        Raises:
            IndexVersionError: they cannot be read.
        """
        try:
            table = pq.read_table(folder / ITEMS)
            with pa.memory_map(str(folder / THUMBNAILS)) as file:
                thumbnails = pa.ipc.open_file(file).read_all()[schema.THUMBNAIL]
            return cls(table, thumbnails)
        except (pa.ArrowException, OSError, KeyError) as error:
            msg = f"Cannot read the items of {folder}: {' '.join(str(error).split())}"
            raise IndexVersionError(msg, key=str(folder)) from None

    def __len__(self) -> int:
        return len(self._ids)

    @cached_property
    def columns(self) -> dict[str, pa.DataType]:
        """Those that a filter can compare: no lists, structs or bytes."""
        return {name: array.type for name, array in self._arrays.items() if kind_of(array.type)}

    def position(self, video_id: str) -> int | None:
        """The position of a video, None where the index does not hold it."""
        return self._lookup.position(video_id)

    def positions(self, ids: Sequence[str]) -> list[int | None]:
        """The position of each, None where the index does not hold it."""
        return self._lookup.positions(ids)

    def video_id(self, position: int) -> str:
        """The id of the video at a position."""
        return str(self._ids[position].as_py())

    def row(self, position: int) -> dict[str, Any]:
        """All columns of one video as JSON has them."""
        return {name: as_json(array[position]) for name, array in self._arrays.items()}

    def find(self, text: str | None, filters: Filters, *, offset: int, limit: int) -> tuple[list[int], int]:
        """Positions whose title or id holds the text in any case, some of them in order, and how many there are.

        Raises:
            QueryError: a filter names no column, or compares it with what it does not hold.
        """
        found = np.ones(len(self), np.bool_)
        if filters:
            found = mask_of(bitmap_of(self, parse(self, filters)), len(self))
        positions = np.flatnonzero(found)
        if text:
            positions = positions[self._holds(text, positions)]
        return positions[offset : offset + limit].tolist(), len(positions)

    def _holds(self, text: str, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        held = np.zeros(len(positions), np.bool_)
        for name in (TITLE, schema.VIDEO_ID):
            array = self._arrays.get(name)
            if array is None or kind_of(array.type) != "text":
                continue
            among = array if len(positions) == len(self) else array.take(pa.array(positions))
            hits = pc.match_substring(among, text, ignore_case=True)
            held |= hits.fill_null(False).to_numpy(zero_copy_only=False)  # noqa: FBT003 - Arrow's own signature
        return held

    def thumbnail(self, position: int) -> bytes | None:
        """The JPEG of one video, None where it has none."""
        return None if self._thumbnails is None else self._thumbnails[position].as_py()

    def values(self, column: str, *, limit: int) -> list[str]:
        """Distinct values of a column of text, the most frequent first; none where there is no such column."""
        array = self._arrays.get(column)
        if array is None or kind_of(array.type) != "text":
            return []
        codes, values = self._encoded(column)
        counts = np.bincount(codes[codes >= 0], minlength=len(values))
        texts = values.to_pylist()
        return sorted(texts, key=dict(zip(texts, (-counts).tolist(), strict=True)).__getitem__)[:limit]

    def codes(self, column: str) -> npt.NDArray[np.int32] | None:
        """A number for each row, the same for the same value, -1 for null; None where there is no such column."""
        return self._encoded(column)[0] if column in self.columns else None

    def few_values(self, column: str) -> tuple[npt.NDArray[np.int32], pa.Array] | None:
        """Codes and the values they stand for, of a text column of few values; None of any other."""
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
        """A column of numbers, or of times in seconds since 1970, NaN for null; None where there is none."""
        if column not in self._numbers:
            array = self._arrays.get(column)
            self._numbers[column] = None if array is None else as_numbers(array)
        return self._numbers[column]

    def comparable(self, column: str) -> pa.Array:
        """A column as ``columns.comparable`` has it."""
        if column not in self._comparable:
            self._comparable[column] = comparable(self._arrays[column])
        return self._comparable[column]

    @cached_property
    def duplicate_groups(self) -> npt.NDArray[np.int64]:
        """The smallest row of each video's group of near-duplicates, -1 for a video alone."""
        array = self._arrays.get(DUPLICATE_GROUP)
        if array is None or kind_of(array.type) != "integer":
            return np.full(len(self), -1, np.int64)
        return np.asarray(array.cast(pa.int64()).fill_null(-1))
