"""Recheck every promise about an output from what is stored alone."""

import io
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from raypipe import schema
from raypipe.embed.plan import Plan, data_name, fingerprint, parse_data_name, plan_numbers, read_plan
from raypipe.embed.seal import committed_files, manifest_name, read_manifest
from raypipe.embed.sink import read_shard_file, shard_digest
from raypipe.errors import CommitError, ObjectError
from raypipe.status import HAS_FRAMES, Status
from raypipe.storage import Folder, StoredObject

_READS_AT_ONCE = 8
_NORM_TOLERANCE = 1e-3
_MEAN_COSINE = 0.999  # float16 frames against a mean taken in float32


@dataclass
class Verification:
    """What was checked and what was found; ``violations`` is empty when every promise holds."""

    num_plans: int = 0
    num_files: int = 0
    num_rows: int = 0
    num_frames: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def verify(output: Folder) -> Verification:
    """Check plans, files, rows, vectors and manifests against one another; reads everything, changes nothing.

    Raises:
        StorageError: the output cannot be listed.
    """
    result = Verification()
    numbers = plan_numbers(output)
    if not numbers:
        result.violations.append(f"{output} holds no plan.")
    if numbers != list(range(len(numbers))):
        result.violations.append(f"Plans are numbered {numbers}: one is lost.")
    first: Plan | None = None
    for number in numbers:
        try:
            plan = read_plan(output, number)
        except (CommitError, ObjectError) as error:
            result.violations.append(str(error))
            continue
        first = first or plan
        result.num_plans += 1
        result.violations += _check_plan(plan, first)
        _check_shards(output, plan, result)
    for stored in output.list("data/"):
        name = parse_data_name(stored.key)
        if name is None or name[0] not in numbers:
            result.violations.append(f"{stored.key} belongs to no plan.")
    return result


def _check_plan(plan: Plan, first: Plan) -> Iterator[str]:
    if plan.fingerprint != fingerprint(plan.settings) or plan.fingerprint != first.fingerprint:
        yield f"Plan {plan.number} has the fingerprint {plan.fingerprint}; plan {first.number} has {first.fingerprint}."
    repeated = [video for video, count in Counter(plan.videos[schema.VIDEO_ID].to_pylist()).items() if count > 1]
    if repeated:
        yield f"Plan {plan.number} holds {len(repeated)} videos twice, the first {repeated[0]!r}."


def _check_shards(output: Folder, plan: Plan, result: Verification) -> None:
    files = committed_files(output, plan.number)
    shards = dict(plan.shards())
    if missing := sorted(set(shards) - set(files)):
        rows = sum(shards[shard].num_rows for shard in missing)
        result.violations.append(
            f"Plan {plan.number}: {len(missing)} of {len(shards)} shards are missing ({rows} videos), the first is "
            f"{data_name(plan.number, missing[0])}. Run the same raypipe embed again."
        )
    result.violations += [f"{files[shard].key} is no shard of its plan." for shard in sorted(set(files) - set(shards))]
    statuses: Counter[str] = Counter()
    frames = 0
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        present = [shard for shard in shards if shard in files]
        for checked in pool.map(lambda shard: _check_file(output, plan, shard, shards[shard]), present):
            result.num_files += 1
            result.num_rows += checked.num_rows
            result.violations += checked.violations
            statuses.update(checked.statuses)
            frames += checked.num_frames
    result.statuses.update(statuses)
    result.num_frames += frames
    result.violations += _check_manifest(output, plan, files, statuses=statuses, num_frames=frames)


def _check_manifest(
    output: Folder, plan: Plan, files: dict[int, StoredObject], *, statuses: Counter[str], num_frames: int
) -> Iterator[str]:
    name = manifest_name(plan.number)
    if not output.exists(name):
        yield f"Plan {plan.number} is not sealed. Run the same raypipe embed again."
        return
    try:
        manifest = read_manifest(output, plan.number)
    except CommitError as error:
        yield str(error)
        return
    stored = {file.key: (file.etag, file.size_bytes) for file in files.values()}
    sealed: dict[str, Any] = {file["name"]: (file["etag"], file["size_bytes"]) for file in manifest["files"]}
    for key in sorted(set(stored) | set(sealed)):
        if stored.get(key) != sealed.get(key):
            yield f"{key} is {stored.get(key, 'not there')}; {name} says {sealed.get(key, 'nothing of it')} (etag, bytes)."
    counted = (plan.fingerprint, plan.videos.num_rows, num_frames, dict(statuses))
    said = tuple(manifest.get(key) for key in ("fingerprint", "num_videos", "num_frames", "statuses"))
    if counted != said:
        yield f"{name} says {said} (fingerprint, videos, frames, statuses); the files hold {counted}."


