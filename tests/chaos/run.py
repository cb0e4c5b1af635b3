"""Try to break raypipe, at length: ``python -m chaos.run`` in ``tests/``. Prints a table; RESULTS.md keeps the last.

Everything random comes from ``--seed``, which is in the table: the same seed tries the same again. ``--only`` selects
parts: commit, storage, hostile, fuzz, kills, stock. For fuzz, ``pip install atheris`` first.
"""

import argparse
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from chaos.bombs import bombs
from chaos.boundaries import BUCKET, SPANS, Scene, Tally, at_random, impatient, prepared_scene, strike_all
from chaos.commit_model import RECOVERY, Case, Model
from chaos.fault_proxy import FAULTS, FaultProxy
from chaos.hostile import MEMORY_BYTES, SLACK_BYTES, TIMEOUT_SECONDS, Findings, feed_reference, running_feeder
from chaos.hostile_files import damaged_files
from chaos.hostile_job import embed_hostile_files
from chaos.kill_cluster import VICTIMS
from chaos.kill_runs import Tally as Kills
from chaos.kill_runs import ground
from chaos.references import large_canary, reference_files
from chaos.stock import through_ray_data
from raypipe.demo.s3_server import local_s3
from raypipe.storage import Folder
from support.embed_outputs import video

RESULTS = Path(__file__).with_name("RESULTS.md")
_HEAD = (
    "# What tries to break raypipe",
    "",
    "Written by `make chaos ARGS=--record`, part by part. The same seed repeats the same attempts.",
    "",
    "| part | what | tried | expected | found | seconds | seed | day |",
    "|---|---|---|---|---|---|---|---|",
)
_FUZZ_MEMORY_MB = 2048
_KILLED_VIDEOS = 120  # of a run whose processes are killed


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table."""

    what: str
    tried: str
    expected: str
    found: str
    problems: tuple[str, ...]


def commit_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Explore the model of the commit: larger cases, and a small one without reduction."""
    a, b, changed = video("a"), video("b"), video("a", etag="e2")
    names = ("first", "second", "third")
    cases = {
        "two drivers, two shards": (Case(dict.fromkeys((*names[:2], RECOVERY), (a, b)), videos_per_shard=1), True),
        "two drivers, one sees a video more": (Case({"first": (a,), "second": (a, b), RECOVERY: (a, b)}), True),
        "two drivers, a video changes": (
            Case({"first": (a,), "second": (changed,), RECOVERY: (changed,)}, is_doubling_right=True),
            True,
        ),
        "three drivers": (Case(dict.fromkeys((*names, RECOVERY), (a,)), max_crashes=options.crashes), True),
        "two drivers, no two write the same bytes": (
            Case(dict.fromkeys((*names[:2], RECOVERY), (a,)), are_rows_alike=False),
            True,
        ),
        "two drivers, without reduction": (Case(dict.fromkeys((*names[:2], RECOVERY), (a,))), False),
    }
    for name, (case, is_reduced) in cases.items():
        model = Model(case, is_reduced=is_reduced)
        num_schedules = model.explore()
        tried = f"{num_schedules:,} schedules, {model.num_states:,} states, crashes of {case.max_crashes}"
        found = f"{len(model.violations)} of {len(model.ends)} ends"
        yield Row(f"commit: {name}", tried, "0 lost, 0 doubled", found, (*model.trail, *model.violations))


