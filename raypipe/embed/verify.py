"""Recheck every promise about an output from what is stored alone."""

import io
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from raypipe import schema
from raypipe.embed.plan import Plan, data_name, fingerprint, parse_data_name, plan_name, plan_numbers, read_plan
from raypipe.embed.seal import committed_files, manifest_name, read_manifest, sealed_plans
from raypipe.embed.sink import read_shard_file, shard_digest
from raypipe.errors import CommitError, ObjectError
from raypipe.status import HAS_FRAMES, Status
from raypipe.storage import Folder, StoredObject

_READS_AT_ONCE = 8
_NORM_TOLERANCE = 1e-3
_MEAN_TOLERANCE = 0.04  # of the mean's length: frames are float16, their mean was taken in float32
_FLOAT16_STEP = 2.0**-24  # between the smallest float16 numbers
_REQUIRED = (
    *(schema.VIDEO_ID, schema.VIDEO_URI, schema.ETAG, schema.STATUS, schema.SIZE_BYTES, schema.GENERATION),
    *(schema.NUM_FRAMES, schema.FRAME_PTS_SECONDS, schema.FRAME_EMBEDDINGS),
)


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
    sealed = sealed_plans(output)
    numbers = plan_numbers(output)
    if not numbers:
        result.violations.append(f"{output} holds no plan.")
    present = set(numbers)
    if num_lost := max({-1, *numbers, *sealed}) + 1 - len(present):
        lost = next(number for number in count() if number not in present)
        result.violations.append(f"{num_lost} plans are lost, the first is {plan_name(lost)}.")
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
    if plan.fingerprint != fingerprint(plan.settings):
        yield f"Plan {plan.number} has the fingerprint {plan.fingerprint}, which is not that of its settings."
    if plan.fingerprint != first.fingerprint:
        yield f"Plan {plan.number} has the fingerprint {plan.fingerprint}; plan {first.number} has {first.fingerprint}."
    repeated = [video for video, times in Counter(plan.videos[schema.VIDEO_ID].to_pylist()).items() if times > 1]
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
    found = Verification()
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        present = [shard for shard in shards if shard in files]
        for checked in pool.map(lambda shard: _check_file(output, plan, shard, shards[shard]), present):
            found.num_files += 1
            found.num_rows += checked.num_rows
            found.num_frames += checked.num_frames
            found.statuses.update(checked.statuses)
            result.violations += checked.violations
    result.num_files += found.num_files
    result.num_rows += found.num_rows
    result.num_frames += found.num_frames
    result.statuses.update(found.statuses)
    result.violations += _check_manifest(output, plan, files, found)


def _check_manifest(output: Folder, plan: Plan, files: dict[int, StoredObject], found: Verification) -> Iterator[str]:
    name = manifest_name(plan.number)
    if not output.exists(name):
        yield f"Plan {plan.number} is not sealed. Run the same raypipe embed again."
        return
    try:
        manifest = read_manifest(output, plan.number)
    except (CommitError, ObjectError) as error:
        yield str(error)
        return
    rows = {data_name(plan.number, shard): table.num_rows for shard, table in plan.shards()}
    stored = {file.key: (file.etag, file.size_bytes, rows.get(file.key)) for file in files.values()}
    sealed = {file["name"]: (file["etag"], file["size_bytes"], file["num_rows"]) for file in manifest["files"]}
    for key in sorted(stored.keys() | sealed.keys()):
        now, then = stored.get(key, "not there"), sealed.get(key, "nothing of it")
        if now != then:
            yield f"{key} is {now}; {name} says {then} (etag, bytes, rows)."
    if len(sealed) != len(manifest["files"]):
        yield f"{name} names a file twice."
    held = {
        "fingerprint": plan.fingerprint,
        "settings": plan.settings,
        "input": plan.input,
        "num_videos": plan.videos.num_rows,
        "num_frames": found.num_frames,
        "statuses": dict(found.statuses),
    }
    for key, value in held.items():
        if manifest[key] != value:
            yield f"{name} says {key} {manifest[key]}; the plan and its files hold {value}."


