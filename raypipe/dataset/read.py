"""Read the rows of a sealed output: for each video, the row of its latest generation."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe import schema
from raypipe.dataset.commit import read_manifest, sealed_plans
from raypipe.dataset.footer import read_parquet
from raypipe.dataset.plan import digest, job_of, plan_numbers, read_plan
from raypipe.errors import CommitError, ConfigError, JobError
from raypipe.storage import Folder
from raypipe.text import one_line

_READS_AT_ONCE = 16


def sealed_manifests(output: Folder) -> list[dict[str, Any]]:
    """Return the manifests of all plans, sorted by plan number.

    Raises:
        JobError: there is no plan, a plan is missing, or a plan is not sealed.
    """
    sealed = sealed_plans(output)
    numbers = plan_numbers(output)  # listed after the manifests, because another driver may add both meanwhile
    if not numbers:
        msg = f"{output} holds no plan."
        raise JobError(msg, key=str(output), remedy="Give a folder that was the --output of a job.")
    if numbers != list(range(len(numbers))) or sealed - set(numbers):
        msg = f"{output} has lost a plan: it holds {numbers}."
        raise JobError(msg, key=str(output), value=numbers, remedy=f"Run raypipe verify {output}.")
    if unsealed := [number for number in numbers if number not in sealed]:
        job = job_of(read_plan(output, unsealed[0]).settings)
        msg = f"{output} is not sealed: plans {unsealed} are unfinished."
        raise JobError(msg, key=str(output), value=unsealed, remedy=f"Run the same raypipe {job} again.")
    return [read_manifest(output, number) for number in numbers]


def embeddings_manifests(output: Folder) -> list[dict[str, Any]]:
    """Return the manifests of all plans in an output of ``raypipe embed``, sorted by plan number.

    Raises:
        JobError: the output is not sealed.
        ConfigError: the output belongs to another job.
    """
    if not plan_numbers(output):
        msg = f"{output} holds no embeddings."
        raise JobError(msg, key=str(output), remedy="Run raypipe embed with it as --output.")
    manifests = sealed_manifests(output)
    if (job := job_of(manifests[0]["settings"])) != "embed":
        msg = f"{output} is an output of raypipe {job}."
        raise ConfigError(msg, key=str(output), value=job, remedy="Give an output of raypipe embed.")
    return manifests


def read_rows(output: Folder, *, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the current rows of an output, one table per file.

    The current row of a video is the row of its latest generation.

    Raises:
        JobError: the output is not sealed, or a file is corrupt.
    """
    yield from rows_of(output, sealed_manifests(output), columns)