def storage_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Inject faults of three lengths at every call of a run on S3, and faults at random."""
    with _scene(options) as (scene, proxy):
        for fault in FAULTS:
            tally = Tally()
            for span in SPANS[: 1 if fault == "slow" else None]:
                strike_all(scene, proxy, [fault], span=span, tally=tally, every=options.every)
            yield _storage_row(
                f"S3: {fault} at {'every call' if options.every == 1 else f'every {options.every}th call'}", tally
            )
        for fraction in (0.01, 0.1, 0.5):
            tally = Tally()
            for number in range(options.repeats):
                choose = at_random("slow_down", fraction, options.seed + number)
                scene.strike(proxy, choose, what=f"slow_down of {fraction:.0%}, {number}", tally=tally)
            yield _storage_row(f"S3: slow_down of {fraction:.0%} of the calls", tally)


@contextmanager
def _scene(options: argparse.Namespace) -> Iterator[tuple[Scene, FaultProxy]]:
    with tempfile.TemporaryDirectory() as folder, local_s3(Path(folder)) as server, impatient():
        os.environ.update(server.environment())
        with prepared_scene(server, secrets.token_hex(4), seed=options.seed) as scene:
            yield scene


def _storage_row(what: str, tally: Tally) -> Row:
    again = sum(count for times, count in tally.num_commands.items() if times > 1)
    tried = f"{tally.num_runs} runs, {tally.num_faults} faults"
    found = f"{len(tally.problems)}; {again} runs needed the command again"
    return Row(what, tried, "0 lost, 0 doubled, vectors equal", found, tuple(tally.problems))


def hostile_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Feed damaged files, bombs, and files that name others."""
    with running_feeder() as feeder:
        for number, file in enumerate(damaged_files(options.seed, options.files)):
            feeder.feed(file, in_parts=number % 2 == 1)
    yield _hostile_row("damaged files", feeder.findings)
    findings = embed_hostile_files(options.seed, options.job_files)
    tried = f"{findings.num_files} files in one command: {_counts(findings.statuses)}"
    expected = "a row each, the healthy ones ok, 0 Ray workers dead"
    found = f"{len(findings.problems)}"
    yield Row("damaged and healthy files through embed", tried, expected, found, tuple(findings.problems))
    with running_feeder() as feeder:
        for file in bombs():
            for in_parts in (False, True):
                feeder.feed(file, in_parts=in_parts)
    yield _hostile_row("bombs", feeder.findings)
    with tempfile.TemporaryDirectory() as folder, large_canary(Path(folder)) as canary, running_feeder() as feeder:
        for file in reference_files(canary):
            feed_reference(feeder, file, canary)
    findings = feeder.findings
    found = f"{findings.num_connections} connections, {len(findings.problems)} problems"
    expected = "0 connections to the canary server, 0 bytes of its file"
    yield Row("playlists and references", f"{findings.num_files} files", expected, found, tuple(findings.problems))


def fuzz_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Fuzz the container parsing in a separate process, because a finding may crash it."""
    with tempfile.TemporaryDirectory() as folder:
        limits = (f"-max_total_time={options.fuzz_seconds}", "-timeout=10", f"-rss_limit_mb={_FUZZ_MEMORY_MB}")
        command = [sys.executable, "-m", "chaos.fuzz", folder, f"-seed={options.seed}", *limits, "-print_final_stats=1"]
        command += [f"-artifact_prefix={RESULTS.parent}/"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    executed = re.search(r"number_of_executed_units: (\d+)", ended.stderr)
    reached = re.findall(r" cov: (\d+)", ended.stderr)
    tried = f"{int(executed[1]):,} files, {reached[-1]} branches" if executed and reached else "nothing"
    problems = tuple(ended.stderr.splitlines()[-20:]) if ended.returncode or not executed else ()
    expected = "a consistent index, or an error that is a row"
    yield Row("containers, guided by coverage", tried, expected, f"{int(bool(problems))} findings", problems)


def stock_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Show how plain Ray Data handles damaged files; raypipe cannot fix anything here."""
    count = 50
    ending, num_healthy = through_ray_data(options.seed, count)
    tried = f"{count} damaged files among {count} healthy ones, read_videos to write_parquet"
    yield Row("stock Ray Data", tried, f"{count} healthy videos written", f"{num_healthy}; it {ending}", ())


