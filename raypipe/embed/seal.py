"""What is still to do, and the seal that says that nothing is."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from raypipe import schema
from raypipe.embed.plan import Plan, data_name, parse_data_name, plan_numbers, read_plan
from raypipe.embed.sink import ShardFile, check_shard, shard_digest
from raypipe.errors import CommitError
from raypipe.storage import Folder, StoredObject

_READS_AT_ONCE = 16


def manifest_name(number: int) -> str:
    """Where a sealed plan's manifest lies in the output folder."""
    return f"manifests/{number:05d}.json"


def unsealed_plans(output: Folder) -> list[int]:
    """The numbers of the plans that have no manifest, ascending."""
    sealed = {stored.key for stored in output.list("manifests/")}
    return [number for number in plan_numbers(output) if manifest_name(number) not in sealed]


def committed_files(output: Folder, number: int) -> dict[int, StoredObject]:
    """The files of one plan by shard."""
    files = {}
    for stored in output.list(f"data/{number:05d}-"):
        name = parse_data_name(stored.key)
        if name and name[0] == number:
            files[name[1]] = stored
    return files


def missing_shards(output: Folder, numbers: list[int]) -> Iterator[pa.Table]:
    """The rows of each shard that has no file, with their generation: the blocks of the job."""
    for number in numbers:
        plan = read_plan(output, number)
        committed = committed_files(output, number)
        generation = pa.scalar(number, pa.int32())
        for shard, rows in plan.shards():
            if shard not in committed:
                yield rows.append_column(schema.GENERATION, pa.repeat(generation, rows.num_rows))


def seal(output: Folder, number: int, *, versions: Mapping[str, str]) -> bool:
    """Write the manifest of a plan if every shard is committed and holds what the plan says; False if any is missing.

    Raises:
        CommitError: a file is not what its name promises, or the rows do not add up.
    """
    plan = read_plan(output, number)
    files = committed_files(output, number)
    if len(files) < plan.num_shards:
        return False
    found = check_files(output, plan)
    num_rows = sum(file.num_rows for file in found.values())
    if num_rows != plan.videos.num_rows or set(files) != set(found):
        msg = f"Plan {number} has {plan.videos.num_rows} videos in {len(found)} shards; {num_rows} rows in {len(files)} files."
        raise CommitError(msg)
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
    """Hold every committed file's footer against the plan, by shard.

    Raises:
        CommitError: a file is not what its name promises.
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
        CommitError: it is no manifest of raypipe.
    """
    name = manifest_name(number)
    try:
        manifest = json.loads(output.read(name))
        if isinstance(manifest, dict) and manifest["plan"] == number:
            return manifest
    except (KeyError, ValueError):
        pass
    msg = f"{output.child(name)} is not the manifest of plan {number}."
    raise CommitError(msg)
