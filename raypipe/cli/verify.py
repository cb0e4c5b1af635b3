"""The command ``raypipe verify``."""

from typing import Annotated

import typer

from raypipe.cli.app import CHECKS, command, say


@command(CHECKS)
def verify(
    output: Annotated[str, typer.Argument(help="The output folder of embed, classify, recommend or anomalies.")],
    *,
    inputs: Annotated[
        bool,
        typer.Option(
            "--inputs",
            help="For an output in row format 1: also read the videos again, and list the rows that format 2 changes.",
        ),
    ] = False,
) -> int:
    """Verify the integrity of a stored output. Exit with 1 and list the violations if there are any."""
    from rich.console import Console

    from raypipe import api

    result = api.verify(output)
    for violation in result.violations:
        say(f"violation: {violation}")
    counts = ", ".join(f"{count} {status}" for status, count in result.statuses.most_common())
    held = "no violations" if not result.violations else f"{len(result.violations)} violations"
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
    """Print the rows of an output in row format 1 that the rules of the current row format would change."""
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
