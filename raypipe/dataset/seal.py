"""What is still to do, and the seal that says that nothing is."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from raypipe import schema
from raypipe.dataset.plan import Plan, data_name, parse_data_name, plan_name, plan_numbers, read_plan
from raypipe.dataset.sink import ShardFile, check_shard, shard_digest
from raypipe.errors import CommitError
from raypipe.storage import Folder, StoredObject

_READS_AT_ONCE = 16
_KEYS = {
    *("plan", "fingerprint", "settings", "input", "num_videos", "num_frames", "statuses", "versions", "sealed_at"),
    "files",
}
_FILE_KEYS = {"name", "etag", "size_bytes", "num_rows"}


def manifest_name(number: int) -> str:
    """Where a sealed plan's manifest lies in the output folder."""
    return f"manifests/{number:05d}.json"


def sealed_plans(output: Folder) -> set[int]:
    """The numbers that have a manifest."""
    names = (re.fullmatch(r"manifests/([0-9]{5,18})\.json", stored.key) for stored in output.list("manifests/"))
    return {int(name[1]) for name in names if name and manifest_name(int(name[1])) == name[0]}


def unsealed_plans(output: Folder) -> list[int]:
    """The numbers of the plans that have no manifest, ascending."""
    sealed = sealed_plans(output)
    return [number for number in plan_numbers(output) if number not in sealed]


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
    if not files.keys() >= set(range(plan.num_shards)):
        return False
    found = check_files(output, plan)
    num_rows = sum(file.num_rows for file in found.values())
    if num_rows != plan.videos.num_rows or set(files) != set(found):
        planned, stored = (plan.videos.num_rows, len(found)), (num_rows, len(files))
        msg = "Plan {} has {} videos in {} shards; stored are {} rows in {} files.".format(number, *planned, *stored)
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
        manifest: dict[str, Any] = json.loads(output.read(name))
        sound = manifest.get("plan") == number and manifest.keys() >= _KEYS
        if sound and all(isinstance(file["name"], str) and file.keys() >= _FILE_KEYS for file in manifest["files"]):
            return manifest
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        pass
    msg = f"{output.child(name)} is not the manifest of plan {number}."
    raise CommitError(msg, key=output.child(name))
