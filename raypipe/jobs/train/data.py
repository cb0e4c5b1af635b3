"""The edge to Ray Data: the frames of samples, read from sealed files and split among the workers."""

import copy
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from ray.data import DataIterator, Dataset, ExecutionOptions
from ray.train import DataConfig

from raypipe import schema
from raypipe.dataset.footer import read_parquet
from raypipe.errors import CommitError
from raypipe.jobs.train.samples import FILE, INDEX, TARGETS, blocks
from raypipe.storage import Folder

FRAMES = schema.FRAME_EMBEDDINGS
READ_CPUS = 0.5


class UnevenSplits(DataConfig):
    """Gives every row to exactly one worker, the same one each time: equal splits would drop the rows left over."""

    def configure(
        self,
        datasets: dict[str, Dataset],
        world_size: int,
        worker_handles: Any,  # noqa: ANN401, ARG002 - Ray's own signature
        worker_node_ids: Any,  # noqa: ANN401, ARG002
        **_: Any,  # noqa: ANN401
    ) -> list[dict[str, DataIterator]]:
        """Split each dataset with ``streaming_split``."""
        splits: list[dict[str, DataIterator]] = [{} for _ in range(world_size)]
        for name, given in datasets.items():
            dataset = given.copy(given)
            dataset.context.execution_options = copy.deepcopy(self.default_ingest_options())
            for worker, split in enumerate(dataset.streaming_split(world_size, equal=False)):
                splits[worker][name] = split
        return splits

    @staticmethod
    def default_ingest_options() -> ExecutionOptions:
        """Blocks come in the order in which they were drawn, whichever is read first."""
        options = DataConfig.default_ingest_options()
        options.preserve_order = True
        return options


def frames_dataset(samples: pa.Table, *, embeddings_uri: str, num_workers: int, seed: int) -> Dataset:
    """A lazy dataset of ``index``, ``targets`` and ``frame_embeddings``; a block of samples is one task's read."""
    dataset = ray.data.from_arrow(list(blocks(samples, num_workers=num_workers, seed=seed)))
    return dataset.map_batches(
        read_frames,  # type: ignore[arg-type]  # Ray does not count its keyword arguments
        fn_kwargs={"embeddings_uri": embeddings_uri},
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=READ_CPUS,
    )


def read_frames(samples: pa.Table, *, embeddings_uri: str) -> pa.Table:
    """Read the frames of samples, no column besides; ``frame_embeddings`` is list<fixed_size_list<float16, D>>[T].

    Raises:
        CommitError: a file is damaged, or does not hold a video that it held.
        ObjectError: a file cannot be read.
    """
    output = Folder(embeddings_uri)
    parts = []
    for name in pc.unique(samples[FILE]).to_pylist():
        wanted = samples.filter(pc.equal(samples[FILE], name))
        rows = read_parquet(output, name, columns=[schema.VIDEO_ID, FRAMES])
        at = pc.index_in(wanted[schema.VIDEO_ID], rows[schema.VIDEO_ID])
        if at.null_count:
            msg = f"{output.child(name)} lacks {at.null_count} videos that it held. Run raypipe verify {output}."
            raise CommitError(msg)
        parts.append(wanted.select([INDEX, TARGETS]).append_column(FRAMES, rows[FRAMES].take(at)))
    return pa.concat_tables(parts).combine_chunks()
