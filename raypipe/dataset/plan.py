"""Plans: lists of the work of a job. Each plan is stored once in ``OUTPUT/plans/`` and never changes.

Plans are numbered from 0 without a gap. Each number can be created only once, so all drivers agree on the content of
each plan. The number of a plan is also the generation of every output row that results from the plan.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe import schema
from raypipe.dataset.footer import METADATA, parquet_bytes
from raypipe.errors import CommitError, FingerprintError, refuse_other_settings
from raypipe.storage import Folder, StoredObject
from raypipe.text import one_line

MAX_PLAN_VIDEOS = 65_536
_PLANS_KEPT = 8  # plans kept in memory, about 10 MB each


@dataclass(frozen=True, slots=True)
class PlannedVideo:
    """One video to plan: an object at a URI. The etag identifies the content of the object.

    A video that is gone is planned only to give it a row with the status ``gone``. It is not read.
    """

    video_id: str
    video_uri: str
    etag: str
    size_bytes: int
    is_gone: bool = field(default=False, kw_only=True)

    @classmethod
    def of(cls, stored: StoredObject) -> "PlannedVideo":
        """Convert a listed object to a video. The video's id is the key of the object relative to the input."""
        return cls(stored.key, stored.uri, stored.etag, stored.size_bytes)


def plan_table(videos: Sequence[PlannedVideo], shards: Sequence[int]) -> pa.Table:
    """Return the rows of a plan, one per video.

    ``shards`` contains the shard of each video. The shards must be in ascending order, numbered from 0 without a gap.
    """
    table = pa.table(
        {
            schema.VIDEO_ID: [video.video_id for video in videos],
            schema.VIDEO_URI: [video.video_uri for video in videos],
            schema.ETAG: [video.etag for video in videos],
            schema.SIZE_BYTES: [video.size_bytes for video in videos],
            schema.SHARD: shards,
        },
        schema=schema.PLAN_SCHEMA,
    )
    if not any(video.is_gone for video in videos):
        return table
    return table.append_column(schema.GONE, pa.array([video.is_gone for video in videos], pa.bool_()))


def planned_videos(rows: pa.Table) -> list[PlannedVideo]:
    """Convert the rows of a plan to videos."""
    names = (schema.VIDEO_ID, schema.VIDEO_URI, schema.ETAG, schema.SIZE_BYTES)
    columns = zip(*(rows[name].to_pylist() for name in names), strict=True)
    return [PlannedVideo(*row, is_gone=is_gone) for row, is_gone in zip(columns, gone_flags(rows), strict=True)]


def gone_flags(rows: pa.Table) -> list[bool]:
    """Return a flag for each row of a plan: whether it marks its video as gone."""
    if schema.GONE not in rows.column_names:
        return [False] * rows.num_rows
    flags: list[bool] = rows[schema.GONE].to_pylist()
    return flags


def range_table(num_rows: int, *, rows_per_shard: int, first_shard: int = 0, num_shards: int) -> pa.Table:
    """Return the rows of a plan in which each shard is a range of ``rows_per_shard`` rows of a table.

    The table has ``num_rows`` rows. The plan covers ``num_shards`` of its ranges, starting with range ``first_shard``.
    Within the plan, shards are numbered from 0.
    """
    first = np.arange(first_shard, first_shard + num_shards, dtype=np.int64) * rows_per_shard
    columns = {
        schema.FIRST_ROW: first,
        schema.NUM_ROWS: np.minimum(rows_per_shard, num_rows - first),
        schema.SHARD: np.arange(num_shards, dtype=np.int32),
    }
    return pa.table(columns, schema=schema.RANGE_PLAN_SCHEMA)


def row_range(rows: pa.Table) -> tuple[int, int] | None:
    """Return the row range of a shard as (first row, number of rows).

    ``rows`` are the planned rows of the shard, or the rows of its file. Return None if the rows do not belong to a
    range plan, or are not contiguous.
    """
    if schema.FIRST_ROW in rows.column_names:
        return rows[schema.FIRST_ROW][0].as_py(), pc.sum(rows[schema.NUM_ROWS]).as_py()
    if schema.ROW in rows.column_names and rows.num_rows:
        numbers = rows[schema.ROW].to_numpy()
        if (np.diff(numbers) == 1).all():
            return int(numbers[0]), rows.num_rows
    return None


