"""Plans: what a job is to do, decided once and stored create-only in ``OUTPUT/plans/``.

Plans are numbered from 0 without a gap, and a number can be created once, so that any number of drivers agree on what
each plan holds. A plan is one generation: every row it leads to carries its number.
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

MAX_PLAN_VIDEOS = 65_536
_PLANS_KEPT = 8  # in memory, about 10 MB each


@dataclass(frozen=True, slots=True)
class PlannedVideo:
    """One video to plan: the content of the object at a URI that its etag identifies.

    A video that is gone is planned only to get a row that says so; it is not read.
    """

    video_id: str
    video_uri: str
    etag: str
    size_bytes: int
    is_gone: bool = field(default=False, kw_only=True)

    @classmethod
    def of(cls, stored: StoredObject) -> "PlannedVideo":
        """Return a listed object; its key relative to the input is its id."""
        return cls(stored.key, stored.uri, stored.etag, stored.size_bytes)


def plan_table(videos: Sequence[PlannedVideo], shards: Sequence[int]) -> pa.Table:
    """Return the rows of a plan: the videos in the order of their shards, which are numbered from 0 without a gap."""
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
    """Return the videos of a plan's rows."""
    names = (schema.VIDEO_ID, schema.VIDEO_URI, schema.ETAG, schema.SIZE_BYTES)
    columns = zip(*(rows[name].to_pylist() for name in names), strict=True)
    return [PlannedVideo(*row, is_gone=is_gone) for row, is_gone in zip(columns, gone_flags(rows), strict=True)]


def gone_flags(rows: pa.Table) -> list[bool]:
    """Return for each row of a plan whether it marks a video as gone."""
    if schema.GONE not in rows.column_names:
        return [False] * rows.num_rows
    flags: list[bool] = rows[schema.GONE].to_pylist()
    return flags


def range_table(num_rows: int, *, rows_per_shard: int, first_shard: int = 0, num_shards: int) -> pa.Table:
    """Return the rows of a plan of row ranges: one for each shard, ``rows_per_shard`` rows of a table of ``num_rows``.

    ``first_shard`` is the first range of this plan, whose shards are numbered from 0.
    """
    first = np.arange(first_shard, first_shard + num_shards, dtype=np.int64) * rows_per_shard
    columns = {
        schema.FIRST_ROW: first,
        schema.NUM_ROWS: np.minimum(rows_per_shard, num_rows - first),
        schema.SHARD: np.arange(num_shards, dtype=np.int32),
    }
    return pa.table(columns, schema=schema.RANGE_PLAN_SCHEMA)


def row_range(rows: pa.Table) -> tuple[int, int] | None:
    """Return (first row, number of rows) of a shard of a range plan, from its plan's row or from its file's rows.

    None if the rows are not of such a plan, or not one range.
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
    """One stored plan, ordered by shard. Its rows are videos (``PLAN_SCHEMA``) or row ranges (``RANGE_PLAN_SCHEMA``).

    A job may add columns.
    """

    number: int
    rows: pa.Table
    fingerprint: str
    settings: Mapping[str, Any]  # what makes the fingerprint
    input: str

    @property
    def num_shards(self) -> int:
        """Return the number of shards, which are numbered from 0 without a gap."""
        return int(pc.max(self.rows[schema.SHARD]).as_py()) + 1

    @property
    def num_rows(self) -> int:
        """Return how many rows the files of this plan have together."""
        return num_planned_rows(self.rows)

    def shards(self) -> Iterator[tuple[int, pa.Table]]:
        """Each shard's number and its rows."""
        numbers = self.rows[schema.SHARD].to_numpy()
        start = 0
        for shard in range(self.num_shards):
            stop = start
            while stop < len(numbers) and numbers[stop] == shard:
                stop += 1
            yield shard, self.rows.slice(start, stop - start)
            start = stop


def num_planned_rows(rows: pa.Table) -> int:
    """Return how many rows of output these rows of a plan lead to: one for each video, or those of the ranges."""
    return int(pc.sum(rows[schema.NUM_ROWS]).as_py() if schema.NUM_ROWS in rows.column_names else rows.num_rows)


def job_of(settings: Mapping[str, Any]) -> str:
    """Which job's settings these are, as ``raypipe JOB`` names it; those of embed, the first job, do not say."""
    return str(settings.get("job", "embed"))


