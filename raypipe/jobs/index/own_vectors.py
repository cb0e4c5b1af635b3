"""Vectors that a user brings: Parquet files with ``video_id`` and ``embedding`` that raypipe did not write."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe import schema
from raypipe.dataset.footer import METADATA
from raypipe.dataset.plan import plan_numbers
from raypipe.errors import ConfigError
from raypipe.search.build import Batch, repeated_ids
from raypipe.storage import Folder, StoredObject
from raypipe.storage.folder import place_of
from raypipe.tables.reader import refuse_changed, unreadable

_ENDING, _WHAT = ".parquet", "vectors"
_KINDS = {
    schema.VIDEO_URI: pa.string(),
    schema.ETAG: pa.string(),
    schema.GENERATION: pa.int32(),
    schema.DURATION_SECONDS: pa.float64(),
}
_ETAG_CHARS = 16


@dataclass(frozen=True, slots=True)
class OwnVectors:
    """The rows of a user's files that can be indexed: those with an id and a vector.

    Attributes:
        uri: The file or folder that the user gave.
        embedding_dim: D, the length of every vector.
        items: One row per video. Columns that the files do not have are null, except ``generation``, which is 0, and
            ``etag``, which identifies the version of the file.
        num_left_out: How many rows have no id or no vector.
    """

    uri: str
    embedding_dim: int
    items: pa.Table
    num_left_out: int
    _folder: Folder
    _files: tuple[tuple[StoredObject, npt.NDArray[np.bool_]], ...]  # each file, and a mask of its indexed rows

    @classmethod
    def find(cls, uri: str) -> "OwnVectors | None":
        """Read everything but the vectors; return None if the folder has plans of raypipe, or no Parquet file.

        Raises:
            ConfigError: a file cannot be read, lacks a column, or was written by raypipe; vectors differ in length, an
                id occurs twice, or no row has a vector.
        """
        folder, files = _files_of(uri)
        if not files:
            return None
        tables, kept, num_left_out = [], [], 0
        dims: dict[int, str] = {}
        for file in files:
            table, is_kept, dim = _read_items(folder, file)
            if dim:
                dims.setdefault(dim, file.uri)
            tables.append(table.filter(pa.array(is_kept)))
            kept.append((file, is_kept))
            num_left_out += int((~is_kept).sum())
        items = pa.concat_tables(tables).combine_chunks()
        if not items.num_rows:
            msg = f"{uri} has no row with a {schema.VIDEO_ID} and an {schema.EMBEDDING}."
            raise ConfigError(msg, key=schema.EMBEDDING, value=num_left_out)
        if len(dims) > 1:
            raise _mixed([*dims][:2], [*dims.values()][:2])
        if twice := repeated_ids(items):
            video_id, count = twice[0]
            msg = f"{uri}: {len(twice)} ids occur in several rows; {video_id!r} occurs {count} times."
            raise ConfigError(msg, key=schema.VIDEO_ID, value=video_id, remedy="Give each video one row.")
        return cls(uri, next(iter(dims)), items, num_left_out, folder, tuple(kept))

    @property
    def source(self) -> dict[str, Any]:
        """Return the description of the vectors that is stored in a version's manifest.

        The fingerprint stands for the location and the length of the vectors: whether new vectors in the same place are
        comparable with earlier ones is up to the user.
        """
        content = hashlib.sha256("".join(f"{file.key}\0{file.etag}\n" for file, _ in self._files).encode())
        place = hashlib.sha256(f"{self.uri}\0{self.embedding_dim}".encode())
        about = {"own_vectors": True, "num_files": len(self._files), "content": content.hexdigest()}
        return {"uri": self.uri, "fingerprint": place.hexdigest()[:16], "settings": {}, **about}

    def batches(self) -> Iterator[Batch]:
        """Yield the vectors and thumbnails in the order of ``items``, one file at a time.

        Raises:
            ConfigError: a file cannot be read, or has changed since it was found.
        """
        for file, is_kept in self._files:
            with unreadable(file.uri, _WHAT):
                refuse_changed(self._folder, file, _WHAT)
                with self._folder.open_input(file.key) as source:
                    parquet = pq.ParquetFile(source)
                    has_pictures = schema.THUMBNAIL in parquet.schema_arrow.names
                    columns = [schema.EMBEDDING, *([schema.THUMBNAIL] if has_pictures else [])]
                    table = parquet.read(columns=columns).filter(pa.array(is_kept))
                refuse_changed(self._folder, file, _WHAT)
                vectors = _numbers(table[schema.EMBEDDING]).reshape(table.num_rows, self.embedding_dim)
            if table.num_rows:
                pictures = table[schema.THUMBNAIL].to_pylist() if has_pictures else [None] * table.num_rows
                yield vectors, pictures


def _files_of(uri: str) -> tuple[Folder, list[StoredObject]]:
    if uri.lower().endswith(_ENDING):
        folder, name = place_of(uri)
        stored = folder.stat(name)
        if stored is None:
            msg = f"{uri} does not exist."
            raise ConfigError(
                msg, key="embeddings", value=uri, remedy="Give a Parquet file, or an output of raypipe embed."
            )
        return folder, [stored]
    folder = Folder(uri)
    if plan_numbers(folder):
        return folder, []
    return folder, sorted(
        (stored for stored in folder.list() if stored.key.lower().endswith(_ENDING)), key=lambda stored: stored.key
    )


def _read_items(folder: Folder, file: StoredObject) -> tuple[pa.Table, npt.NDArray[np.bool_], int]:
    """Return the columns of the items, a mask of the rows with an id and a vector, and the length of the vectors."""
    with unreadable(file.uri, _WHAT), folder.open_input(file.key) as source:
        parquet = pq.ParquetFile(source)
        names = parquet.schema_arrow.names
        if METADATA in (parquet.schema_arrow.metadata or {}):
            msg = f"{file.uri} was written by raypipe, but its folder has no plans."
            raise ConfigError(msg, key=file.uri, remedy="Give the output folder of raypipe embed.")
        if missing := [name for name in (schema.VIDEO_ID, schema.EMBEDDING) if name not in names]:
            found = ", ".join(names)
            msg = f"{file.uri} has no column {missing[0]!r}; its columns are {found}."
            raise ConfigError(msg, key=missing[0], choices=names)
        wanted = [schema.VIDEO_ID, schema.EMBEDDING, *(name for name in _KINDS if name in names)]
        table = parquet.read(columns=wanted)
        lengths = _lengths(table[schema.EMBEDDING], file)
        columns = {schema.VIDEO_ID: table[schema.VIDEO_ID].cast(pa.string())}
        columns |= {
            name: table[name].cast(kind) if name in names else pa.nulls(table.num_rows, kind)
            for name, kind in _KINDS.items()
        }
    if schema.GENERATION not in names:
        columns[schema.GENERATION] = pa.array(np.zeros(table.num_rows, np.int32))
    if schema.ETAG not in names:
        etag = hashlib.sha256(f"{file.key}\0{file.etag}".encode()).hexdigest()[:_ETAG_CHARS]
        columns[schema.ETAG] = pa.array([etag] * table.num_rows, pa.string())
    has_id = pc.not_equal(columns[schema.VIDEO_ID], "").fill_null(False).to_numpy()  # noqa: FBT003 - Arrow's signature
    is_kept = has_id & (lengths > 0)
    found_dims = np.unique(lengths[is_kept])
    if len(found_dims) > 1:
        raise _mixed(found_dims[:2].tolist(), [file.uri, file.uri])
    return pa.table(columns), is_kept, int(found_dims[0]) if len(found_dims) else 0


def _lengths(column: pa.ChunkedArray, file: StoredObject) -> npt.NDArray[np.int64]:
    """Return the length of each vector, 0 for null."""
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    is_number = is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))
    if not is_number:
        msg = f"The column {schema.EMBEDDING!r} of {file.uri} has the type {kind}; it should be a list of numbers."
        raise ConfigError(msg, key=schema.EMBEDDING, value=str(kind))
    lengths: npt.NDArray[np.int64] = pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64)
    return lengths


def _numbers(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """Return the numbers of all vectors one after the other; null is NaN, which the index counts and leaves out."""
    flat = pc.list_flatten(column)
    with np.errstate(over="ignore"):  # a float64 may be infinite as float32: the index counts it and leaves it out
        numbers: npt.NDArray[np.float32] = flat.to_numpy().astype(np.float32)
    return numbers


def _mixed(dims: Sequence[int], places: Sequence[str]) -> ConfigError:
    first, second = (f"{place} has vectors of {dim} numbers" for dim, place in zip(dims, places, strict=True))
    return ConfigError(f"All vectors need the same length: {first}, {second}.", key=schema.EMBEDDING, value=list(dims))