@dataclass(frozen=True, slots=True)
class Plan:
    """One plan. Its rows are videos (``PLAN_SCHEMA``) or row ranges (``RANGE_PLAN_SCHEMA``), sorted by shard.

    A job may add columns.
    """

    number: int
    rows: pa.Table
    fingerprint: str
    settings: Mapping[str, Any]  # the fingerprint is their digest
    input: str

    @property
    def num_shards(self) -> int:
        """Return the number of shards, which are numbered from 0 without a gap."""
        return int(pc.max(self.rows[schema.SHARD]).as_py()) + 1

    @property
    def num_rows(self) -> int:
        """Return the number of output rows that result from this plan."""
        return num_planned_rows(self.rows)

    def shards(self) -> Iterator[tuple[int, pa.Table]]:
        """Yield each shard as (shard number, planned rows)."""
        numbers = self.rows[schema.SHARD].to_numpy()
        start = 0
        for shard in range(self.num_shards):
            stop = start
            while stop < len(numbers) and numbers[stop] == shard:
                stop += 1
            yield shard, self.rows.slice(start, stop - start)
            start = stop


def num_planned_rows(rows: pa.Table) -> int:
    """Return how many output rows result from these planned rows: one per video, or the total length of the ranges."""
    return int(pc.sum(rows[schema.NUM_ROWS]).as_py() if schema.NUM_ROWS in rows.column_names else rows.num_rows)


def job_of(settings: Mapping[str, Any]) -> str:
    """Return the name of the job with these settings, as in ``raypipe JOB``.

    The settings of every job except embed contain its name.
    """
    return str(settings.get("job", "embed"))


def digest(text: str) -> bytes:
    """Return 12 bytes that identify a URI, id or etag. A collision among 100 million texts has probability 1e-13."""
    return hashlib.blake2b(text.encode(), digest_size=12).digest()


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Return the digest of all settings that affect the content of a row."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def comparable_fingerprints(settings: Mapping[str, Any]) -> frozenset[str]:
    """Return the fingerprints that these settings of embed have in each row format and with each type of vectors.

    The embeddings of all formats are comparable. A later format decodes more videos correctly, and the embeddings of
    all other videos stay the same. The type of vectors does not change their values.
    """
    shared = {key: value for key, value in settings.items() if key != "vectors"}
    formats = [{**shared, "format": row_format} for row_format in range(1, schema.ROW_FORMAT + 1)]
    return frozenset(fingerprint({**each, **stored}) for each in formats for stored in ({}, {"vectors": "float32"}))


def plan_name(number: int) -> str:
    """Return the name of a plan's file in the output folder."""
    return f"plans/{number:05d}.parquet"


def data_name(plan: int, shard: int) -> str:
    """Return the name of a shard's file in the output folder."""
    return f"data/{plan:05d}-{shard:06d}.parquet"


def parse_data_name(name: str) -> tuple[int, int] | None:
    """Parse the name of a shard's file in ``data/`` to (plan, shard). Return None for any other name."""
    match = re.fullmatch(r"data/([0-9]{5,18})-([0-9]{6,18})\.parquet", name)
    parsed = (int(match[1]), int(match[2])) if match else None
    return parsed if parsed and data_name(*parsed) == name else None  # 000001 is not another name for 00001


def plan_numbers(output: Folder) -> list[int]:
    """Return the numbers of the stored plans in ascending order."""
    names = (re.fullmatch(r"plans/([0-9]{5,18})\.parquet", stored.key) for stored in output.list("plans/"))
    return sorted(int(name[1]) for name in names if name and plan_name(int(name[1])) == name[0])


def read_plan(output: Folder, number: int) -> Plan:
    """Read one plan.

    Raises:
        CommitError: the file is not a plan.
    """
    name = plan_name(number)
    data = output.read(name)
    try:
        table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
        about = json.loads(table.schema.metadata[METADATA])
        _check_sound(table, about)
        return Plan(number, _in_order(table), about["fingerprint"], about["settings"], about["input"])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        uri = output.child(name)
        msg = f"{uri} is not a raypipe plan: {one_line(error)}"
        raise CommitError(msg, key=uri) from None