def read_embeddings(output: Folder, *, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the current rows of an output of ``raypipe embed``, one table per file.

    Raises:
        JobError: the output is not sealed, or a file is corrupt.
        ConfigError: the output belongs to another job.
    """
    yield from rows_of(output, embeddings_manifests(output), columns)


def rows_of(output: Folder, manifests: list[dict[str, Any]], columns: Sequence[str] | None) -> Iterator[pa.Table]:
    """Yield the current rows of the plans with these manifests, one table per file.

    Raises:
        CommitError: a file is corrupt.
    """
    wanted = list(columns) if columns is not None else None
    if job_of(manifests[0]["settings"]) == "recommend":  # row ranges of one file: no row replaces another
        for manifest in manifests:
            yield from (read_parquet(output, file["name"], columns=wanted) for file in manifest["files"])
        return
    read = None if wanted is None else list(dict.fromkeys([*wanted, schema.VIDEO_ID]))
    superseded: set[bytes] = set()
    for manifest in reversed(manifests):
        ids: list[bytes] = []
        for file in manifest["files"]:
            table = read_parquet(output, file["name"], columns=read)
            present = _ids(table)
            ids += present
            yield table.filter(_not_among(superseded, present)).select(table.column_names if wanted is None else wanted)
        superseded.update(ids)


def planned_rows(output: Folder, manifests: list[dict[str, Any]]) -> Iterator[tuple[int, pa.Table]]:
    """Yield (plan number, planned rows that are current) for each plan, latest plan first.

    Every planned row of a sealed plan has a row in ``data/``. So this lists all videos without reading ``data/``.

    Raises:
        CommitError: a stored file is not a plan.
    """
    superseded: set[bytes] = set()
    for manifest in reversed(manifests):
        planned = read_plan(output, manifest["plan"]).rows
        present = _ids(planned)
        yield manifest["plan"], planned.filter(_not_among(superseded, present))
        superseded.update(present)


def column_by_id(output: Folder, wanted: Mapping[str, Sequence[str]], column: str) -> dict[str, Any]:
    """Return one column of some videos, by id. ``wanted`` has the ids to read from each file.

    Raises:
        CommitError: a file is corrupt.
        ObjectError: a file cannot be read.
    """

    def read(name: str) -> list[tuple[str, Any]]:
        rows = read_parquet(output, name, columns=[schema.VIDEO_ID, column])
        rows = rows.filter(pc.is_in(rows[schema.VIDEO_ID], value_set=pa.array(wanted[name], pa.string())))
        return list(zip(rows[schema.VIDEO_ID].to_pylist(), rows[column].to_pylist(), strict=True))

    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        return {video_id: value for rows in pool.map(read, wanted) for video_id, value in rows}


def count_rows(output: Folder, manifests: list[dict[str, Any]]) -> int:
    """Count the rows that ``rows_of`` yields, without reading ``data/``.

    Raises:
        CommitError: a stored file is not a plan.
    """
    if len(manifests) == 1 or job_of(manifests[0]["settings"]) == "recommend":
        return sum(manifest["num_videos"] for manifest in manifests)
    return sum(rows.num_rows for _, rows in planned_rows(output, manifests))


def _ids(rows: pa.Table) -> list[bytes]:
    return [digest(video_id) for video_id in rows[schema.VIDEO_ID].to_pylist()]


def _not_among(superseded: set[bytes], present: list[bytes]) -> pa.Array:
    return pa.array(np.fromiter((video_id not in superseded for video_id in present), np.bool_, len(present)))


def matrix_of(vectors: pa.FixedSizeListArray) -> npt.NDArray[Any]:
    """Return the vectors as a matrix [N, D]. No vector may be null.

    The data is only copied if a number in a vector is null.
    """
    matrix: npt.NDArray[Any] = vectors.flatten().to_numpy(zero_copy_only=False)
    return matrix.reshape(len(vectors), vectors.type.list_size)


def with_half_frames(rows: pa.Table) -> pa.Table:
    """Return the rows with their frame embeddings as float16, which changes no value: they are rounded to it."""
    at = rows.schema.get_field_index(schema.FRAME_EMBEDDINGS)
    dim = rows.schema.field(at).type.value_type.list_size
    halves = rows[schema.FRAME_EMBEDDINGS].cast(pa.list_(pa.list_(pa.float16(), dim)))
    return rows.set_column(at, schema.FRAME_EMBEDDINGS, halves)


def frame_embeddings(rows: pa.Table) -> list[npt.NDArray[np.float16]]:
    """Return the frame embeddings [T, D] of each video. They are not copied if ``rows`` holds them as float16."""
    rows = with_half_frames(rows)
    column = rows[schema.FRAME_EMBEDDINGS].combine_chunks()
    stops = np.cumsum([0, *column.value_lengths().to_numpy()])
    matrix = matrix_of(column.flatten())
    return [matrix[start:stop] for start, stop in pairwise(stops)]


def embedding_dim(embeddings: Folder, manifests: list[dict[str, Any]]) -> int:
    """Return D, the length of an embedding, from the schema of one file.

    Raises:
        CommitError: the file does not contain embeddings.
    """
    name = manifests[-1]["files"][0]["name"]
    try:
        with embeddings.open_input(name) as source:
            return int(pq.read_schema(source).field(schema.EMBEDDING).type.list_size)
    except (pa.ArrowException, AttributeError, KeyError, OSError, ValueError) as error:
        uri = embeddings.child(name)
        msg = f"{uri} holds no embeddings: {one_line(error)}."
        raise CommitError(msg, key=uri, remedy=f"Run raypipe verify {embeddings}.") from None
