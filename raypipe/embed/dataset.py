"""Read sealed embeddings: the rows that count, and nothing that is not sealed."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypipe import schema
from raypipe.embed.plan import plan_numbers
from raypipe.embed.seal import read_manifest, sealed_plans
from raypipe.errors import JobError
from raypipe.storage import Folder


def sealed_manifests(output: Folder) -> list[dict[str, Any]]:
    """The manifests of all plans, ascending.

    Raises:
        JobError: there is no plan, one is lost, or one is not sealed.
    """
    sealed = sealed_plans(output)
    numbers = plan_numbers(output)  # listed after the manifests: another driver may add both
    if not numbers:
        msg = f"{output} holds no embeddings. Run raypipe embed with it as --output."
        raise JobError(msg)
    if numbers != list(range(len(numbers))) or sealed - set(numbers):
        msg = f"{output} has lost a plan: it holds {numbers}. Run raypipe verify."
        raise JobError(msg)
    if unsealed := [number for number in numbers if number not in sealed]:
        msg = f"{output} is not sealed: plans {unsealed} are unfinished. Run the same raypipe embed again."
        raise JobError(msg)
    return [read_manifest(output, number) for number in numbers]


def read_embeddings(output: Folder, *, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the rows that count, a table for each file: for a ``video_id`` those of its highest generation alone.

    Raises:
        JobError: the output is not sealed.
    """
    wanted = list(columns) if columns is not None else None
    read = None if wanted is None else list(dict.fromkeys([*wanted, schema.VIDEO_ID]))
    superseded: set[str] = set()
    for manifest in reversed(sealed_manifests(output)):
        ids: list[str] = []
        for file in manifest["files"]:
            with output.open_input(file["name"]) as source:
                table = pq.read_table(source, columns=read)
            present = table[schema.VIDEO_ID].to_pylist()
            keep = np.fromiter((video_id not in superseded for video_id in present), np.bool_, len(present))
            ids += present
            yield table.filter(pa.array(keep)).select(table.column_names if wanted is None else wanted)
        superseded.update(ids)
