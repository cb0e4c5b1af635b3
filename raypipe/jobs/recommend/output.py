"""What is stored of recommendations: what a run is of, once; a file for each shard, once; and the seal, last.

OUTPUT/run.json              settings that change an answer, the index's version among them: whoever comes first
OUTPUT/data/000000.parquet   users_per_shard rows of the history, in its order
OUTPUT/manifest.json         every file by name, when all of them are there
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import raypipe
from raypipe.dataset.footer import METADATA, parquet_bytes
from raypipe.dataset.plan import fingerprint
from raypipe.errors import CommitError, FingerprintError
from raypipe.jobs.recommend.unknown import UnknownIds
from raypipe.storage import Folder

RUN, MANIFEST = "run.json", "manifest.json"
_READS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Run:
    """What the output is of; ``settings`` hold the index's version, which the first driver chose."""

    settings: Mapping[str, Any]
    num_users: int
    num_shards: int

    @property
    def fingerprint(self) -> str:
        """The digest of everything that changes what a row holds."""
        return fingerprint(self.settings)

    @property
    def version(self) -> str:
        """Of the index."""
        return str(self.settings["index_version"])


def read_run(output: Folder) -> Run | None:
    """What the output is of already, None where it is empty.

    Raises:
        CommitError: the stored file is none of ours.
    """
    if not output.exists(RUN):
        return None
    try:
        stored = json.loads(output.read(RUN))
        run = Run(stored["settings"], int(stored["num_users"]), int(stored["num_shards"]))
        if run.fingerprint == stored["fingerprint"] and run.settings["job"] == "recommend" and run.version:
            return run
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        pass
    raise _not_ours(output.child(RUN))


def put_run(output: Folder, run: Run) -> Run:
    """Store what the output is of, or give what another driver stored meanwhile.

    Raises:
        FingerprintError: that is something else.
    """
    about = {
        "raypipe": raypipe.__version__,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprint": run.fingerprint,
        "num_users": run.num_users,
        "num_shards": run.num_shards,
        "settings": run.settings,
    }
    if output.put_new(RUN, json.dumps(about, indent=1).encode()):
        return run
    stored = read_run(output)
    if stored is None:
        uri = output.child(RUN)
        msg = f"{uri} is gone."
        raise CommitError(msg, key=uri, remedy="Run the same command again.")
    check_settings(stored, run.settings)
    return stored


def check_settings(stored: Run, settings: Mapping[str, Any]) -> None:
    """Refuse to mix answers that do not compare; the index's version is the stored one's, whatever is current now.

    Raises:
        FingerprintError: other settings, another history or another index; the message names them.
    """
    before, now = _flat(stored.settings), _flat(settings)
    keys = sorted({*before, *now} - {"index_version"})
    if differ := [key for key in keys if before.get(key) != now.get(key)]:
        what = "; ".join(f"{key} was {before.get(key)} and is now {now.get(key)}" for key in differ)
        msg, first = f"The output holds recommendations of something else: {what}.", differ[0]
        remedy = "Choose another output."
        raise FingerprintError(msg, key=first, value=now.get(first), expected=before.get(first), remedy=remedy)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, those of the ranking by names of their own."""
    ranking = {f"ranking.{key}": value for key, value in settings.get("ranking", {}).items()}
    return {key: value for key, value in settings.items() if key != "ranking"} | ranking


def data_name(shard: int) -> str:
    """Where a shard's file lies in the output folder."""
    return f"data/{shard:06d}.parquet"


def committed_shards(output: Folder) -> set[int]:
    """The numbers of the shards that have a file."""
    names = (re.fullmatch(r"data/([0-9]{6,18})\.parquet", stored.key) for stored in output.list("data/"))
    return {int(name[1]) for name in names if name and data_name(int(name[1])) == name[0]}


@dataclass(frozen=True, slots=True)
class ShardCounts:
    """How many rows of each kind a shard has, and its unknown ids: None in a shard of an earlier raypipe."""

    rows: Mapping[str, int]
    unknown: UnknownIds | None


def put_shard(output: Folder, rows: pa.Table, *, shard: int, fingerprint: str, counts: ShardCounts) -> bool:
    """Commit a shard; False when another attempt had committed it.

    Raises:
        CommitError: what is there under the shard's name is not this shard.
    """
    about: dict[str, Any] = {"shard": shard, "fingerprint": fingerprint, "counts": dict(counts.rows)}
    if counts.unknown is not None:
        about["unknown"] = counts.unknown.to_json()
    if output.put_new(data_name(shard), parquet_bytes(rows, about)):
        return True
    check_shard(output, shard, fingerprint=fingerprint)
    return False


def check_shard(output: Folder, shard: int, *, fingerprint: str) -> ShardCounts:
    """Read the counts of a committed shard from its footer.

    Raises:
        CommitError: the file is not this shard.
    """
    name = data_name(shard)
    try:
        with output.open_input(name) as source:
            about = json.loads(pq.read_schema(source).metadata[METADATA])
        if (about["shard"], about["fingerprint"]) == (shard, fingerprint):
            rows = {str(kind): int(count) for kind, count in about["counts"].items()}
            return ShardCounts(rows, UnknownIds.from_json(about["unknown"]) if "unknown" in about else None)
    except (pa.ArrowException, OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError):
        pass
    uri = output.child(name)
    msg = f"{uri} is not shard {shard} of this run: something else wrote it."
    raise CommitError(msg, key=uri, remedy="Move it away and run again.")


def seal(output: Folder, run: Run, *, versions: Mapping[str, str]) -> dict[str, Any]:
    """Hold every file against the run, and write the manifest.

    Raises:
        CommitError: a file is not what its name promises, one is missing, or the rows do not add up.
    """
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        numbers = range(run.num_shards)
        counted = list(pool.map(lambda shard: check_shard(output, shard, fingerprint=run.fingerprint), numbers))
    counts: Counter[str] = Counter()
    unknown = UnknownIds()
    for one in counted:
        counts.update(one.rows)
        unknown += one.unknown or UnknownIds()
    if counts.total() != run.num_users:
        found, remedy = counts.total(), "Choose another output and run again."
        msg = f"{output} has {found} rows for {run.num_users} users."
        raise CommitError(msg, key=output.uri, value=found, expected=run.num_users, remedy=remedy)
    files = {stored.key: stored for stored in output.list("data/")}
    manifest = {
        "job": "recommend",
        "fingerprint": run.fingerprint,
        "settings": run.settings,
        "num_users": run.num_users,
        "counts": dict(counts),
        "unknown": unknown.to_json() if all(one.unknown for one in counted) else None,
        "versions": dict(versions),
        "sealed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": [
            {
                "name": data_name(shard),
                "etag": files[data_name(shard)].etag,
                "size_bytes": files[data_name(shard)].size_bytes,
                "num_rows": sum(counted[shard].rows.values()),
            }
            for shard in range(run.num_shards)
        ],
    }
    output.put_new(MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def read_manifest(output: Folder) -> dict[str, Any] | None:
    """The manifest, None where the output is not sealed.

    Raises:
        CommitError: it is damaged.
    """
    if not output.exists(MANIFEST):
        return None
    try:
        manifest: dict[str, Any] = json.loads(output.read(MANIFEST))
        if manifest["job"] == "recommend" and isinstance(manifest["counts"], dict):
            UnknownIds.from_json(manifest.get("unknown") or UnknownIds().to_json())
            return manifest
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        pass
    raise _not_ours(output.child(MANIFEST))


def _not_ours(uri: str) -> CommitError:
    return CommitError(f"{uri} is not of raypipe recommend.", key=uri, remedy="Choose another output.")
