"""Verify the integrity of an output: its stored plans, files, rows and manifests must agree."""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from raypipe import schema
from raypipe.dataset.commit import (
    Totals,
    committed_files,
    manifest_name,
    read_manifest,
    read_shard_file,
    sealed_plans,
    shard_digest,
)
from raypipe.dataset.plan import (
    Plan,
    data_name,
    fingerprint,
    gone_flags,
    job_of,
    num_planned_rows,
    parse_data_name,
    plan_name,
    plan_numbers,
    read_plan,
    row_range,
)
from raypipe.errors import CommitError, ObjectError
from raypipe.results import Shown
from raypipe.status import Status
from raypipe.storage import Folder, StoredObject
from raypipe.text import one_line

_READS_AT_ONCE = 8
_OF_EVERY_JOB = (schema.STATUS, schema.GENERATION)
OF_VIDEOS = (schema.VIDEO_ID, schema.VIDEO_URI, schema.ETAG, schema.NUM_FRAMES)  # of jobs with one row per video


class Violation(str):
    """A problem of an output, as a sentence for people. ``check`` names the check that found it, for programs."""

    __slots__ = ("check",)
    check: str

    def __new__(cls, check: str, sentence: str) -> Self:
        violation = super().__new__(cls, sentence)
        violation.check = check
        return violation


@dataclass(frozen=True, slots=True)
class RowChecks:
    """What ``verify`` needs to know about a job to check the rows in its files."""

    job: str
    schema_of: Callable[[pa.Table], pa.Schema]  # the columns and types that a file should have
    required: tuple[str, ...]  # columns without nulls, in addition to status and generation
    problems: Callable[[pa.Table], Iterator[Violation]]  # yields the problems of a table whose columns are valid
    statuses: frozenset[str] = frozenset(map(str, Status))


