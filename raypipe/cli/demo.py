"""The demo."""

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli.app import app, leave
from raypipe.cli.options import Debug


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the catalogue, the bucket and the report go.")] = Path(
        "demo-output"
    ),
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the endpoint running until Ctrl-C.")] = False,
    debug: Debug = False,
) -> None:
    """Make 96 labelled clips, put them into a real S3 server here, and do all of it with them, up to the endpoint."""

    def run() -> int:
        from raypipe.demo.run import run_demo

        return run_demo(folder, keep=keep)

    leave(run, debug=debug)
