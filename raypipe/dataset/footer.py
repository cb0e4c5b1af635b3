"""A Parquet file that says in its footer what it is, and whose pages are held against their checksums."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import raypipe
from raypipe.errors import CommitError
from raypipe.storage import Folder
from raypipe.text import one_line

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


def read_parquet(folder: Folder, name: str, *, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a file, or these columns of it.

    Raises:
        CommitError: it is damaged, or lacks a column.
        ObjectError: it cannot be read.
    """
    wanted = None if columns is None else list(columns)
    try:
        with folder.open_input(name) as source:
            table = pq.read_table(source, columns=wanted, page_checksum_verification=True)
        return table if wanted is None else table.select(wanted)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise not_sealed(folder, name, one_line(error).rstrip(".")) from None


def not_sealed(folder: Folder, name: str, reason: str, *, value: object = None, expected: object = None) -> CommitError:
    """Return the error to raise when a file's rows are not those that were committed."""
    uri = folder.child(name)
    remedy = f"Run raypipe verify {folder}."
    return CommitError(
        f"{uri} is not what was sealed: {reason}.", key=uri, value=value, expected=expected, remedy=remedy
    )
