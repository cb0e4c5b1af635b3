"""Read a user's tables (``.parquet``, ``.csv`` or ``.jsonl``), with columns as text or with inferred types."""

from raypipe.tables.column_types import ColumnReading, Kind
from raypipe.tables.reader import TypedTable, empty_rows, is_table, read_table, read_text_columns, table_place

__all__ = [
    "ColumnReading",
    "Kind",
    "TypedTable",
    "empty_rows",
    "is_table",
    "read_table",
    "read_text_columns",
    "table_place",
]
