"""The program that the commands belong to: its help, its errors, its exit codes.

0 done · 1 the work failed · 2 the arguments, the configuration or the set-up are wrong · 3 done, but more videos failed
than --max-failed-fraction allows, or more ids are unknown than max_unknown_fraction does · 130 stopped by Ctrl-C.
"""

import logging
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from raypipe import __version__
from raypipe.errors import RaypipeError, SetupError

TOO_MANY_BAD = 3
INTERRUPTED = 130
_UsageError: Any = typer.BadParameter.__mro__[1]  # click's, or the one that typer has of its own


class _Commands(TyperGroup):
    """Says in one line what is wrong with the arguments; typer takes a page for it."""

    def main(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - typer's own signature is longer
        standalone = options.get("standalone_mode", True)
        options["standalone_mode"] = False
        try:
            code = super().main(*args, **options)
        except _UsageError as error:
            if not standalone:
                raise
            message = " ".join(error.format_message().split())
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
    add_completion=False,
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
        if text := context.get_help():  # else typer has printed it
            typer.echo(text)
        raise typer.Exit(SetupError.exit_code)


def leave(run: Callable[[], int], *, debug: bool) -> NoReturn:
    """Run a command and leave with its exit code; an error that raypipe raises on purpose is one line."""
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        code = run()
    except RaypipeError as error:
        if debug:
            traceback.print_exc()
        say(f"error: {error}")
        code = error.exit_code
    except KeyboardInterrupt:
        say("stopped: what is committed stays, and the same command resumes.")
        code = INTERRUPTED
    raise SystemExit(code)


def say(line: str) -> None:
    """One line on standard error, in which a file's name cannot command the terminal."""
    typer.echo("".join(char if char.isprintable() else repr(char)[1:-1] for char in line), err=True)
