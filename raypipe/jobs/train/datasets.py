"""The samples of a training as Ray Data datasets, which Ray Train splits between its workers.

This module must not import torch. Ray processes that do not need torch, such as readers, import this module, and
torch takes seconds to import.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from ray.data import DataIterator, Dataset
from ray.train import DataConfig

from raypipe import schema
from raypipe.dataset.footer import read_parquet
from raypipe.dataset.read import with_half_frames
from raypipe.errors import CommitError
from raypipe.jobs.train.inputs import FILE, INDEX, TARGETS
from raypipe.storage import Folder

READ_CPUS = 0.5


class UnevenSplits(DataConfig):
    """Give every row to exactly one worker, to the same worker in every epoch.

    Ray's default of equal splits would drop the remainder.
    """

    def configure(
        self, datasets: dict[str, Dataset], world_size: int, *_: object, **__: object
    ) -> list[dict[str, DataIterator]]:
        """Return the splits of each worker by dataset name. Blocks keep their order."""
        splits: list[dict[str, DataIterator]] = [{} for _ in range(world_size)]
        for name, given in datasets.items():
            dataset = given.copy(given)
            dataset.context.execution_options = self.default_ingest_options()
            dataset.context.execution_options.preserve_order = True
            for worker, split in enumerate(dataset.streaming_split(world_size, equal=False)):
                splits[worker][name] = split
        return splits


def frames_dataset(samples: pa.Table, *, embeddings_uri: str, num_workers: int, seed: int) -> Dataset:
    """Return a lazy dataset with the columns ``index``, ``targets`` and ``frame_embeddings``.

    Each task reads one block of samples.
    """
    dataset = ray.data.from_arrow(list(blocks(samples, num_workers=num_workers, seed=seed)))
    return dataset.map_batches(
        read_frames,  # type: ignore[arg-type]  # Ray does not count its keyword arguments
        fn_kwargs={"embeddings_uri": embeddings_uri},
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=READ_CPUS,
    )


def histories_dataset(samples: pa.Table, *, num_workers: int, seed: int) -> Dataset:
    """Return a dataset with the columns ``index`` and ``history``. Nothing is left to read."""
    return ray.data.from_arrow(list(blocks(samples, num_workers=num_workers, seed=seed)))


def blocks(samples: pa.Table, *, num_workers: int, seed: int) -> Iterator[pa.Table]:
    """Divide the samples into blocks, and yield these in a random order that is the same in every epoch.

    Videos are first sorted by embeddings file, so that a block reads few files.
    """
    rows_per_block = int(np.clip(samples.num_rows // (8 * num_workers), 1, 512))
    keys = [name for name in (FILE, INDEX) if name in samples.column_names]
    ordered = samples.sort_by([(name, "ascending") for name in keys])
    starts = np.arange(0, ordered.num_rows, rows_per_block)
    for start in np.random.default_rng([seed, 1]).permutation(starts).tolist():
        yield ordered.slice(start, rows_per_block)


def read_frames(samples: pa.Table, *, embeddings_uri: str) -> pa.Table:
    """Read the frame embeddings of the samples, and return them with the columns ``index`` and ``targets``.

    The type of ``frame_embeddings`` is list<fixed_size_list<float16, D>>, with T vectors per video.

    Raises:
        CommitError: a file is corrupt, or lacks a video that was in it when the training was planned.
        ObjectError: a file cannot be read.
    """
    output = Folder(embeddings_uri)
    parts = []
    for name in pc.unique(samples[FILE]).to_pylist():
        wanted = samples.filter(pc.equal(samples[FILE], name))
        rows = read_parquet(output, name, columns=[schema.VIDEO_ID, schema.FRAME_EMBEDDINGS])
        at = pc.index_in(wanted[schema.VIDEO_ID], rows[schema.VIDEO_ID])
        if at.null_count:
            msg = f"{output.child(name)} lacks {at.null_count} videos that it had before. Run raypipe verify {output}."
            raise CommitError(msg)
        frames = with_half_frames(rows.take(at))[schema.FRAME_EMBEDDINGS]
        parts.append(wanted.select([INDEX, TARGETS]).append_column(schema.FRAME_EMBEDDINGS, frames))
    return pa.concat_tables(parts).combine_chunks()
