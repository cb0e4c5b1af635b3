"""The command ``raypipe submit``, which sends a job to a cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from raypipe.cli.app import INTERRUPTED, SERVING, Overrides, command, say

if TYPE_CHECKING:
    from raypipe.submit import Remote


@command(SERVING)
def submit(
    config: Annotated[
        Path | None, typer.Argument(help="A YAML file, named after its job: embed.yaml.", show_default=False)
    ] = None,
    *,
    address: Annotated[
        str | None,
        typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The job API of the cluster: http://HOST:8265."),
    ] = None,
    job: Annotated[
        Literal["embed", "train", "classify", "index", "recommend"] | None,
        typer.Option("--job", help="The job, if the file is not named after it."),
    ] = None,
    overrides: Overrides = None,
    working_dir: Annotated[
        Path | None, typer.Option("--working-dir", help="A folder to send along, with CONFIG in it: a checkout, files.")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Send the job, print its id, and exit.")] = False,
    status: Annotated[str | None, typer.Option("--status", metavar="ID", help="Print the state of a job.")] = None,
    follow: Annotated[str | None, typer.Option("--follow", metavar="ID", help="Follow a job that was sent.")] = None,
    stop: Annotated[str | None, typer.Option("--stop", metavar="ID", help="Stop a job; its output resumes.")] = None,
) -> int:
    """Run embed, train, classify, index or recommend on a cluster. Follow the log and exit with the job's exit code."""
    from raypipe.errors import ConfigError
    from raypipe.submit import Remote, connect, job_line, packed

    asked = [one for one in (config, status, follow, stop) if one is not None]
    if len(asked) != 1:
        msg = "Give one of CONFIG, --status ID, --follow ID and --stop ID."
        raise ConfigError(msg)
    if config is None:
        remote = Remote(connect(address))
        if follow is not None:
            return _follow(remote, follow)
        ended = remote.stop(stop) if stop is not None else remote.details(str(status))
        typer.echo(job_line(ended))
        return 0
    with packed(config, command=job, overrides=overrides or (), working_dir=working_dir) as sent:
        for note in sent.notes:
            say(f"note: {note}")
        remote = Remote(connect(address))
        remote.send(sent)
    if no_wait:
        typer.echo(sent.submission_id)
        return 0
    say(f"Sent {sent.submission_id}. Ctrl-C leaves it running.")
    return _follow(remote, sent.submission_id)


def _follow(remote: "Remote", submission_id: str) -> int:
    from raypipe.submit import job_line

    try:
        code = remote.follow(submission_id, write=lambda text: typer.echo(text, nl=False))
    except KeyboardInterrupt:
        say(f"The job is still running. Run raypipe submit --follow {submission_id}, or --stop {submission_id}.")
        return INTERRUPTED
    say(job_line(remote.details(submission_id)))
    return code
