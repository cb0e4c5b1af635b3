"""The commit: one shard becomes one Parquet file in one create-only PUT, and nothing else is state."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe import schema
from raypipe.dataset.footer import METADATA, parquet_bytes
from raypipe.dataset.plan import data_name
from raypipe.errors import CommitError
from raypipe.storage import Folder

_MOVE_AWAY = "Move it away and run the same command again."


@dataclass(frozen=True, slots=True)
class ShardFile:
    """What a shard's file says of itself, in its footer."""

    plan: int
    shard: int
    shard_digest: str
    fingerprint: str
    statuses: dict[str, int]
    num_frames: int

    @property
    def num_rows(self) -> int:
        """One row for each video of the shard."""
        return sum(self.statuses.values())


def shard_digest(rows: pa.Table) -> str:
    """The digest of which contents a shard holds, the same for its plan's rows and for its file's."""
    columns = (rows[name].to_pylist() for name in (schema.VIDEO_ID, schema.VIDEO_URI, schema.ETAG))
    lines = ("\0".join(row) for row in zip(*columns, strict=True))
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def describe_shard(rows: pa.Table, *, plan: int, shard: int, fingerprint: str) -> ShardFile:
    """What the file of these rows will say of itself."""
    return ShardFile(
        plan=plan,
        shard=shard,
        shard_digest=shard_digest(rows),
        fingerprint=fingerprint,
        statuses=dict(Counter(rows[schema.STATUS].to_pylist())),
        num_frames=int(pc.sum(rows[schema.NUM_FRAMES]).as_py() or 0),
    )


def put_shard(output: Folder, rows: pa.Table, about: ShardFile) -> bool:
    """Commit a shard; False when another attempt had committed it.

    Raises:
        CommitError: what is there under the shard's name is not this shard.
    """
    data = parquet_bytes(rows, {name: getattr(about, name) for name in ShardFile.__dataclass_fields__})
    if output.put_new(data_name(about.plan, about.shard), data):
        return True
    check_shard(output, about.plan, about.shard, shard_digest=about.shard_digest, fingerprint=about.fingerprint)
    return False


def check_shard(output: Folder, plan: int, shard: int, *, shard_digest: str, fingerprint: str) -> ShardFile:
    """Read a committed shard's footer and hold it against its plan.

    Raises:
        CommitError: the file is not this shard.
    """
    found = read_shard_file(output, data_name(plan, shard))
    planned = (plan, shard, shard_digest, fingerprint)
    held = (found.plan, found.shard, found.shard_digest, found.fingerprint)
    if held != planned:
        uri = output.child(data_name(plan, shard))
        msg = f"{uri} is not shard {shard} of plan {plan}: something else wrote it."
        raise CommitError(msg, key=uri, value=held, expected=planned, remedy=_MOVE_AWAY)
    return found


def read_shard_file(output: Folder, name: str) -> ShardFile:
    """Read what a shard's file says of itself, from its footer alone.

    Raises:
        CommitError: it is not a Parquet file of raypipe.
    """
    try:
        with output.open_input(name) as file:
            return _parse_about(json.loads(pq.read_schema(file).metadata[METADATA]))
    except (pa.ArrowException, OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        uri = output.child(name)
        msg = f"{uri} is not a file of raypipe: {' '.join(str(error).split())}."
        raise CommitError(msg, key=uri, remedy=_MOVE_AWAY) from None


def _parse_about(metadata: dict[str, Any]) -> ShardFile:
    metadata.pop("raypipe")
    about = ShardFile(**metadata)
    if not all(isinstance(count, int) for count in (about.num_frames, *about.statuses.values())):
        msg = f"its counts are {about.statuses} and {about.num_frames!r}"
        raise TypeError(msg)
    return about