def digest(text: str) -> bytes:
    """12 bytes that stand for a URI, an id or an etag: of a hundred million, two are alike with probability 1e-13."""
    return hashlib.blake2b(text.encode(), digest_size=12).digest()


def fingerprint(settings: Mapping[str, Any]) -> str:
    """The digest of everything that changes what a row holds."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def comparable_fingerprints(settings: Mapping[str, Any]) -> frozenset[str]:
    """Return the fingerprints of these settings of embed in every row format.

    Their vectors compare: a later format reads more videos right, and gives the others the same vectors.
    """
    return frozenset(fingerprint({**settings, "format": row_format}) for row_format in range(1, schema.ROW_FORMAT + 1))


def plan_name(number: int) -> str:
    """Where a plan lies in the output folder."""
    return f"plans/{number:05d}.parquet"


def data_name(plan: int, shard: int) -> str:
    """Where a shard's file lies in the output folder."""
    return f"data/{plan:05d}-{shard:06d}.parquet"


def parse_data_name(name: str) -> tuple[int, int] | None:
    """The plan and shard of a file in ``data/``, or None where it is none of ours."""
    match = re.fullmatch(r"data/([0-9]{5,18})-([0-9]{6,18})\.parquet", name)
    parsed = (int(match[1]), int(match[2])) if match else None
    return parsed if parsed and data_name(*parsed) == name else None  # 000001 is no second name of 00001


def plan_numbers(output: Folder) -> list[int]:
    """The numbers of the stored plans, ascending."""
    names = (re.fullmatch(r"plans/([0-9]{5,18})\.parquet", stored.key) for stored in output.list("plans/"))
    return sorted(int(name[1]) for name in names if name and plan_name(int(name[1])) == name[0])


def read_plan(output: Folder, number: int) -> Plan:
    """Read one plan.

    Raises:
        CommitError: the file is no plan.
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
        msg = f"{uri} is not a plan of raypipe: {' '.join(str(error).split())}"
        raise CommitError(msg, key=uri) from None


def _in_order(rows: pa.Table) -> pa.Table:
    """Return the columns that every plan has, in their order, followed by those that the job added."""
    base = schema.RANGE_PLAN_SCHEMA if schema.FIRST_ROW in rows.column_names else schema.PLAN_SCHEMA
    wanted = pa.schema([*base, *(field for field in rows.schema if field.name not in base.names)])
    return rows.select(wanted.names).cast(wanted)


def _check_sound(rows: pa.Table, about: dict[str, Any]) -> None:
    """Raise ValueError or TypeError if a plan is malformed."""
    rows.validate(full=True)  # what Arrow itself relies on, such as valid UTF-8
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
            msg = "its row ranges are not one after the other."
            raise ValueError(msg)
    if schema.GONE in rows.column_names and not pa.types.is_boolean(rows.schema.field(schema.GONE).type):
        msg = f"its column {schema.GONE} is not of truth values."
        raise TypeError(msg)
    kinds = {"fingerprint": str, "settings": dict, "input": str}
    if not all(isinstance(about[key], kind) for key, kind in kinds.items()):
        msg = "its fingerprint, settings or input is of the wrong kind."
        raise TypeError(msg)


class StoredPlans:
    """The plans of one output. The last few that were read stay in memory, so that a run reads each of them once."""

    def __init__(self, output: Folder) -> None:
        self.output = output
        self._kept: dict[int, Plan] = {}  # the least recently used first

    def numbers(self) -> list[int]:
        """Return the numbers of the stored plans, ascending."""
        return plan_numbers(self.output)

    def read(self, number: int) -> Plan:
        """Read a plan, or return it from memory: a stored plan never changes. Raises like ``read_plan``."""
        return self._keep(self._kept.pop(number) if number in self._kept else read_plan(self.output, number))

    def put(self, plan: Plan) -> bool:
        """Store a plan; raises and returns like ``put_plan``."""
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
    """Store a plan; False when its number is taken, by whomever."""
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
    """Refuse to mix rows that do not compare.

    Raises:
        FingerprintError: the plan's rows are made with other settings.
    """
    if plan.fingerprint == fingerprint(settings):
        return
    refuse_other_settings(plan.settings, settings, subject="The output holds rows")
    msg = f"The output holds rows of the fingerprint {plan.fingerprint}, which is not that of its settings."
    raise FingerprintError(msg, key="fingerprint", value=fingerprint(settings), expected=plan.fingerprint)
