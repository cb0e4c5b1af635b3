"""The command line: each command loads its configuration, calls one function and turns an error into an exit code.

0 done · 1 the work failed · 2 the arguments, the configuration or the set-up are wrong · 3 done, but more videos failed
than --max-failed-fraction allows · 130 stopped by Ctrl-C.
"""

import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from raypipe import __version__
from raypipe.errors import RaypipeError, SetupError

if TYPE_CHECKING:
    from raypipe.config import ClassifyConfig, EmbedConfig

_TOO_MANY_FAILED = 3
_INTERRUPTED = 130
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
            _say(f"error: {message}{'' if message.endswith(('.', '?')) else '.'} Run {path} --help.")
            code = error.exit_code
        if standalone:
            sys.exit(code)
        return code


app = typer.Typer(
    name="raypipe",
    help="Turn buckets of videos into embeddings, on Ray.",
    cls=_Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Config = Annotated[
    Path | None, typer.Argument(help="A YAML file; jobs/embed.yaml lists every key.", show_default=False)
]
Input = Annotated[str | None, typer.Option("--input", help="Folder, prefix, glob or manifest of videos.")]
Output = Annotated[str | None, typer.Option("--output", help="Folder of the embeddings: s3://BUCKET/PREFIX or a path.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key: backbone.name=resnet18.")
]
Retry = Annotated[str | None, typer.Option("--retry", help="Plan failed videos again: none, transient or all.")]
MaxFailed = Annotated[
    float | None, typer.Option("--max-failed-fraction", help="Exit with 3 when a larger share failed.")
]
ClassifyFile = Annotated[
    Path | None, typer.Argument(help="A YAML file; jobs/classify.yaml lists every key.", show_default=False)
]
Embeddings = Annotated[str | None, typer.Option("--embeddings", help="The output folder of embed.")]
Model = Annotated[str | None, typer.Option("--model", help="The output folder of train, or one of save_pretrained.")]
Predictions = Annotated[str | None, typer.Option("--output", help="Folder of the predictions.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show Ray's own log, and tracebacks.")]


@app.command()
def embed(
    config: Config = None,
    *,
    input_uri: Input = None,
    output: Output = None,
    overrides: Overrides = None,
    retry: Retry = None,
    max_failed_fraction: MaxFailed = None,
    debug: Debug = False,
) -> None:
    """Decode and embed every new video of a bucket into sealed Parquet; again: resume, or only what is new."""

    def run() -> int:
        settings = _embed_config(config, input_uri, output, overrides, retry, max_failed_fraction)
        return _embed(settings)

    _exit(run, debug=debug)


def _embed(settings: "EmbedConfig") -> int:
    from rich.console import Console

    from raypipe.embed.pipeline import run_embed
    from raypipe.progress import final_table

    console = Console()
    run = run_embed(settings, console=console)
    if run.record.plans:
        console.print(final_table(run.record, report_uri=run.report_uri))
    else:
        console.print(f"Nothing new: every video of {settings.input} is embedded and sealed in {settings.output}.")
    failed = run.record.failed_fraction
    if failed > settings.max_failed_fraction:
        _say(f"{failed:.1%} of the videos failed; max_failed_fraction is {settings.max_failed_fraction:g}.")
        return _TOO_MANY_FAILED
    return 0


@app.command()
def plan(
    config: Config = None,
    *,
    input_uri: Input = None,
    output: Output = None,
    overrides: Overrides = None,
    retry: Retry = None,
    max_failed_fraction: MaxFailed = None,
    hourly_price: Annotated[
        float | None, typer.Option(help="What one machine like this costs an hour, for the estimate.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Say what embed would do, from a probe of a few videos: how much, how long, what holds it back. Writes nothing."""

    def run() -> int:
        from rich.console import Console

        from raypipe.embed.estimate import estimate, estimate_table

        settings = _embed_config(config, input_uri, output, overrides, retry, max_failed_fraction)
        Console().print(estimate_table(estimate(settings), hourly_price=hourly_price))
        return 0

    _exit(run, debug=debug)


@app.command()
def classify(
    config: ClassifyFile = None,
    *,
    embeddings: Embeddings = None,
    model: Model = None,
    output: Predictions = None,
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Label every new video of sealed embeddings with a trained model; again: resume, or only what is new."""

    def run() -> int:
        from raypipe.config import ClassifyConfig, load_config

        values = {"embeddings": embeddings, "model": model, "output": output}
        return _classify(load_config(ClassifyConfig, config, values=values, overrides=overrides or ()))

    _exit(run, debug=debug)


def _classify(settings: "ClassifyConfig") -> int:
    from rich.console import Console

    from raypipe.classify.pipeline import run_classify
    from raypipe.progress import final_table

    console = Console()
    run = run_classify(settings, console=console)
    if run.record.plans:
        console.print(final_table(run.record, report_uri=run.report_uri))
    else:
        console.print(
            f"Nothing new: every video of {settings.embeddings} is classified and sealed in {settings.output}."
        )
    return 0


@app.command()
def verify(
    output: Annotated[str, typer.Argument(help="The output folder of embed or classify.")], *, debug: Debug = False
) -> None:
    """Recheck every promise about an output from what is stored; exit 1 and name what is broken."""

    def run() -> int:
        from rich.console import Console

        from raypipe.classify.verify import verify as verify_predictions
        from raypipe.embed.verify import verify as verify_embeddings
        from raypipe.sealed.verify import stored_job
        from raypipe.storage import Folder

        folder = Folder(output)
        check = verify_predictions if stored_job(folder) == "classify" else verify_embeddings
        result = check(folder)
        for violation in result.violations:
            _say(f"violation: {violation}")
        counts = ", ".join(f"{count} {status}" for status, count in result.statuses.most_common())
        held = "every promise holds" if not result.violations else f"{len(result.violations)} violations"
        Console().print(
            f"{result.num_rows} videos ({counts or 'none'}), {result.num_frames} frames, {result.num_files} files, "
            f"{result.num_plans} plans: {held}.",
            highlight=False,
            soft_wrap=True,
        )
        return 1 if result.violations else 0

    _exit(run, debug=debug)


@app.command()
def doctor(
    input_uri: Input = None,
    output: Output = None,
    *,
    debug: Debug = False,
) -> None:
    """Check this machine or cluster: decoders, sandbox, weights, storage, Ray, GPUs; say how to mend each."""

    def run() -> int:
        from rich.console import Console

        from raypipe.embed.doctor import checks_table, run_checks

        checks = run_checks(input_uri=input_uri, output_uri=output)
        Console().print(checks_table(checks))
        return 1 if any(check.state == "broken" for check in checks) else 0

    _exit(run, debug=debug)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the catalogue, the bucket and the report go.")] = Path(
        "demo-output"
    ),
    *,
    debug: Debug = False,
) -> None:
    """Make 48 labelled clips, put them into a real S3 server on this machine, embed and verify them."""

    def run() -> int:
        from raypipe.demo.run import run_demo

        return run_demo(folder)

    _exit(run, debug=debug)


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


def _exit(run: Callable[[], int], *, debug: bool) -> NoReturn:
    """Run a command and leave with its exit code; an error that raypipe raises on purpose is one line."""
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        code = run()
    except RaypipeError as error:
        if debug:
            traceback.print_exc()
        _say(f"error: {error}")
        code = error.exit_code
    except KeyboardInterrupt:
        _say("stopped: what is committed stays, and the same command resumes.")
        code = _INTERRUPTED
    raise SystemExit(code)


def _say(line: str) -> None:
    """One line on standard error, in which a file's name cannot command the terminal."""
    typer.echo("".join(char if char.isprintable() else repr(char)[1:-1] for char in line), err=True)


def main() -> None:
    """Run the command line."""
    app()
