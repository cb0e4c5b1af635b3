"""Rounds over what is missing, until nothing is."""

from collections.abc import Callable, Iterator

from ray.exceptions import RayError

from raypipe.errors import JobError
from raypipe.records import ShardSummary
from raypipe.runs.actors import reason_of

_MAX_ROUNDS = 3


def finish_shards(
    run_missing: Callable[[], Iterator[ShardSummary]], update: Callable[[ShardSummary], None], *, patience: int
) -> None:
    """Work on what is missing until nothing is; a shard that failed is tried again after all the others.

    ``run_missing`` finds what is missing and works on it, a summary for each shard; ``update`` is told of each.

    Raises:
        JobError: some shards failed every time, or ``patience`` of them in a row, which is not their own fault.
    """
    problems: dict[tuple[int, int], str] = {}
    for _ in range(_MAX_ROUNDS):
        problems.clear()
        failures_in_row = 0
        for summary in _translated(run_missing):
            failures_in_row = failures_in_row + 1 if summary.problem else 0
            if summary.problem:
                problems[summary.plan, summary.shard] = summary.problem
            update(summary)
            if failures_in_row >= patience:
                msg = f"{failures_in_row} shards failed in a row: {summary.problem}"
                raise JobError(msg, remedy="Fix it; the same command resumes.")
        if not problems:
            return
    problem = next(iter(problems.values()))
    msg = f"{len(problems)} shards failed {_MAX_ROUNDS} times: {problem}"
    raise JobError(msg, remedy="The same command retries them.")


def _translated(run_missing: Callable[[], Iterator[ShardSummary]]) -> Iterator[ShardSummary]:
    try:
        yield from run_missing()
    except RayError as error:
        msg = f"Ray ended the work: {reason_of(error)}."
        raise JobError(msg, remedy="The same command resumes.") from error
