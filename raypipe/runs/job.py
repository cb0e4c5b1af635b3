"""A batch job from its plans to the seal: rounds that leave no shard undone, the record, the report."""

import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from itertools import islice

import pyarrow as pa
from rich.console import Console

from raypipe import __version__
from raypipe.dataset import seal
from raypipe.dataset.plan import read_plan
from raypipe.errors import JobError, RaypipeError
from raypipe.records import RunRecord, ShardSummary
from raypipe.report import write_report
from raypipe.runs.progress import Progress
from raypipe.runs.retries import finish_shards
from raypipe.storage import Folder

RunShards = Callable[[Sequence[pa.Table]], Iterator[ShardSummary]]  # blocks through the stages of a job, in any order
_WAVE_SHARDS = 4096  # so many shards at a time pass through Ray: the driver's memory does not grow with the catalogue


@dataclass(frozen=True, slots=True)
class BatchRun:
    """What a run did, and where its report lies; both are empty where there was nothing to do."""

    record: RunRecord
    report_uri: str = ""


def start_record(
    output: Folder,
    *,
    job: str,
    input_uri: str,
    fingerprint: str,
    settings: Mapping[str, object],
    packages: Iterable[str],
    machine: Mapping[str, object],
    num_slots: int,
) -> RunRecord:
    """The record of a run that is about to finish every plan that is not sealed."""
    numbers = seal.unsealed_plans(output)
    num_planned = sum(read_plan(output, number).videos.num_rows for number in numbers)
    num_missing = sum(rows.num_rows for rows in seal.missing_shards(output, numbers))
    return RunRecord(
        job=job,
        command=" ".join(["raypipe", *sys.argv[1:]]),
        input_uri=input_uri,
        output_uri=output.uri,
        plans=tuple(numbers),
        fingerprint=fingerprint,
        settings=settings,
        versions=versions(packages),
        machine=machine,
        num_planned_videos=num_planned,
        num_resumed_videos=num_planned - num_missing,
        num_slots=num_slots,
    )


def finish(
    output: Folder, record: RunRecord, run_shards: RunShards, *, patience: int, console: Console | None
) -> BatchRun:
    """Commit every missing shard, seal the record's plans, and write the report, whatever comes of it.

    Raises:
        JobError: some shards could not be finished; the same command continues.
    """
    try:
        with Progress(record, console=console) as progress:
            finish_shards(lambda: _run_missing(output, run_shards), progress.update, patience=patience)
        _seal_all(output, record)
    except KeyboardInterrupt:
        record.close(outcome="interrupted")
        raise
    except RaypipeError as error:
        record.close(outcome="failed", message=str(error))
        with suppress(RaypipeError):  # what ended the work may end this too, and is what has to be told
            put_report(output, record)
        raise
    record.close(outcome="finished")
    return BatchRun(record, put_report(output, record))


def _run_missing(output: Folder, run_shards: RunShards) -> Iterator[ShardSummary]:
    blocks = seal.missing_shards(output, seal.unsealed_plans(output))
    while wave := list(islice(blocks, _WAVE_SHARDS)):
        yield from run_shards(wave)


def _seal_all(output: Folder, record: RunRecord) -> None:
    unsealed = [number for number in record.plans if not seal.seal(output, number, versions=record.versions)]
    if unsealed:
        msg = f"Plans {unsealed} still miss shards."
        raise JobError(msg, value=unsealed, remedy="The same command retries them.")


def put_report(output: Folder, record: RunRecord) -> str:
    """Write the report of a run where no earlier run's lies, and give its URI."""
    first = f"reports/{record.plans[-1]:05d}"
    names = (first, *(f"{first}-{again}" for again in range(1, 1000)))
    folder = next(name for name in names if not output.exists(f"{name}/summary.json"))
    write_report(record, lambda name, data: output.put_new(f"{folder}/{name}", data))
    return output.child(f"{folder}/report.html")


def versions(packages: Iterable[str]) -> dict[str, str]:
    """What made the rows: those of the packages that are installed, and what every batch job runs on."""
    found = {"raypipe": __version__, "python": platform.python_version()}
    for name in ("ray", *packages, "pyarrow", "s3fs", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
