"""The skeleton of every batch job: inputs → plan → run shards on actors → seal → report.

A job is a subclass of ``Job``. It defines which work to plan and how to process one shard. ``run_job`` does the rest.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import pyarrow as pa
from rich.console import Console

from raypipe.config.load import BatchConfig, command_line
from raypipe.dataset.commit import Totals, missing_shards, seal, sealed_plans, unsealed_plans
from raypipe.dataset.plan import StoredPlans, fingerprint, num_planned_rows
from raypipe.errors import JobError, RaypipeError
from raypipe.records import RunRecord, ShardSummary, versions
from raypipe.report.write import write_report
from raypipe.runs.executor import Executor, Needs, Placement, joins_ray
from raypipe.runs.local_pool import LocalExecutor
from raypipe.runs.progress import Progress
from raypipe.runs.stages import CommitSettings, Stage, summary_of, with_commit
from raypipe.storage import Folder

_MAX_ROUNDS = 3
_MAX_FAILURES_IN_ROW = 6  # plus two per actor; more failures in a row than this are not due to single shards
# The executor gets the shards in waves, so that the driver's memory does not grow with the number of videos.
_WAVE_SHARDS = 4096
_WAVE_BYTES = 1_073_741_824


class Job(ABC):
    """A batch job. ``run_job`` calls the methods in the order in which they are defined here."""

    name: ClassVar[str]  # the name of the command
    noun: ClassVar[str] = "video"  # what one row of the output stands for
    packages: ClassVar[Sequence[str]] = ()  # packages whose versions are stored in the record
    max_local_rows: ClassVar[int] = 100_000  # without a running Ray, this many rows are faster done than Ray is started
    config: BatchConfig
    output: Folder
    input_uri: str
    skipped: Mapping[str, int] = MappingProxyType({})  # after ``plan``: files of the input that were skipped, by reason

    def is_done(self) -> bool:
        """Return whether the output is already complete. If so, the job ends without a cluster."""
        return False

    def prepare(self) -> None:  # noqa: B027 - optional
        """Check the input, and load everything that can be loaded without a cluster.

        Raises:
            SetupError: something is wrong before the work starts.
        """

    def needs(self) -> Needs:
        """Return the resources that each actor needs. The default is one CPU."""
        return Needs()

    def settle(self, executor: Executor, placement: Placement) -> None:  # noqa: B027 - optional
        """Make the decisions that depend on the cluster, such as the dtype."""

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """Return all settings that affect the content of a row. An output with other settings is refused."""

    @abstractmethod
    def plan(self, plans: StoredPlans, *, num_slots: int) -> None:
        """Plan the new work, in shards small enough to keep ``num_slots`` actors busy.

        Raises:
            FingerprintError: the output holds rows that were made with other settings.
            ConfigError: the input is empty, and no earlier run found any work in it.
        """

    @property
    def facts(self) -> Mapping[str, object]:
        """Return additional facts about the run, which the record lists next to the size of the cluster."""
        return {}

    def load(self, missing: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Return the block to process for each missing shard.

        ``missing`` yields the planned rows of these shards. By default, the planned rows are the block.
        """
        return missing

    @abstractmethod
    def stages(self, executor: Executor, placement: Placement) -> Sequence[Stage]:
        """Return the stages that turn a block into output rows.

        The output rows must have the columns of the schema ``rows`` and the columns ``generation`` and ``shard``.
        """

    @property
    @abstractmethod
    def rows(self) -> pa.Schema:
        """Return the schema of the output files."""

    # These functions run in the actors, on a finished block. Each job defines its own in its shard module.
    summarize: Callable[[pa.Table], ShardSummary] = staticmethod(summary_of)
    totals: Callable[[pa.Table], Totals] | None = None


@dataclass(frozen=True, slots=True)
class BatchRun:
    """The record of a run, and the URI of its report. If the record has no plans, there was nothing to do."""

    record: RunRecord
    report_uri: str = ""


def run_job(job: Job, *, executor: Executor | None = None, console: Console | None = None) -> BatchRun:
    """Plan the new work, commit every missing shard, seal the plans, and write the report.

    Raises:
        SetupError: something is wrong before the work starts.
        JobError: some shards could not be finished. Call again to resume.
    """
    if job.is_done():
        return BatchRun(RunRecord(job=job.name, input_uri=job.input_uri, output_uri=job.output.uri))
    job.prepare()
    job.output.check_writable()
    may_change = executor is None
    executor = executor or (LocalExecutor() if runs_locally(job, num_rows=0) else _ray())
    placement = _place(job, executor)
    plans = StoredPlans(job.output)
    job.plan(plans, num_slots=placement.num_actors)
    record = start_record(job, plans, placement=placement, machine=executor.machine())
    if not record.plans:
        return BatchRun(record)
    num_left = record.num_planned_videos - record.num_resumed_videos
    if may_change and isinstance(executor, LocalExecutor) and not runs_locally(job, num_rows=num_left):
        executor = _ray()
        placement = _place(job, executor)
        record = start_record(job, plans, placement=placement, machine=executor.machine())
    try:
        _commit_all(job, plans, record, executor=executor, placement=placement, console=console)
        _seal_all(plans, record)
    except KeyboardInterrupt:
        record.close(outcome="interrupted")
        raise
    except RaypipeError as error:
        record.close(outcome="failed", message=str(error))
        with suppress(RaypipeError):  # the report may fail for the same reason; raise the first error
            put_report(job.output, record)
        raise
    record.close(outcome="finished")
    return BatchRun(record, put_report(job.output, record))


