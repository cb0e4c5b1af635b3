"""Commit shards, find the missing ones, and seal a plan once all its shards are committed.

A commit is one create-only PUT, so a late or repeated attempt finds the existing file and changes nothing. The seal is
a manifest that names every file of a plan.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe import schema
from raypipe.dataset.footer import METADATA, parquet_bytes
from raypipe.dataset.plan import Plan, StoredPlans, data_name, parse_data_name, plan_name, plan_numbers, row_range
from raypipe.errors import CommitError
from raypipe.storage import Folder, StoredObject
from raypipe.text import one_line

_MOVE_AWAY = "Move it away and run the same command again."
_READS_AT_ONCE = 16
_NUM_EXAMPLES = 5
_KEYS = {
    *("plan", "fingerprint", "settings", "input", "num_videos", "num_frames", "statuses", "versions", "sealed_at"),
    "files",
}
_FILE_KEYS = {"name", "etag", "size_bytes", "num_rows"}


@dataclass(frozen=True, slots=True)
class Totals:
    """What a job counts in its rows in addition to statuses. ``examples`` are the ids of the first few counted rows."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: tuple[str, ...] = ()

    @classmethod
    def sum(cls, several: "Iterable[Totals]") -> "Totals":
        """Add up several totals, and keep the first few distinct examples."""
        counts: Counter[str] = Counter()
        examples: dict[str, None] = {}
        for one in several:
            counts.update(one.counts)
            examples.update(dict.fromkeys(one.examples))
        return cls(dict(counts), tuple(examples)[:_NUM_EXAMPLES])

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "Totals":
        """Read the totals from the entries of a footer or a manifest. They are empty if the job counts nothing.

        Raises:
            AttributeError, TypeError, ValueError: the totals are malformed.
        """
        counts = {str(name): int(count) for name, count in stored.get("counts", {}).items()}
        return cls(counts, tuple(map(str, stored.get("examples", ()))))

    @property
    def stored(self) -> dict[str, Any]:
        """Return the totals as entries for a footer or a manifest."""
        return {"counts": dict(self.counts), "examples": list(self.examples)} if self.counts else {}


@dataclass(frozen=True, slots=True)
class ShardFile:
    """The description of a shard in the footer of its file."""

    plan: int
    shard: int
    shard_digest: str
    fingerprint: str
    statuses: dict[str, int]
    num_frames: int
    totals: Totals = field(default_factory=Totals)

    @property
    def num_rows(self) -> int:
        """Return the number of rows: the sum of the counts of all statuses."""
        return sum(self.statuses.values())

    @property
    def footer(self) -> dict[str, Any]:
        """Return the description as entries for the footer."""
        about = asdict(self)
        del about["totals"]
        return about | self.totals.stored


def shard_digest(rows: pa.Table) -> str:
    """Return a digest of a shard's inputs. It is the same for the planned rows and the committed rows of the shard."""
    if found := row_range(rows):
        lines = ["\0".join(map(str, found))]
    elif schema.ROW in rows.column_names:  # the rows are not one range, so they are not a shard of any plan
        lines = [*map(str, rows[schema.ROW].to_pylist())]
    else:
        columns = (rows[name].to_pylist() for name in (schema.VIDEO_ID, schema.VIDEO_URI, schema.ETAG))
        lines = ["\0".join(row) for row in zip(*columns, strict=True)]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def describe_shard(
    rows: pa.Table, *, plan: int, shard: int, fingerprint: str, totals: Totals | None = None
) -> ShardFile:
    """Return the description of a shard with these rows, for the footer of its file."""
    num_frames = pc.sum(rows[schema.NUM_FRAMES]).as_py() if schema.NUM_FRAMES in rows.column_names else 0
    return ShardFile(
        plan=plan,
        shard=shard,
        shard_digest=shard_digest(rows),
        fingerprint=fingerprint,
        statuses=dict(Counter(rows[schema.STATUS].to_pylist())),
        num_frames=int(num_frames or 0),
        totals=totals or Totals(),
    )


def put_shard(output: Folder, rows: pa.Table, about: ShardFile) -> bool:
    """Commit a shard. Return False if another attempt has already committed it.

    Raises:
        CommitError: a different file is stored under the name of the shard.
    """
    if output.put_new(data_name(about.plan, about.shard), parquet_bytes(rows, about.footer)):
        return True
    check_shard(output, about.plan, about.shard, shard_digest=about.shard_digest, fingerprint=about.fingerprint)
    return False