def _hostile_row(what: str, findings: Findings) -> Row:
    limit = (MEMORY_BYTES + SLACK_BYTES) // 2**20
    return Row(
        what,
        f"{findings.num_files} files: {_counts(findings.statuses)}",
        f"a row each within {TIMEOUT_SECONDS:g} s + 1 s, no child above {limit} MiB, healthy frames equal",
        f"{len(findings.problems)}; {findings.max_seconds:.2f} s, {findings.max_child_bytes // 2**20} MiB at most",
        tuple(findings.problems),
    )


def kill_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Kill processes, or stop them for a while, in many runs of the whole job on a real Ray and a real S3 server."""
    tally = Kills()
    with tempfile.TemporaryDirectory() as folder, local_s3(Path(folder)) as server:
        os.environ.update(server.environment())
        place = Folder(f"s3://{BUCKET}/{secrets.token_hex(4)}")
        with ground(place, Path(folder), seed=options.seed, num_videos=_KILLED_VIDEOS) as here:
            while tally.num_kills < options.kills:
                here.run(tally, max_blows=options.kills - tally.num_kills + options.kills // 10)
                _print(f"    run {tally.num_runs}: {tally.num_kills} killed, {len(tally.problems)} problems")
    tally.problems += [f"no {name} was struck" for name in VICTIMS if not any(name in blow for blow in tally.blows)]
    runs = f"{tally.num_runs} runs of {_KILLED_VIDEOS} videos, {tally.num_commands} commands"
    yield Row(
        "processes killed or stopped",
        f"{tally.num_kills} kills in {runs}: {_counts(tally.blows)}",
        "0 lost, 0 doubled, 0 stuck, vectors equal",
        f"{len(tally.problems)}; rows before a retry: {_counts(tally.statuses)}",
        tuple(tally.problems),
    )


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.most_common())


_PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "commit": commit_rows,
    "storage": storage_rows,
    "hostile": hostile_rows,
    "fuzz": fuzz_rows,
    "kills": kill_rows,
    "stock": stock_rows,
}


def main() -> int:
    """Run the parts; the exit code is 1 if any problem was found."""
    parser = argparse.ArgumentParser(prog="chaos.run", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=list(_PARTS))
    parser.add_argument(
        "--record", action="store_true", help="write the rows to RESULTS.md, in place of the parts' old rows"
    )
    parser.add_argument("--files", type=int, default=10_500, help="damaged files")
    parser.add_argument("--job-files", type=int, default=3_000, help="damaged files through the whole job")
    parser.add_argument("--every", type=int, default=1, help="inject a fault at every n-th call")
    parser.add_argument("--repeats", type=int, default=10, help="runs with random faults")
    parser.add_argument("--kills", type=int, default=500, help="how many processes of embed to kill")
    parser.add_argument("--fuzz-seconds", type=int, default=300)
    parser.add_argument("--crashes", type=int, default=1, help="how many of three drivers may crash")
    options = parser.parse_args()
    _print(f"seed {options.seed}")
    is_sound = True
    for part in options.only:
        lines: list[str] = []
        began = time.monotonic()
        for row in _PARTS[part](options):
            lines.append(_line(part, row, seconds=time.monotonic() - began, seed=options.seed))
            _print(lines[-1], *(f"    {problem}" for problem in row.problems[:20]))
            is_sound = is_sound and not row.problems
            began = time.monotonic()
        if options.record:
            _record(part, lines)
    return int(not is_sound)


def _record(part: str, lines: Sequence[str]) -> None:
    """Replace the rows of one part in RESULTS.md, and keep the others."""
    kept = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    others = [
        line for line in kept if line.startswith("| ") and line not in _HEAD and not line.startswith(f"| {part} |")
    ]
    rows = sorted([*others, *lines], key=lambda line: list(_PARTS).index(line.split(" | ")[0].removeprefix("| ")))
    RESULTS.write_text("\n".join([*_HEAD, *rows]) + "\n")


def _line(part: str, row: Row, *, seconds: float, seed: int) -> str:
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    return f"| {part} | {row.what} | {row.tried} | {row.expected} | {row.found} | {seconds:.0f} | {seed} | {day} |"


def _print(*lines: str) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