def runs_locally(job: Job, *, num_rows: int) -> bool:
    """Return whether a job with this much to do runs in processes of this machine, without Ray.

    ``auto`` does so if neither a running Ray nor a GPU could be used.
    """
    if job.config.executor != "auto":
        return job.config.executor == "local"
    needs = job.needs()
    has_gpu = needs.num_gpus != 0 and Path("/dev/nvidiactl").exists()
    needs_cluster = joins_ray() or has_gpu or needs.cpus_on or needs.gpus_on or needs.num_gpus not in {"auto", 0}
    return not needs_cluster and num_rows <= job.max_local_rows


def _ray() -> Executor:
    from raypipe.runs.actors import RayExecutor  # noqa: PLC0415 - a local run does not import Ray

    return RayExecutor()


def _place(job: Job, executor: Executor) -> Placement:
    executor.connect()
    placement = executor.place(job.needs())
    job.settle(executor, placement)
    return placement


def start_record(job: Job, plans: StoredPlans, *, placement: Placement, machine: Mapping[str, object]) -> RunRecord:
    """Return the record of a new run, which covers every plan that is not sealed yet."""
    numbers = unsealed_plans(plans.output)
    num_planned = sum(plans.read(number).num_rows for number in numbers)
    num_missing = sum(map(num_planned_rows, missing_shards(plans, numbers)))
    return RunRecord(
        job=job.name,
        noun=job.noun,
        command=command_line(job.name, job.config),
        input_uri=job.input_uri,
        output_uri=job.output.uri,
        plans=tuple(numbers),
        fingerprint=fingerprint(job.settings),
        settings=job.config.model_dump(),
        versions=versions(job.packages),
        machine={**machine, "actors": placement.num_actors, "device": placement.device, **job.facts},
        num_planned_videos=num_planned,
        num_resumed_videos=num_planned - num_missing,
        num_slots=placement.num_slots,
        skipped=job.skipped,
    )


def _commit_all(
    job: Job,
    plans: StoredPlans,
    record: RunRecord,
    *,
    executor: Executor,
    placement: Placement,
    console: Console | None,
) -> None:
    """Run the missing shards until all are committed. Shards that fail are retried when the others are done.

    Raises:
        JobError: some shards failed in every round, or too many shards failed in a row.
    """
    commit = CommitSettings(job.output.uri, record.fingerprint, job.rows, job.summarize, job.totals)
    stages = with_commit(job.stages(executor, placement), commit)
    max_failures_in_row = 2 * placement.num_actors + _MAX_FAILURES_IN_ROW
    with Progress(record, console=console) as progress:
        for _ in range(_MAX_ROUNDS):
            sealed = sealed_plans(plans.output)
            missing = missing_shards(plans, [number for number in record.plans if number not in sealed])
            problems: dict[tuple[int, int], str] = {}
            failures_in_row = 0
            for wave in waves(job.load(missing)):
                for summary in executor.run(stages, wave):
                    progress.update(summary)
                    failures_in_row = failures_in_row + 1 if summary.problem else 0
                    if summary.problem:
                        problems[summary.plan, summary.shard] = summary.problem
                    if failures_in_row >= max_failures_in_row:
                        msg = f"{failures_in_row} shards failed in a row: {summary.problem}"
                        raise JobError(msg, remedy="Fix it; the same command resumes.")
            if not problems:
                return
    problem = next(iter(problems.values()))
    msg = f"{len(problems)} shards failed {_MAX_ROUNDS} times: {problem}"
    raise JobError(msg, remedy="The same command retries them.")


def waves(blocks: Iterable[pa.Table]) -> Iterator[list[pa.Table]]:
    """Group blocks into lists of at most ``_WAVE_SHARDS`` blocks and about ``_WAVE_BYTES`` bytes."""
    wave: list[pa.Table] = []
    size_bytes = 0
    for block in blocks:
        wave.append(block)
        size_bytes += block.nbytes
        if len(wave) == _WAVE_SHARDS or size_bytes >= _WAVE_BYTES:
            yield wave
            wave, size_bytes = [], 0
    if wave:
        yield wave


def _seal_all(plans: StoredPlans, record: RunRecord) -> None:
    unsealed = [number for number in record.plans if not seal(plans, number, versions=record.versions)]
    if unsealed:
        msg = f"Plans {unsealed} still miss shards."
        raise JobError(msg, value=unsealed, remedy="The same command retries them.")


def put_report(output: Folder, record: RunRecord) -> str:
    """Write the report of a run to a new folder, and return the URI of the report."""
    first = f"reports/{record.plans[-1]:05d}"
    names = (first, *(f"{first}-{again}" for again in range(1, 1000)))
    folder = next(name for name in names if not output.exists(f"{name}/summary.json"))
    write_report(record, lambda name, data: output.put_new(f"{folder}/{name}", data))
    return output.child(f"{folder}/report.html")
