"""The program ``raypipe``, to which the commands are added: its help, its errors and its exit codes.

The exit codes are:

- 0: success
- 1: the work failed
- 2: the arguments, the configuration or the environment are wrong
- 3: the work is done, but more videos failed than ``--max-failed-fraction`` allows, or more ids are unknown than
  ``max_unknown_fraction`` allows
- 130: Ctrl-C
"""

import functools
import inspect
import logging
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from raypipe import __version__
from raypipe.errors import RaypipeError, SetupError
from raypipe.text import one_line

if TYPE_CHECKING:
    from raypipe.results import JobResult

TOO_MANY_BAD = 3
INTERRUPTED = 130
JOBS, CHECKS, SERVING, START = "Jobs", "Estimate and check", "Serve, and use a cluster", "Start"
_Debug = Annotated[bool, typer.Option("--debug", help="Show Ray's own log, and tracebacks.")]
_UsageError: Any = typer.BadParameter.__mro__[1]  # click's, or typer's own copy


class _Commands(TyperGroup):
    """The group of commands, which reports wrong arguments in one line instead of typer's box."""

    def main(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - typer's own signature is longer
        standalone = options.get("standalone_mode", True)
        options["standalone_mode"] = False
        try:
            code = super().main(*args, **options)
        except _UsageError as error:
            if not standalone:
                raise
            message = one_line(error.format_message())
            path = error.ctx.command_path if error.ctx else "raypipe"
            say(f"error: {message}{'' if message.endswith(('.', '?')) else '.'} Run {path} --help.")
            code = error.exit_code
        if standalone:
            sys.exit(code)
        return code


app = typer.Typer(
    name="raypipe",
    help="Turn buckets of videos into embeddings, labels and recommendations, on Ray.",
    cls=_Commands,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"raypipe {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        if text := context.get_help():  # if empty, typer has printed it already
            typer.echo(text)
        raise typer.Exit(SetupError.exit_code)


def command(group: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorate a function that returns an exit code, so that it becomes a command with the option ``--debug``.

    ``group`` is the section of ``--help`` that lists the command. If the function raises a ``RaypipeError``, the error
    is printed in one line, and its class determines the exit code.
    """
    return partial(_add_command, group=group)


def _add_command(function: Callable[..., int], *, group: str) -> Callable[..., int]:

    @functools.wraps(function)
    def run(*arguments: Any, debug: bool, **options: Any) -> NoReturn:  # noqa: ANN401 - whatever typer parsed
        level = logging.DEBUG if debug else logging.WARNING
        logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
        try:
            code = function(*arguments, **options)
        except RaypipeError as error:
            if debug:
                traceback.print_exc()
            say(f"error: {error}")
            code = error.exit_code
        except KeyboardInterrupt:
            say("stopped: what is committed stays, and the same command resumes.")
            code = INTERRUPTED
        raise SystemExit(code)

    signature = inspect.signature(function)
    option = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Debug)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])  # type: ignore[attr-defined]
    run.__annotations__ = {**function.__annotations__, "debug": _Debug}
    app.command(rich_help_panel=group)(run)
    return function


def say(line: str, *, err: bool = True) -> None:
    """Print one line to stderr, or to stdout. Control characters are escaped, because file names may contain them."""
    typer.echo("".join(char if char.isprintable() else repr(char)[1:-1] for char in line), err=err)


def show(result: "JobResult") -> None:
    """Print the result of a job as a table."""
    from rich.console import Console

    Console().print(result)


def config_file(command: str) -> Any:  # noqa: ANN401 - as typer types it
    """Return the typer argument for the YAML configuration file of a command."""
    return typer.Argument(help=f"A YAML file; raypipe init {command} prints one with every key.", show_default=False)


Input = Annotated[str | None, typer.Option("--input", help="Folder, prefix, glob or manifest of videos.")]
Output = Annotated[str | None, typer.Option("--output", help="Folder of the embeddings: s3://BUCKET/PREFIX or a path.")]
Embeddings = Annotated[str | None, typer.Option("--embeddings", help="The output folder of embed.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key: backbone.name=resnet18.")
]
Retry = Annotated[str | None, typer.Option("--retry", help="Plan failed videos again: none, transient or all.")]
MaxFailed = Annotated[
    float | None, typer.Option("--max-failed-fraction", help="Exit with 3 when a larger share failed.")
]