def _check_file(output: Folder, plan: Plan, shard: int, planned: pa.Table) -> Verification:
    name = data_name(plan.number, shard)
    checked = Verification()
    try:
        about = read_shard_file(output, name)
        rows = pq.read_table(io.BytesIO(output.read(name)), page_checksum_verification=True)
        rows.validate(full=True)
    except (CommitError, ObjectError, pa.ArrowException, OSError, ValueError) as error:
        checked.violations.append(f"{name} cannot be read: {' '.join(str(error).split())}")
        return checked
    if problems := list(_check_columns(rows)):
        checked.violations += [f"{name} {problem}" for problem in problems]
        return checked
    checked.num_rows = rows.num_rows
    checked.statuses = Counter(rows[schema.STATUS].to_pylist())
    checked.num_frames = sum(rows[schema.NUM_FRAMES].to_pylist())
    checked.violations += [f"{name}: {problem}" for problem in _check_rows(rows, plan, planned)]
    if (about.plan, about.shard, about.fingerprint) != (plan.number, shard, plan.fingerprint):
        checked.violations.append(f"{name} says it is shard {about.shard} of plan {about.plan}, {about.fingerprint}.")
    held = (shard_digest(rows), dict(checked.statuses), checked.num_frames)
    if (about.shard_digest, about.statuses, about.num_frames) != held:
        checked.violations.append(f"{name}: its footer's digest and counts are not those of its rows.")
    return checked


def _check_columns(rows: pa.Table) -> Iterator[str]:
    if missing := [column for column in schema.embeddings_schema(1).names if column not in rows.column_names]:
        yield f"lacks the columns {', '.join(missing)}."
        return
    dim = getattr(rows.schema.field(schema.EMBEDDING).type, "list_size", 1)
    for wanted in schema.embeddings_schema(dim):
        found = rows.schema.field(wanted.name).type
        if found != wanted.type:
            yield f"has {found} in its column {wanted.name}, not {wanted.type}."
    for column in _REQUIRED:
        if rows[column].null_count:
            yield f"has rows that lack their {column}."


def _check_rows(rows: pa.Table, plan: Plan, planned: pa.Table) -> Iterator[str]:
    columns = (schema.VIDEO_ID, schema.VIDEO_URI, schema.ETAG, schema.SIZE_BYTES)
    if not rows.select(columns).equals(planned.select(columns)):
        yield f"its {rows.num_rows} rows are not the {planned.num_rows} videos that the plan gives this shard."
    if set(rows[schema.GENERATION].to_pylist()) - {plan.number}:
        yield f"its rows are not all of generation {plan.number}."
    if unknown := set(rows[schema.STATUS].to_pylist()) - set(map(str, Status)):
        yield f"unknown statuses {sorted(unknown)}."
    names = (schema.VIDEO_ID, schema.STATUS, schema.NUM_FRAMES, schema.FRAME_PTS_SECONDS)
    frames = rows[schema.FRAME_EMBEDDINGS].combine_chunks()
    embeddings = rows[schema.EMBEDDING].combine_chunks()
    for at, (video_id, status, num_frames, pts) in enumerate(
        zip(*(rows[name].to_pylist() for name in names), strict=True)
    ):
        has_frames, has_embedding = status in HAS_FRAMES, embeddings[at].is_valid
        listed = (num_frames, len(pts), len(frames[at].values))
        if len(set(listed)) != 1 or (num_frames > 0) != has_frames or has_embedding != has_frames:
            yield f"{video_id!r} has {listed} frames, times and vectors, which do not fit together or its status."
        elif has_frames:
            embedding = np.array(embeddings[at].as_py(), dtype=np.float32)
            problem = _check_vectors(_matrix(frames[at].values, len(embedding)), embedding, np.array(pts, dtype=float))
            if problem:
                yield f"{video_id!r} {problem}"


def _matrix(vectors: pa.FixedSizeListArray, embedding_dim: int) -> npt.NDArray[np.float32]:
    """The vectors [T, D], which are no numbers where one is null."""
    flat = vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    if len(flat) != len(vectors) * embedding_dim:
        return np.full((len(vectors), embedding_dim), np.nan, dtype=np.float32)
    matrix: npt.NDArray[np.float32] = flat.reshape(len(vectors), embedding_dim)
    return matrix


def _check_vectors(
    vectors: npt.NDArray[np.float32], embedding: npt.NDArray[np.float32], pts_seconds: npt.NDArray[np.float64]
) -> str:
    if not all(np.isfinite(numbers).all() for numbers in (vectors, embedding, pts_seconds)):
        return "has a vector or a time that is not finite."
    mean = vectors.mean(axis=0, dtype=np.float64)
    length, rounding = float(np.linalg.norm(mean)), _FLOAT16_STEP * len(mean) ** 0.5
    norm = float(np.linalg.norm(embedding))
    if norm == 0 and length <= rounding:
        return ""  # of nothing but zeros there is no direction
    if abs(norm - 1) > _NORM_TOLERANCE:
        return f"has an embedding of length {norm:.4f}, not 1."
    if np.linalg.norm(mean - length * embedding) > _MEAN_TOLERANCE * length + rounding:
        return "has an embedding that is not the mean of its frames."
    return ""