def check_shard(output: Folder, plan: int, shard: int, *, shard_digest: str, fingerprint: str) -> ShardFile:
    """Read the footer of a committed shard, compare it with the plan, and return it.

    Raises:
        CommitError: the file does not contain this shard.
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
    """Read the description of a shard from the footer of its file.

    Raises:
        CommitError: the file is not a Parquet file written by raypipe.
    """
    try:
        with output.open_input(name) as file:
            return _parse_footer(json.loads(pq.read_schema(file).metadata[METADATA]))
    except (pa.ArrowException, OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        uri = output.child(name)
        msg = f"{uri} is not a raypipe file: {one_line(error)}."
        raise CommitError(msg, key=uri, remedy=_MOVE_AWAY) from None


def _parse_footer(metadata: dict[str, Any]) -> ShardFile:
    del metadata["raypipe"]
    totals = Totals.of({name: metadata.pop(name) for name in ("counts", "examples") if name in metadata})
    about = ShardFile(**metadata, totals=totals)
    if not all(isinstance(count, int) for count in (about.num_frames, *about.statuses.values())):
        msg = f"its counts are {about.statuses} and {about.num_frames!r}"
        raise TypeError(msg)
    return about


def manifest_name(number: int) -> str:
    """Return the name of a sealed plan's manifest in the output folder."""
    return f"manifests/{number:05d}.json"


def sealed_plans(output: Folder) -> set[int]:
    """Return the numbers of the plans that have a manifest."""
    names = (re.fullmatch(r"manifests/([0-9]{5,18})\.json", stored.key) for stored in output.list("manifests/"))
    return {int(name[1]) for name in names if name and manifest_name(int(name[1])) == name[0]}


def unsealed_plans(output: Folder) -> list[int]:
    """Return the numbers of the plans that have no manifest, in ascending order."""
    sealed = sealed_plans(output)
    return [number for number in plan_numbers(output) if number not in sealed]


def committed_files(output: Folder, number: int) -> dict[int, StoredObject]:
    """Return the committed files of a plan by shard."""
    files = {}
    for stored in output.list(f"data/{number:05d}-"):
        name = parse_data_name(stored.key)
        if name and name[0] == number:
            files[name[1]] = stored
    return files


def missing_shards(plans: StoredPlans, numbers: Iterable[int]) -> Iterator[pa.Table]:
    """Yield the planned rows of each shard that is not committed, with the generation as an added column."""
    for number in numbers:
        plan = plans.read(number)
        committed = committed_files(plans.output, number)
        generation = pa.scalar(number, pa.int32())
        for shard, rows in plan.shards():
            if shard not in committed:
                yield rows.append_column(schema.GENERATION, pa.repeat(generation, rows.num_rows))


def seal(plans: StoredPlans, number: int, *, versions: Mapping[str, str]) -> bool:
    """Write the manifest of a plan if every shard is committed as planned. Return False if a shard is missing.

    Raises:
        CommitError: a file does not contain the shard that its name says, or the number of rows differs from the plan.
    """
    output, plan = plans.output, plans.read(number)
    files = committed_files(output, number)
    if not files.keys() >= set(range(plan.num_shards)):
        return False
    found = check_files(output, plan)
    num_rows = sum(file.num_rows for file in found.values())
    if num_rows != plan.num_rows or set(files) != set(found):
        planned, stored = (plan.num_rows, len(found)), (num_rows, len(files))
        msg = "Plan {} has {} rows in {} shards, but {} rows in {} files are stored.".format(number, *planned, *stored)
        uri, remedy = output.child(plan_name(number)), f"Run raypipe verify {output}."
        raise CommitError(msg, key=uri, value=stored, expected=planned, remedy=remedy)
    statuses: Counter[str] = Counter()
    for file in found.values():
        statuses.update(file.statuses)
    manifest = {
        "plan": number,
        "fingerprint": plan.fingerprint,
        "settings": plan.settings,
        "input": plan.input,
        "num_videos": num_rows,
        "num_frames": sum(file.num_frames for file in found.values()),
        "statuses": dict(statuses),
        **Totals.sum(found[shard].totals for shard in sorted(found)).stored,
        "versions": dict(versions),
        "sealed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": [
            {
                "name": data_name(number, shard),
                "etag": files[shard].etag,
                "size_bytes": files[shard].size_bytes,
                "num_rows": found[shard].num_rows,
            }
            for shard in sorted(files)
        ],
    }
    output.put_new(manifest_name(number), json.dumps(manifest, indent=1).encode())
    return True


def check_files(output: Folder, plan: Plan) -> dict[int, ShardFile]:
    """Compare the footer of every committed file with the plan, and return the footers by shard.

    Raises:
        CommitError: a file does not contain the shard that its name says.
    """

    def check(item: tuple[int, pa.Table]) -> tuple[int, ShardFile]:
        shard, rows = item
        digest = shard_digest(rows)
        return shard, check_shard(output, plan.number, shard, shard_digest=digest, fingerprint=plan.fingerprint)

    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        return dict(pool.map(check, plan.shards()))


def read_manifest(output: Folder, number: int) -> dict[str, Any]:
    """Read the manifest of a sealed plan.

    Raises:
        CommitError: the file is not the manifest of this plan.
    """
    name = manifest_name(number)
    try:
        manifest: dict[str, Any] = json.loads(output.read(name))
        sound = manifest.get("plan") == number and manifest.keys() >= _KEYS and Totals.of(manifest) is not None
        if sound and all(isinstance(file["name"], str) and file.keys() >= _FILE_KEYS for file in manifest["files"]):
            return manifest
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        pass
    msg = f"{output.child(name)} is not the manifest of plan {number}."
    raise CommitError(msg, key=output.child(name))
