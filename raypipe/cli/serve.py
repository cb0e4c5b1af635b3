"""Serve an index over HTTP: serve."""

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli.app import Overrides, command


@command
def serve(
    config: Annotated[
        Path | None, typer.Argument(help="A YAML file: the keys below `args` of jobs/serve.yaml.", show_default=False)
    ] = None,
    *,
    index: Annotated[str | None, typer.Option("--index", help="The output folder of index.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="The output folder of train, to label uploads.")] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on.")] = None,
    overrides: Overrides = None,
) -> int:
    """Serve an index and a page to look at it, until Ctrl-C; a new version of the index is taken up as it comes."""
    from rich.console import Console

    from raypipe.config import ServeConfig, load_config
    from raypipe.endpoint.run import serve_until_stopped

    values = {"index": index, "model": model, "host": host, "port": port}
    settings = load_config(ServeConfig, config, values=values, overrides=overrides or ())
    console = Console()
    serve_until_stopped(settings, say=lambda line: console.print(line, highlight=False, soft_wrap=True))
    return 0
