"""Executors for tests: one runs stages in this process, the other runs Ray with a changed placement."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from raypipe.records import ShardSummary
from raypipe.runs.actors import RayExecutor
from raypipe.runs.executor import Needs, Placement
from raypipe.runs.stages import SUMMARY, RunSteps, Shared, Stage


class InlineExecutor:
    """Run the stages in this process, one actor each, without Ray."""

    def __init__(self) -> None:
        self.num_blocks: list[int] = []  # of each wave

    def connect(self) -> None:
        """Do nothing."""

    def place(self, needs: Needs) -> Placement:
        """Return one actor without a GPU."""
        return Placement(needs, 1)

    def machine(self) -> dict[str, object]:
        """Return nothing."""
        return {}

    def share(self, value: object) -> Shared:
        """Return the value itself."""
        return lambda: value

    def call_on_gpu(self, function: Any, *arguments: Any, num_gpus: float) -> Any:  # noqa: ANN401, ARG002
        """Call the function in this process."""
        return function(*arguments)

    def run(self, stages: Sequence[Stage], blocks: Sequence[pa.Table]) -> Iterator[ShardSummary]:
        """Send one block after another through all stages."""
        self.num_blocks.append(len(blocks))
        actors = [RunSteps(stage.steps) for stage in stages]
        try:
            for block in blocks:
                done: Any = block
                for actor in actors:
                    done = actor(done) if isinstance(done, pa.Table) else done
                yield done[SUMMARY][0]
        finally:
            for actor in actors:
                actor.close()


@dataclass
class PlacedExecutor(RayExecutor):
    """Run Ray with a changed placement, such as the stages of a GPU cluster on CPUs."""

    changes: dict[str, Any]

    def place(self, needs: Needs) -> Placement:
        """Return the cluster's placement with the changes."""
        return replace(super().place(needs), **self.changes)
