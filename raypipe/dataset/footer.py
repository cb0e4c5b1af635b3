"""Write and read Parquet files that have page checksums and a JSON description in the footer."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import raypipe
from raypipe import schema
from raypipe.errors import CommitError
from raypipe.storage import Folder
from raypipe.text import one_line

METADATA = b"raypipe"
_ROUNDED = f"{schema.FRAME_EMBEDDINGS}.list.element.list.element"


def parquet_bytes(table: pa.Table, about: Mapping[str, Any]) -> bytes:
    """Return a table as a Parquet file. The footer contains ``about`` and raypipe's version as JSON."""
    sink = io.BytesIO()
    metadata = {METADATA: json.dumps({"raypipe": raypipe.__version__, **about}).encode()}
    plain = [field.name for field in table.schema if not pa.types.is_nested(field.type) and field.type != pa.binary()]
    # Frame embeddings are rounded to float16. As float32, a dictionary of the few different numbers halves their size.
    rounded = [_ROUNDED] if _has_float32_frames(table.schema) else []
    pq.write_table(
        table.replace_schema_metadata(metadata),
        sink,
        compression="zstd",
        write_page_checksum=True,
        # Other vectors and pictures do not repeat, and none is ever compared: this would only take time.
        use_dictionary=[*plain, *rounded],
        write_statistics=plain,
    )
    return sink.getvalue()


def _has_float32_frames(rows: pa.Schema) -> bool:
    if (at := rows.get_field_index(schema.FRAME_EMBEDDINGS)) < 0:
        return False
    return bool(pa.types.is_float32(rows.field(at).type.value_type.value_type))


def read_parquet(folder: Folder, name: str, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or only some of its columns, and verify the page checksums.

    Raises:
        CommitError: the file is corrupt or lacks a column.
        ObjectError: the file cannot be read.
    """
    wanted = None if columns is None else list(columns)
    try:
        with folder.open_input(name) as source:
            table = pq.read_table(source, columns=wanted, page_checksum_verification=True)
        return table if wanted is None else table.select(wanted)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise not_sealed(folder, name, one_line(error).rstrip(".")) from None


def not_sealed(folder: Folder, name: str, reason: str, *, value: object = None, expected: object = None) -> CommitError:
    """Return the exception for a file that does not contain the rows that were committed."""
    uri = folder.child(name)
    remedy = f"Run raypipe verify {folder}."
    return CommitError(
        f"{uri} does not match the committed data: {reason}.", key=uri, value=value, expected=expected, remedy=remedy
    )
