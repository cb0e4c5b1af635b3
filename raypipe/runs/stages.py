"""Stages of a job: actors that run a list of steps on one shard at a time. A block is the data of a shard.

Ray is not used here.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from raypipe import schema
from raypipe.dataset.commit import Totals, describe_shard, put_shard, read_shard_file
from raypipe.dataset.plan import data_name
from raypipe.records import ShardSummary
from raypipe.storage import Folder
from raypipe.storage.s3_client import take_throttles
from raypipe.text import one_line

SUMMARY = "summary"
_PUTS_AT_ONCE = 4  # the number of actors that only commit; they reserve no CPU, because decoding needs all CPUs
_logger = logging.getLogger(__name__)

Step = Callable[[pa.Table], "pa.Table | ShardSummary"]
Steps = Sequence[tuple[Callable[[Any], Step], Any]]  # classes of steps, and the settings to construct them with
Shared = Callable[[], Any]  # returns a value that all actors share, such as weights


@dataclass(frozen=True, slots=True)
class Stage:
    """A pool of actors that run the same steps, and the resources that each actor reserves."""

    steps: Steps
    num_actors: int
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)  # labels of the nodes on which the actors may run
    may_grow: bool = False  # whether actors are added when nodes join the cluster


@dataclass(frozen=True, slots=True)
class CommitSettings:
    """The settings of ``CommitShard``."""

    output_uri: str
    fingerprint: str
    rows: pa.Schema  # the schema of the output file
    summarize: Callable[[pa.Table], ShardSummary]  # what the job tells the driver about a finished block
    totals: Callable[[pa.Table], Totals] | None = None  # what the job counts in addition to statuses


def with_commit(stages: Sequence[Stage], commit: CommitSettings) -> list[Stage]:
    """Return the stages with the steps that every job has: first skip committed shards, finally commit the rows.

    A last stage that reserves no CPU runs on GPUs. GPUs must not wait for storage, so separate actors commit its rows.
    """
    first, *others = stages
    complete = [replace(first, steps=((SkipCommitted, commit.output_uri), *first.steps)), *others]
    last, step = complete[-1], (CommitShard, commit)
    if last.num_cpus:
        complete[-1] = replace(last, steps=(*last.steps, step))
    else:
        complete.append(Stage((step,), num_actors=_PUTS_AT_ONCE, num_cpus=0))
    return complete


class RunSteps:
    """The class of every actor. It constructs its steps once, and runs them on one shard at a time.

    If a step fails, the shard is not committed, and its summary gives the reason. Other shards are not affected.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = [make(settings) for make, settings in steps]

    def __call__(self, block: pa.Table) -> "pa.Table | dict[str, Any]":
        """Run the steps on one block. If the block is the summary of a finished shard, return it unchanged."""
        if SUMMARY in block.column_names:
            return block
        plan, shard = identity(block)
        try:
            for step in self._steps:
                result = step(block)
                if isinstance(result, ShardSummary):
                    return summary_block(result)
                block = result
        except Exception as error:
            _logger.exception("Plan %d, shard %d was not finished", plan, shard)
            problem = one_line(f"{type(error).__name__}: {error}")
            return summary_block(ShardSummary(plan, shard, problem=problem, finished_at=time.time()))
        return block

    def close(self) -> None:
        """Close the steps that have a ``close`` method, for executors that run actors in the driver's process."""
        for step in self._steps:
            if (close := getattr(step, "close", None)) is not None:
                close()


def summary_block(summary: ShardSummary) -> dict[str, Any]:
    """Return a block with one row that holds the summary. It replaces the rows of a finished shard."""
    column = np.empty(1, dtype=object)
    column[0] = summary
    return {SUMMARY: column}


def identity(rows: pa.Table) -> tuple[int, int]:
    """Return the plan number and the shard number of a block."""
    return rows[schema.GENERATION][0].as_py(), rows[schema.SHARD][0].as_py()


def summary_of(block: pa.Table) -> ShardSummary:
    """Return a summary with only the plan and shard numbers of a finished block. The commit adds the rest.

    This is the default for jobs that have nothing to add.
    """
    return ShardSummary(*identity(block))


class SkipCommitted:
    """A step that skips a shard if another driver has committed it in the meantime."""

    def __init__(self, output_uri: str) -> None:
        self._output = Folder(output_uri)

    def __call__(self, rows: pa.Table) -> "pa.Table | ShardSummary":
        """Return the rows of a shard unchanged, or its summary if the shard is already committed."""
        plan, shard = identity(rows)
        name = data_name(plan, shard)
        if not self._output.exists(name):
            return rows
        found = read_shard_file(self._output, name)
        return ShardSummary(
            plan, shard, found.statuses, found.num_frames, finished_at=time.time(), already_committed=True
        )


def output_rows(block: pa.Table, rows: pa.Schema) -> pa.Table:
    """Return the columns of a finished block that are stored, with the order and the types of the schema ``rows``."""
    return block.select(rows.names).cast(rows)


class CommitShard:
    """The last step of every job. It commits a finished block as a file, and returns the shard's summary."""

    def __init__(self, settings: CommitSettings) -> None:
        self._settings = settings
        self._output = Folder(settings.output_uri)

    def __call__(self, block: pa.Table) -> ShardSummary:
        """Commit one shard."""
        plan, shard = identity(block)
        start = time.perf_counter()
        settings = self._settings
        rows = output_rows(block, settings.rows)
        totals = settings.totals(block) if settings.totals is not None else None
        about = describe_shard(rows, plan=plan, shard=shard, fingerprint=settings.fingerprint, totals=totals)
        created = put_shard(self._output, rows, about)
        seconds = time.perf_counter() - start
        summary = settings.summarize(block)
        return replace(
            summary,
            statuses=about.statuses,
            num_frames=about.num_frames,
            stage_seconds={**summary.stage_seconds, "put": seconds},
            finished_at=time.time(),
            num_throttles=summary.num_throttles + take_throttles(),
            already_committed=not created,
        )
