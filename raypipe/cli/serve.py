"""The command ``raypipe serve``."""

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli.app import SERVING, Overrides, command


@command(SERVING)
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
    """Serve an index over HTTP until Ctrl-C, with a web page to explore it. New index versions load automatically."""
    from rich.console import Console

    from raypipe import api
    from raypipe.config import ServeConfig, load_config

    values = {"index": index, "model": model, "host": host, "port": port}
    settings = load_config(ServeConfig, config, values=values, overrides=overrides or ())
    with api.serve(config=settings, block=False) as server:
        lines = (*server.notes, f"The page: {server.url}/ · Stop with Ctrl-C.")
        Console().print(*lines, sep="\n", highlight=False, soft_wrap=True)
        server.wait()
    return 0
