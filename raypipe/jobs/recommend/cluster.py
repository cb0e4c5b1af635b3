"""Run shards of users through actors on Ray until none is missing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray
import ray.data

from raypipe import schema
from raypipe.config.load import Count
from raypipe.jobs.recommend.history import HistoryFile
from raypipe.jobs.recommend.output import committed_shards
from raypipe.jobs.recommend.progress import UserProgress
from raypipe.jobs.recommend.stages import RecommendSettings, RecommendToUsers
from raypipe.jobs.recommend.users import IS_REPEATED
from raypipe.records import ShardSummary
from raypipe.runs.actors import add_stage, pool, resources
from raypipe.runs.retries import finish_shards
from raypipe.runs.stages import SUMMARY
from raypipe.storage import Folder

_WAVE_BYTES = 1_073_741_824  # so much of the history at a time lies in the object store


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do: the history in shards, what an actor is made with, and which rows name a user again."""

    history: HistoryFile
    users_per_shard: int
    settings: RecommendSettings
    repeated: frozenset[int]

    def missing_blocks(self) -> Iterator[pa.Table]:
        """The rows of each shard that has no file, with what an actor needs to know of them."""
        committed = committed_shards(Folder(self.settings.output_uri))
        for shard, block in enumerate(self.history.blocks(self.users_per_shard)):
            if shard not in committed:
                yield self._numbered(block, shard)

    def _numbered(self, block: pa.Table, shard: int) -> pa.Table:
        first = shard * self.users_per_shard
        columns = {
            IS_REPEATED: pa.array([number in self.repeated for number in range(first, first + block.num_rows)]),
            schema.GENERATION: pa.array(np.zeros(block.num_rows, np.int32)),
            schema.SHARD: pa.array(np.full(block.num_rows, shard, np.int32)),
        }
        for name, column in columns.items():
            block = block.append_column(name, column)
        return block


def finish(work: Work, progress: UserProgress, *, concurrency: Count) -> None:
    """Work on every shard of users that is missing.

    Raises:
        JobError: some shards could not be finished; the same command continues.
    """
    num_actors = max(1, int(resources()["CPU"])) if concurrency == "auto" else concurrency
    may_grow = concurrency == "auto"
    finish_shards(
        lambda: _run_missing(work, num_actors=num_actors, may_grow=may_grow),
        progress.update,
        patience=2 * num_actors + 6,
    )


def _run_missing(work: Work, *, num_actors: int, may_grow: bool) -> Iterator[ShardSummary]:
    steps = ((RecommendToUsers, work.settings),)
    for wave in _waves(work.missing_blocks()):
        actors = pool(num_actors, num_shards=len(wave), may_grow=may_grow)
        stage = add_stage(ray.data.from_blocks(list(wave)), steps, actors, num_cpus=1)
        for row in stage.iter_rows():
            yield row[SUMMARY]


def _waves(blocks: Iterator[pa.Table]) -> Iterator[Sequence[pa.Table]]:
    wave: list[pa.Table] = []
    size_bytes = 0
    for block in blocks:
        wave.append(block)
        size_bytes += block.nbytes
        if size_bytes >= _WAVE_BYTES:
            yield wave
            wave, size_bytes = [], 0
    if wave:
        yield wave