def _check_file(output: Folder, plan: Plan, shard: int, planned: pa.Table) -> Verification:
    name = data_name(plan.number, shard)
    checked = Verification()
    try:
        about = read_shard_file(output, name)
        rows = pq.read_table(io.BytesIO(output.read(name)))
    except (CommitError, ObjectError, pa.ArrowException, OSError) as error:
        checked.violations.append(f"{name} cannot be read: {' '.join(str(error).split())}")
        return checked
    missing = [column for column in schema.embeddings_schema(1).names if column not in rows.column_names]
    if missing:
        checked.violations.append(f"{name} lacks the columns {', '.join(missing)}.")
        return checked
    checked.num_rows = rows.num_rows
    checked.statuses = Counter(rows[schema.STATUS].to_pylist())
    checked.num_frames = sum(rows[schema.NUM_FRAMES].to_pylist())
    checked.violations += [f"{name}: {problem}" for problem in _check_rows(rows, plan, planned)]
    if (about.plan, about.shard, about.fingerprint) != (plan.number, shard, plan.fingerprint):
        checked.violations.append(f"{name} says it is shard {about.shard} of plan {about.plan}, {about.fingerprint}.")
    if (about.statuses, about.num_frames) != (dict(checked.statuses), checked.num_frames):
        checked.violations.append(f"{name}: its footer's counts are not those of its rows.")
    return checked


def _check_rows(rows: pa.Table, plan: Plan, planned: pa.Table) -> Iterator[str]:
    if shard_digest(rows) != shard_digest(planned):
        yield f"its {rows.num_rows} rows are not the {planned.num_rows} videos that the plan gives this shard."
    if set(rows[schema.GENERATION].to_pylist()) - {plan.number}:
        yield f"its rows are not all of generation {plan.number}."
    if unknown := set(rows[schema.STATUS].to_pylist()) - set(map(str, Status)):
        yield f"unknown statuses {sorted(map(str, unknown))}."
    columns = (schema.VIDEO_ID, schema.STATUS, schema.NUM_FRAMES, schema.FRAME_PTS_SECONDS, schema.FRAME_EMBEDDINGS)
    lists = (rows[name].to_pylist() for name in columns[:4])
    frames = rows[schema.FRAME_EMBEDDINGS].combine_chunks()
    embeddings = rows[schema.EMBEDDING].combine_chunks()
    for at, (video_id, status, num_frames, pts) in enumerate(zip(*lists, strict=True)):
        vectors = frames[at].values.flatten().to_numpy().reshape(num_frames, -1) if num_frames else np.empty((0, 0))
        problem = _check_vectors(
            vectors.astype(np.float32),
            np.array(embeddings[at].as_py(), dtype=np.float32) if embeddings[at].is_valid else None,
            has_frames=status in HAS_FRAMES,
            num_listed=(num_frames, len(pts), len(frames[at])),
        )
        if problem:
            yield f"{video_id!r} {problem}"


def _check_vectors(
    vectors: npt.NDArray[np.float32],
    embedding: npt.NDArray[np.float32] | None,
    *,
    has_frames: bool,
    num_listed: tuple[int, int, int],
) -> str:
    if len(set(num_listed)) != 1 or (num_listed[0] > 0) != has_frames or (embedding is not None) != has_frames:
        return f"has {num_listed} frames, times and vectors, which do not fit together or its status."
    if embedding is None:
        return ""
    if not (np.isfinite(vectors).all() and np.isfinite(embedding).all()):
        return "has a vector that is not finite."
    norm = float(np.linalg.norm(embedding))
    if abs(norm - 1) > _NORM_TOLERANCE:
        return f"has an embedding of length {norm:.4f}, not 1."
    mean = vectors.mean(axis=0)
    cosine = float(mean @ embedding) / max(float(np.linalg.norm(mean)), 1e-30)
    return (
        "" if cosine > _MEAN_COSINE else f"has an embedding that is not the mean of its frames (cosine {cosine:.4f})."
    )
