"""Steps that a block takes in an actor of Ray Data: one block is one shard, a table with a row for each video."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raypipe import schema
from raypipe.dataset.plan import data_name
from raypipe.dataset.sink import read_shard_file
from raypipe.records import ShardSummary
from raypipe.storage import Folder

SUMMARY = "summary"
_logger = logging.getLogger(__name__)

Steps = Sequence[tuple[Callable[[Any], "Step"], Any]]  # classes of steps, and what each is made with
Step = Callable[[pa.Table], "pa.Table | ShardSummary"]


class RunSteps:
    """An actor of Ray Data: makes its steps once, and takes one shard after the other through them.

    A shard that a step fails on goes no further and stays uncommitted: its summary says why, the others are unharmed.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = [make(settings) for make, settings in steps]

    def __call__(self, block: pa.Table) -> "pa.Table | dict[str, Any]":
        """One block: a shard's rows on their way, or its summary, which passes through."""
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
            problem = " ".join(f"{type(error).__name__}: {error}".split())
            return summary_block(ShardSummary(plan, shard, {}, 0, 0, {}, time.time(), problem=problem))
        return block


def summary_block(summary: ShardSummary) -> dict[str, Any]:
    """A block of one row: all that is left of a shard."""
    column = np.empty(1, dtype=object)
    column[0] = summary
    return {SUMMARY: column}


def identity(rows: pa.Table) -> tuple[int, int]:
    """The plan and shard of a block."""
    return rows[schema.GENERATION][0].as_py(), rows[schema.SHARD][0].as_py()


class SkipCommitted:
    """Ends a shard that another driver committed since it was found missing."""

    def __init__(self, output_uri: str) -> None:
        self._output = Folder(output_uri)

    def __call__(self, rows: pa.Table) -> "pa.Table | ShardSummary":
        """One shard."""
        plan, shard = identity(rows)
        name = data_name(plan, shard)
        if not self._output.exists(name):
            return rows
        found = read_shard_file(self._output, name)
        return ShardSummary(plan, shard, found.statuses, found.num_frames, 0, {}, time.time(), already_committed=True)
