"""The command ``raypipe suggest``."""

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli.app import JOBS, Embeddings, Overrides, command, config_file, show


@command(JOBS)
def suggest(
    config: Annotated[Path | None, config_file("suggest")] = None,
    *,
    embeddings: Embeddings = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", help="A .csv, .parquet or .jsonl with video_id and label, if there is one."),
    ] = None,
    labels_from: Annotated[
        str | None, typer.Option("--labels-from", help="folder: a video's parent folder is its label.")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", help="Folder of the two lists and the report.")] = None,
    num_videos: Annotated[int | None, typer.Option("-n", "--num-videos", help="How many videos to label next.")] = None,
    overrides: Overrides = None,
) -> int:
    """Suggest which videos to label next, and which labels are probably wrong."""
    from rich.console import Console

    from raypipe import api
    from raypipe.config import SuggestConfig, load_config

    values = {
        "embeddings": embeddings,
        "labels": labels,
        "labels_from": labels_from,
        "output": output,
        "num_videos": num_videos,
    }
    console = Console()
    settings = load_config(SuggestConfig, config, values=values, overrides=overrides or ())
    show(api.suggest(config=settings, console=console))
    return 0
