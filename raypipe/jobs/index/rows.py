"""Which rows of sealed embeddings an index is made of, decided once; their vectors, as often as they are asked for."""

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
from raypipe.dataset.read import planned_rows
from raypipe.errors import ConfigError
from raypipe.status import Status
from raypipe.storage import Folder

Batch = tuple[npt.NDArray[np.float32], list[bytes | None]]  # embeddings [n, D], and a thumbnail for each
OF_THE_ROWS = (schema.VIDEO_ID, schema.VIDEO_URI, schema.ETAG, schema.GENERATION, schema.DURATION_SECONDS)
_READS_AT_ONCE = 8
_ItemT = TypeVar("_ItemT")
_ReadT = TypeVar("_ReadT")


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the embeddings, and which of its rows are indexed."""

    name: str
    is_indexed: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class IndexedRows:
    """The rows with status ``ok`` that count, the latest plan first.

    ``items`` has the columns ``OF_THE_ROWS``. Nothing that another driver seals later changes any of it.
    """

    embeddings: Folder
    embedding_dim: int
    items: pa.Table
    num_left_out: int  # videos of another status, but for those that are gone
    _files: tuple[_File, ...]

    def batches(self) -> Iterator[Batch]:
        """Read vectors and thumbnails, in the order of ``items``; a few files are in memory at a time.

        Raises:
            CommitError: a file is not what was sealed.
        """
        for batch in _read_ahead(self._read, self._files):
            if len(batch[1]):
                yield batch

    def _read(self, file: _File) -> Batch:
        table = read_parquet(self.embeddings, file.name, columns=(schema.EMBEDDING, schema.THUMBNAIL))
        if table.num_rows != len(file.is_indexed):
            found, expected = table.num_rows, len(file.is_indexed)
            reason = f"it has {found} rows, not {expected}"
            raise not_sealed(self.embeddings, file.name, reason, value=found, expected=expected)
        rows = table.filter(pa.array(file.is_indexed))
        vectors = rows[schema.EMBEDDING].combine_chunks()
        kind = vectors.type
        if not pa.types.is_fixed_size_list(kind) or kind.list_size != self.embedding_dim or vectors.null_count:
            reason = f"its embeddings are {kind}, or some are missing"
            raise not_sealed(self.embeddings, file.name, reason, value=str(kind), expected=self.embedding_dim)
        matrix = vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        return matrix.reshape(len(vectors), self.embedding_dim), rows[schema.THUMBNAIL].to_pylist()


def find_rows(embeddings: Folder, manifests: Sequence[dict[str, Any]], *, embedding_dim: int) -> IndexedRows:
    """Settle which rows of these sealed plans an index holds; reads no vector.

    Raises:
        ConfigError: no video has the status ok.
        CommitError: a file is not what was sealed.
    """
    files, tables, num_left_out = [], [], 0
    for name, is_counted, table in _read_ahead(
        lambda named: _read_counted(embeddings, *named), _names(embeddings, manifests)
    ):
        is_ok = pc.equal(table[schema.STATUS], str(Status.OK)).to_numpy() & is_counted
        is_gone = pc.equal(table[schema.STATUS], str(Status.GONE)).to_numpy() & is_counted
        num_left_out += int(is_counted.sum() - is_ok.sum() - is_gone.sum())
        files.append(_File(name, is_ok))
        tables.append(table.filter(pa.array(is_ok)).select(OF_THE_ROWS))
    items = pa.concat_tables(tables).combine_chunks()
    if not items.num_rows:
        msg = f"{embeddings} holds no video of status ok ({num_left_out} of others)."
        remedy = "Look at them with raypipe verify."
        raise ConfigError(msg, key=str(embeddings), value=num_left_out, remedy=remedy)
    return IndexedRows(embeddings, embedding_dim, items, num_left_out, tuple(files))


def _names(embeddings: Folder, manifests: Sequence[dict[str, Any]]) -> Iterator[tuple[str, pa.Array]]:
    """Each file that holds rows that count, and the ids of those."""
    for number, planned in planned_rows(embeddings, list(manifests)):
        shards, first = np.unique(planned[schema.SHARD].to_numpy(), return_index=True)  # they ascend in a plan
        for shard, (start, stop) in zip(shards, pairwise([*first, planned.num_rows]), strict=True):
            yield data_name(number, int(shard)), planned[schema.VIDEO_ID].slice(start, stop - start).combine_chunks()


def _read_counted(embeddings: Folder, name: str, ids: pa.Array) -> tuple[str, npt.NDArray[np.bool_], pa.Table]:
    table = read_parquet(embeddings, name, columns=(*OF_THE_ROWS, schema.STATUS))
    is_counted = pc.is_in(table[schema.VIDEO_ID], value_set=ids).to_numpy()
    found, expected = int(is_counted.sum()), len(ids)
    if found != expected:
        reason = f"of its {expected} planned videos it holds {found}"
        raise not_sealed(embeddings, name, reason, value=found, expected=expected)
    return name, is_counted, table


def _read_ahead(read: Callable[[_ItemT], _ReadT], items: Iterable[_ItemT]) -> Iterator[_ReadT]:
    """What ``read`` gives for each item, in their order, a few at a time."""
    coming = iter(items)
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        reads: deque[Future[_ReadT]] = deque()
        reads.extend(pool.submit(read, item) for item in islice(coming, _READS_AT_ONCE))
        while reads:
            done = reads.popleft().result()
            reads.extend(pool.submit(read, item) for item in islice(coming, 1))
            yield done
