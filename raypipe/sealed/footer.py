"""A Parquet file that says in its footer what it is."""

import io
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import raypipe

METADATA = b"raypipe"


def parquet_bytes(table: pa.Table, about: Mapping[str, Any]) -> bytes:
    """The file of a table, with what it is and this version of raypipe as JSON under ``METADATA``."""
    sink = io.BytesIO()
    metadata = {METADATA: json.dumps({"raypipe": raypipe.__version__, **about}).encode()}
    plain = [field.name for field in table.schema if not pa.types.is_nested(field.type) and field.type != pa.binary()]
    pq.write_table(
        table.replace_schema_metadata(metadata),
        sink,
        compression="zstd",
        write_page_checksum=True,
        # Vectors and pictures do not repeat, and nobody asks for the least of them: for them it is half of the time.
        use_dictionary=plain,
        write_statistics=plain,
    )
    return sink.getvalue()
