"""Generated watch events, and what counting them costs in this process and on Ray."""

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from raypipe.config.index import HistorySettings
from raypipe.jobs.index import watching
from raypipe.jobs.index.counting import Fitting, WatchCounts
from raypipe.search.items import Items
from raypipe.tables import table_place
from raypipe.tables.event_groups import EventGroups
from raypipe.tables.history import HistoryFile
from support import NUM_CPUS, print_table
from support.processes import peak_bytes, run_counting_cpu, watching_peaks

NUM_VIDEOS, EVENTS_PER_USER = 100_000, 20
_ROW_GROUP = 1_000_000
_DAYS = 90


def video_ids() -> pa.Array:
    return pa.array([f"clips/{number:08d}.mp4" for number in range(NUM_VIDEOS)], pa.large_string())


def write_events(path: Path, num_events: int) -> None:
    """Write events by time: half of them follow a fixed successor, the others have a Zipf distribution."""
    random = np.random.default_rng(0)
    num_users = max(1, num_events // EVENTS_PER_USER)
    by_rank, successor = random.permutation(NUM_VIDEOS), random.permutation(NUM_VIDEOS)
    shares = np.cumsum(1 / np.arange(1, NUM_VIDEOS + 1))
    watched = np.empty((EVENTS_PER_USER, num_users), np.int32)
    for step in range(EVENTS_PER_USER):
        watched[step] = by_rank[np.searchsorted(shares, random.random(num_users) * shares[-1])]
        if step:
            follows = random.random(num_users) < 0.5  # noqa: PLR2004 - half of them
            watched[step, follows] = successor[watched[step - 1, follows]]
    start, day = 1_700_000_000_000_000, 86_400_000_000
    times = start + np.cumsum(random.integers(0, 2 * _DAYS * day // EVENTS_PER_USER, watched.shape), axis=0)
    order = np.argsort(times, axis=None)
    users = pa.array([f"user-{number:09d}" for number in range(num_users)])
    videos = video_ids().cast(pa.string())
    kinds = {"user_id": pa.string(), "video_id": pa.string(), "watched_at": pa.timestamp("us", "UTC")}
    with pq.ParquetWriter(path, pa.schema(kinds)) as file:
        for at in range(0, len(order), _ROW_GROUP):
            rows = order[at : at + _ROW_GROUP]
            moments = pa.array(times.ravel()[rows]).cast(kinds["watched_at"])
            columns = [users.take(pa.array(rows % num_users)), videos.take(pa.array(watched.ravel()[rows])), moments]
            file.write_table(pa.table(columns, names=list(kinds)))


def count_once(path: Path, store_bytes: int | None) -> None:
    """Count the events, and print the cost as a line of JSON. Without ``store_bytes``, count in this process."""
    items = Items(pa.table({"video_id": video_ids()}), None)
    file, settings = HistoryFile.find(*table_place(str(path), what="history")), HistorySettings()
    fitting = Fitting("none", None, "events.holdout", True, settings.popular_days)  # noqa: FBT003
    groups = EventGroups.find(file)
    if groups is None:
        sys.exit(f"{path} is not Parquet with times.")
    spilled = 0
    if store_bytes is not None:
        ray.init(num_cpus=NUM_CPUS, object_store_memory=store_bytes, include_dashboard=False, logging_level="ERROR")
    start = time.perf_counter()
    with watching_peaks("ray::") as workers:
        if store_bytes is None:
            found, _ = watching.count_here(str(path), items, settings, fitting)
        else:
            found = watching.count_on_ray(groups, items, settings, fitting)
        seconds = time.perf_counter() - start
    if store_bytes is not None:
        address = ray.get_runtime_context().gcs_address
        command = [str(Path(sys.executable).with_name("ray")), "memory", "--stats-only", "--address", address]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        spilled = sum(int(mib) for mib in re.findall(r"Spilled (\d+) MiB", said)) << 20
        ray.shutdown()
    facts = {
        "seconds": seconds,
        "driver_bytes": peak_bytes(),
        "worker_bytes": max(workers.values(), default=0),
        "spilled_bytes": spilled,
        "digest": _digest(found),
    }
    print(json.dumps(facts))


def _digest(found: WatchCounts) -> str:
    successors = found.successors
    columns = (found.hashes, found.views, successors.starts, successors.items, successors.weights, successors.users)
    return hashlib.sha256(b"".join(column.tobytes() for column in columns)).hexdigest()


def compare_counting(num_events: int, work: Path, *, script: str, stores: Sequence[int]) -> None:
    """Count generated events in one process and on Ray, with object stores of these sizes, and print a table."""
    path = work / "events.parquet"
    write_events(path, num_events)
    rows, digests = [], set()
    for store_bytes in (None, *stores):
        where = [] if store_bytes is None else ["--store-bytes", str(store_bytes)]
        printed, cpu_seconds = run_counting_cpu([sys.executable, script, "--count", str(path), *where])
        found = json.loads(printed.splitlines()[-1])
        digests.add(found["digest"])
        rows.append(
            (
                "one process" if store_bytes is None else f"Ray, object store of {store_bytes / 1e9:.1f} GB",
                f"{found['seconds']:.0f}",
                f"{cpu_seconds:.0f}",
                *(f"{found[name] / 1e9:.2f}" for name in ("driver_bytes", "worker_bytes", "spilled_bytes")),
            )
        )
    print(f"\n{num_events:,} events of {num_events // EVENTS_PER_USER:,} users, {path.stat().st_size / 1e6:.0f} MB")
    print_table(("counted in", "s", "CPU s", "driver's peak GB", "largest worker's peak GB", "spilled GB"), rows)
    if len(digests) > 1:
        sys.exit("The results differ.")
    print("The results are bit-identical.")
