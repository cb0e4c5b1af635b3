"""The command ``raypipe demo``."""

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli.app import START, command


@command(START)
def demo(
    folder: Annotated[Path, typer.Option(help="Where the catalogue, the bucket and the report go.")] = Path(
        "demo-output"
    ),
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the endpoint running until Ctrl-C.")] = False,
) -> int:
    """Make 96 labelled clips, upload them to a local S3 server, and run every step on them, up to the endpoint."""
    from raypipe.demo.walkthrough import run_demo

    return run_demo(folder, keep=keep)