def _in_order(rows: pa.Table) -> pa.Table:
    """Sort the columns of a plan: first the columns of its schema, then the columns that the job added."""
    base = schema.RANGE_PLAN_SCHEMA if schema.FIRST_ROW in rows.column_names else schema.PLAN_SCHEMA
    wanted = pa.schema([*base, *(field for field in rows.schema if field.name not in base.names)])
    return rows.select(wanted.names).cast(wanted)


def _check_sound(rows: pa.Table, about: dict[str, Any]) -> None:
    """Raise ValueError or TypeError if a plan is malformed."""
    rows.validate(full=True)  # checks what Arrow itself relies on, such as valid UTF-8
    shards = rows[schema.SHARD].to_numpy()
    if any(column.null_count for column in rows.columns) or not len(shards):
        msg = "it has no rows, or a row lacks a value."
        raise ValueError(msg)
    if shards[0] != 0 or not np.isin(np.diff(shards), (0, 1)).all():
        msg = "its shards are not numbered 0, 1, 2, …"
        raise ValueError(msg)
    if schema.FIRST_ROW in rows.column_names:
        first, lengths = (rows[name].to_numpy() for name in (schema.FIRST_ROW, schema.NUM_ROWS))
        if first[0] < 0 or (lengths < 1).any() or (first[1:] != (first + lengths)[:-1]).any():
            msg = "its row ranges are not contiguous."
            raise ValueError(msg)
    if schema.GONE in rows.column_names and not pa.types.is_boolean(rows.schema.field(schema.GONE).type):
        msg = f"its column {schema.GONE} is not boolean."
        raise TypeError(msg)
    kinds = {"fingerprint": str, "settings": dict, "input": str}
    if not all(isinstance(about[key], kind) for key, kind in kinds.items()):
        msg = "its fingerprint, settings or input has the wrong type."
        raise TypeError(msg)


class StoredPlans:
    """The plans of one output. The last few plans stay in memory, so that a run reads each plan only once."""

    def __init__(self, output: Folder) -> None:
        self.output = output
        self._kept: dict[int, Plan] = {}  # least recently used first

    def numbers(self) -> list[int]:
        """Return the numbers of the stored plans in ascending order."""
        return plan_numbers(self.output)

    def read(self, number: int) -> Plan:
        """Return a plan, from memory if it is still there. Raises the same errors as ``read_plan``."""
        return self._keep(self._kept.pop(number) if number in self._kept else read_plan(self.output, number))

    def put(self, plan: Plan) -> bool:
        """Store a plan like ``put_plan``, and keep it in memory. Return False if its number is already taken."""
        is_stored = put_plan(self.output, plan)
        if is_stored:
            self._keep(plan)
        return is_stored

    def _keep(self, plan: Plan) -> Plan:
        self._kept[plan.number] = plan
        while len(self._kept) > _PLANS_KEPT:
            del self._kept[next(iter(self._kept))]
        return plan


def put_plan(output: Folder, plan: Plan) -> bool:
    """Store a plan. Return False if its number is already taken."""
    about = {
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprint": plan.fingerprint,
        "settings": plan.settings,
        "input": plan.input,
        "num_videos": plan.num_rows,
        "num_shards": plan.num_shards,
    }
    return output.put_new(plan_name(plan.number), parquet_bytes(plan.rows, about))


def check_fingerprint(plan: Plan, settings: Mapping[str, Any]) -> None:
    """Check that rows made with these settings can be added to an output that contains the plan.

    Raises:
        FingerprintError: the plan was made with other settings, so the rows would not be comparable.
    """
    if plan.fingerprint == fingerprint(settings):
        return
    refuse_other_settings(plan.settings, settings, subject="The output holds rows")
    msg = f"The output holds rows with fingerprint {plan.fingerprint}, which does not match their settings."
    raise FingerprintError(msg, key="fingerprint", value=fingerprint(settings), expected=plan.fingerprint)
