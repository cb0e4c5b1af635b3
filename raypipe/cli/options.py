"""Options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

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
Debug = Annotated[bool, typer.Option("--debug", help="Show Ray's own log, and tracebacks.")]
