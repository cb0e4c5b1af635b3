"""Embed videos, and look at what is there: embed, plan, verify, doctor."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raypipe.cli.app import TOO_MANY_BAD, Input, MaxFailed, Output, Overrides, Retry, command, config_file, say

if TYPE_CHECKING:
    from raypipe.config import EmbedConfig


@command
def embed(
    config: Annotated[Path | None, config_file("embed")] = None,
    *,
    input_uri: Input = None,
    output: Output = None,
    overrides: Overrides = None,
    retry: Retry = None,
    max_failed_fraction: MaxFailed = None,
) -> int:
    """Decode and embed every new video of a bucket into sealed Parquet; again: resume, or only what is new."""
    return _embed(_embed_config(config, input_uri, output, overrides, retry, max_failed_fraction))


def _embed(settings: "EmbedConfig") -> int:
    from rich.console import Console

    from raypipe.jobs.embed.job import run_embed
    from raypipe.runs.summary_tables import final_table

    console = Console()
    run = run_embed(settings, console=console)
    if run.record.plans:
        console.print(final_table(run.record, report_uri=run.report_uri))
    else:
        console.print(f"Nothing new: every video of {settings.input} is embedded and sealed in {settings.output}.")
    failed = run.record.failed_fraction
    if failed > settings.max_failed_fraction:
        say(f"{failed:.1%} of the videos failed; max_failed_fraction is {settings.max_failed_fraction:g}.")
        return TOO_MANY_BAD
    return 0


@command
def plan(
    config: Annotated[Path | None, config_file("embed")] = None,
    *,
    input_uri: Input = None,
    output: Output = None,
    overrides: Overrides = None,
    retry: Retry = None,
    max_failed_fraction: MaxFailed = None,
    hourly_price: Annotated[
        float | None, typer.Option(help="What one machine like this costs an hour, for the estimate.")
    ] = None,
) -> int:
    """Say what embed would do, from a probe of a few videos: how much, how long, what holds it back. Writes nothing."""
    from rich.console import Console

    from raypipe.jobs.embed.estimate import estimate, estimate_table

    settings = _embed_config(config, input_uri, output, overrides, retry, max_failed_fraction)
    Console().print(estimate_table(estimate(settings), hourly_price=hourly_price))
    return 0


@command
def verify(
    output: Annotated[str, typer.Argument(help="The output folder of embed, classify or recommend.")],
    *,
    inputs: Annotated[
        bool,
        typer.Option(
            "--inputs",
            help="Of an output of row format 1: also read its videos again, and list the rows that format 2 changes.",
        ),
    ] = False,
) -> int:
    """Verify the integrity of an output from what is stored; exit 1 and name what is broken."""
    from rich.console import Console

    from raypipe.jobs.outputs import verify_any
    from raypipe.storage import Folder

    result = verify_any(Folder(output))
    for violation in result.violations:
        say(f"violation: {violation}")
    counts = ", ".join(f"{count} {status}" for status, count in result.statuses.most_common())
    held = "every promise holds" if not result.violations else f"{len(result.violations)} violations"
    Console().print(
        f"{result.num_rows} rows ({counts or 'none'}), {result.num_frames} frames, {result.num_files} files, "
        f"{result.num_plans} plans: {held}.",
        highlight=False,
        soft_wrap=True,
    )
    if inputs:
        _recheck(output)
    return 1 if result.violations else 0


def _recheck(output: str) -> None:
    """List the rows of an output of row format 1 that the rules of today would change."""
    from raypipe.config import DecodeConfig
    from raypipe.dataset.plan import job_of
    from raypipe.dataset.verify import stored_settings
    from raypipe.errors import ConfigError
    from raypipe.jobs.embed.verify import recheck_inputs
    from raypipe.schema import ROW_FORMAT, row_format_of
    from raypipe.storage import Folder
    from raypipe.text import visible

    folder = Folder(output)
    stored = stored_settings(folder)
    if (job := job_of(stored)) != "embed":
        msg = f"--inputs reads videos again, and {output} is an output of raypipe {job}."
        raise ConfigError(msg, key="inputs", value=job, remedy="Give an output of raypipe embed.")
    if row_format_of(stored) == ROW_FORMAT:
        typer.echo(f"Its rows are of format {ROW_FORMAT}, the latest: no rule has changed since.")
        return
    num_rows = num_changed = num_unread = 0
    for row in recheck_inputs(folder, stored, decode=DecodeConfig()):
        num_rows += 1
        num_changed += bool(row.changes)
        num_unread += bool(row.problem)
        if row.changes or row.problem:
            typer.echo(visible(f"{row.video_id}: {'; '.join(row.changes) or f'not read again: {row.problem}'}"))
    unread = f", and {num_unread} could not be read again" if num_unread else ""
    remedy = " Embed into a new output to have them." if num_changed else ""
    typer.echo(f"Format {ROW_FORMAT} would change {num_changed} of {num_rows} rows{unread}.{remedy}")


@command
def doctor(
    input_uri: Input = None,
    output: Output = None,
    *,
    address: Annotated[
        str | None,
        typer.Option("--address", help="Check a cluster from outside, then from within: http://HOST:8265."),
    ] = None,
    grafana: Annotated[
        bool, typer.Option("--grafana", help="Only say where the files for Prometheus and Grafana are.")
    ] = False,
) -> int:
    """Check decoders, sandbox, weights, storage, Ray and GPUs, here or on a cluster; suggest fixes."""
    if grafana:
        from raypipe.monitoring import how_to_use

        typer.echo(how_to_use())
        return 0
    if address is not None:
        return _doctor_there(address, input_uri=input_uri, output_uri=output)
    from rich.console import Console

    from raypipe.doctor.checks import checks_table, run_checks

    checks = run_checks(input_uri=input_uri, output_uri=output)
    Console().print(checks_table(checks))
    return 1 if any(check.state == "error" for check in checks) else 0


def _doctor_there(address: str, *, input_uri: str | None, output_uri: str | None) -> int:
    from rich.console import Console

    from raypipe.doctor.checks import check_api, checks_table
    from raypipe.submit import Remote, connect, packed_doctor

    client = connect(address)
    checks = check_api(client)
    Console().print(checks_table(checks))
    remote = Remote(client)
    with packed_doctor(input_uri=input_uri, output_uri=output_uri) as job:
        remote.send(job)
    code = remote.follow(job.submission_id, write=lambda text: typer.echo(text, nl=False))
    return 1 if any(check.state == "error" for check in checks) else code


def _embed_config(
    path: Path | None,
    input_uri: str | None,
    output: str | None,
    overrides: list[str] | None,
    retry: str | None,
    max_failed_fraction: float | None,
) -> "EmbedConfig":
    from raypipe.config import EmbedConfig, load_config

    values = {"input": input_uri, "output": output, "retry": retry, "max_failed_fraction": max_failed_fraction}
    return load_config(EmbedConfig, path, values=values, overrides=overrides or ())