@dataclass(repr=False)
class Verification(Shown):
    """The result of ``verify``: what was checked, and the problems found. An intact output has no ``violations``."""

    num_plans: int = 0
    num_files: int = 0
    num_rows: int = 0
    num_frames: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    totals: list[Totals] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Return whether the output is intact."""
        return not self.violations

    def shown(self) -> Mapping[str, object]:
        """Return the outcome, the counts of what was checked, the number of violations, and the first violation."""
        found = {"violations": len(self.violations), **({"first": str(self.violations[0])} if self.violations else {})}
        counts = {"rows": self.num_rows, "frames": self.num_frames, "files": self.num_files, "plans": self.num_plans}
        return {"ok": self.ok, **counts, **found}


def verify(output: Folder, checks: RowChecks) -> Verification:
    """Compare the plans, files, rows and manifests of an output with each other.

    This reads every file and changes nothing.

    Raises:
        StorageError: the output cannot be listed.
    """
    result = Verification()
    sealed = sealed_plans(output)
    numbers = plan_numbers(output)
    if not numbers:
        result.violations.append(Violation("no_plan", f"{output} holds no plan."))
    present = set(numbers)
    if num_lost := max({-1, *numbers, *sealed}) + 1 - len(present):
        lost = next(number for number in count() if number not in present)
        said = f"{num_lost} plans are lost, the first is {plan_name(lost)}."
        result.violations.append(Violation("lost_plans", said))
    first: Plan | None = None
    for number in numbers:
        try:
            plan = read_plan(output, number)
        except (CommitError, ObjectError) as error:
            result.violations.append(Violation("plan", str(error)))
            continue
        first = first or plan
        result.num_plans += 1
        result.violations += _check_plan(plan, first)
        _check_shards(output, plan, checks, result)
    for stored in output.list("data/"):
        name = parse_data_name(stored.key)
        if name is None or name[0] not in numbers:
            result.violations.append(Violation("unplanned_file", f"{stored.key} belongs to no plan."))
    return result


def stored_job(output: Folder) -> str:
    """Return the name of the job that wrote this output, from its first readable plan.

    If no plan is readable, return ``embed``.
    """
    return job_of(stored_settings(output))


def stored_settings(output: Folder) -> Mapping[str, Any]:
    """Return the settings of the first readable plan, or an empty mapping if no plan is readable."""
    for number in plan_numbers(output):
        try:
            return read_plan(output, number).settings
        except (CommitError, ObjectError):
            continue
    return {}


def _check_plan(plan: Plan, first: Plan) -> Iterator[Violation]:
    has = f"Plan {plan.number} has the fingerprint {plan.fingerprint}"
    if plan.fingerprint != fingerprint(plan.settings):
        yield Violation("plan_settings", f"{has}, which is not that of its settings.")
    if plan.fingerprint != first.fingerprint:
        yield Violation("plan_fingerprint", f"{has}; plan {first.number} has {first.fingerprint}.")
    ids = plan.rows[schema.VIDEO_ID].to_pylist() if schema.VIDEO_ID in plan.rows.column_names else []
    if repeated := [video for video, times in Counter(ids).items() if times > 1]:
        said = f"Plan {plan.number} holds {len(repeated)} videos twice, the first {repeated[0]!r}."
        yield Violation("repeated_video", said)


def _check_shards(output: Folder, plan: Plan, checks: RowChecks, result: Verification) -> None:
    files = committed_files(output, plan.number)
    shards = dict(plan.shards())
    if missing := sorted(set(shards) - set(files)):
        rows = sum(num_planned_rows(shards[shard]) for shard in missing)
        said = (
            f"Plan {plan.number}: {len(missing)} of {len(shards)} shards are missing ({rows} rows), the first is "
            f"{data_name(plan.number, missing[0])}. Run the same raypipe {checks.job} again."
        )
        result.violations.append(Violation("missing_shards", said))
    for shard in sorted(set(files) - set(shards)):
        result.violations.append(Violation("extra_shard", f"{files[shard].key} is not a shard of its plan."))
    found = Verification()
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        present = [shard for shard in shards if shard in files]
        for checked in pool.map(lambda shard: _check_file(output, plan, shard, shards[shard], checks), present):
            found.num_files += 1
            found.num_rows += checked.num_rows
            found.num_frames += checked.num_frames
            found.totals += checked.totals
            found.statuses.update(checked.statuses)
            result.violations += checked.violations
    result.num_files += found.num_files
    result.num_rows += found.num_rows
    result.num_frames += found.num_frames
    result.statuses.update(found.statuses)
    result.violations += _check_manifest(output, plan, files, found, checks.job)


def _check_manifest(
    output: Folder, plan: Plan, files: dict[int, StoredObject], found: Verification, job: str
) -> Iterator[Violation]:
    name = manifest_name(plan.number)
    if not output.exists(name):
        yield Violation("unsealed", f"Plan {plan.number} is not sealed. Run the same raypipe {job} again.")
        return
    try:
        manifest = read_manifest(output, plan.number)
    except (CommitError, ObjectError) as error:
        yield Violation("manifest", str(error))
        return
    rows = {data_name(plan.number, shard): num_planned_rows(table) for shard, table in plan.shards()}
    stored = {file.key: (file.etag, file.size_bytes, rows.get(file.key)) for file in files.values()}
    sealed = {file["name"]: (file["etag"], file["size_bytes"], file["num_rows"]) for file in manifest["files"]}
    for key in sorted(stored.keys() | sealed.keys()):
        now, then = stored.get(key, "missing"), sealed.get(key, "missing")
        if now != then:
            yield Violation("sealed_file", f"{key} is {now}; {name} says {then} (etag, bytes, rows).")
    if len(sealed) != len(manifest["files"]):
        yield Violation("repeated_file", f"{name} lists a file twice.")
    held = {
        "fingerprint": plan.fingerprint,
        "settings": plan.settings,
        "input": plan.input,
        "num_videos": plan.num_rows,
        "num_frames": found.num_frames,
        "statuses": dict(found.statuses),
        **Totals.sum(found.totals).stored,
    }
    for key, value in held.items():
        if manifest.get(key) != value:
            said = f"{name} says {key} {manifest.get(key)}; the plan and its files hold {value}."
            yield Violation("sealed_totals", said)


def _check_file(output: Folder, plan: Plan, shard: int, planned: pa.Table, checks: RowChecks) -> Verification:
    name = data_name(plan.number, shard)
    checked = Verification()
    try:
        about = read_shard_file(output, name)
        rows = pq.read_table(io.BytesIO(output.read(name)), page_checksum_verification=True)
        rows.validate(full=True)
    except (CommitError, ObjectError, pa.ArrowException, OSError, ValueError) as error:
        said = f"{name} cannot be read: {one_line(error)}"
        checked.violations.append(Violation("unreadable_file", said))
        return checked
    if problems := list(_check_columns(rows, checks)):
        checked.violations += [Violation(problem.check, f"{name} {problem}") for problem in problems]
        return checked
    checked.num_rows = rows.num_rows
    checked.statuses = Counter(rows[schema.STATUS].to_pylist())
    checked.totals.append(about.totals)
    if schema.NUM_FRAMES in rows.column_names:
        checked.num_frames = sum(rows[schema.NUM_FRAMES].to_pylist())
    problems += [*_check_rows(rows, plan, planned, checks), *checks.problems(rows)]
    checked.violations += [Violation(problem.check, f"{name}: {problem}") for problem in problems]
    if (about.plan, about.shard, about.fingerprint) != (plan.number, shard, plan.fingerprint):
        said = f"{name} says it is shard {about.shard} of plan {about.plan}, {about.fingerprint}."
        checked.violations.append(Violation("footer_identity", said))
    held = (shard_digest(rows), dict(checked.statuses), checked.num_frames)
    if (about.shard_digest, about.statuses, about.num_frames) != held:
        said = f"{name}: its footer's digest and counts are not those of its rows."
        checked.violations.append(Violation("footer_totals", said))
    return checked


def _check_columns(rows: pa.Table, checks: RowChecks) -> Iterator[Violation]:
    wanted = checks.schema_of(rows)
    if missing := [column for column in wanted.names if column not in rows.column_names]:
        yield Violation("missing_columns", f"lacks the columns {', '.join(missing)}.")
        return
    for field_ in wanted:
        found = rows.schema.field(field_.name).type
        if found != field_.type:
            yield Violation("column_type", f"has {found} in its column {field_.name}, not {field_.type}.")
    for column in (*_OF_EVERY_JOB, *checks.required):
        if rows[column].null_count:
            yield Violation("null", f"has rows without {column}.")


def _check_rows(rows: pa.Table, plan: Plan, planned: pa.Table, checks: RowChecks) -> Iterator[Violation]:
    columns = [name for name in planned.column_names if name in rows.column_names]
    is_range = schema.FIRST_ROW in planned.column_names
    if row_range(rows) != row_range(planned) if is_range else not rows.select(columns).equals(planned.select(columns)):
        said = f"its {rows.num_rows} rows are not the {num_planned_rows(planned)} that the plan gives this shard."
        yield Violation("planned_rows", said)
    if set(rows[schema.GENERATION].to_pylist()) - {plan.number}:
        yield Violation("generation", f"its rows are not all of generation {plan.number}.")
    is_gone = [status == Status.GONE for status in rows[schema.STATUS].to_pylist()]
    if len(is_gone) == planned.num_rows and is_gone != gone_flags(planned):
        said = f"{sum(is_gone)} of its rows say gone, which are not the {sum(gone_flags(planned))} planned as gone."
        yield Violation("gone_rows", said)
    if unknown := set(rows[schema.STATUS].to_pylist()) - checks.statuses:
        yield Violation("status", f"unknown statuses {sorted(unknown)}.")
