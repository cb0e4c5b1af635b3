"""The command ``raypipe train``."""

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli.app import JOBS, Embeddings, Overrides, command, config_file, say, show


@command(JOBS)
def train(
    config: Annotated[Path | None, config_file("train")] = None,
    *,
    embeddings: Embeddings = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="A .csv, .parquet or .jsonl with video_id and label.")
    ] = None,
    labels_from: Annotated[
        str | None, typer.Option("--labels-from", help="folder: a video's parent folder is its label.")
    ] = None,
    index_uri: Annotated[
        str | None, typer.Option("--index", help="The output folder of index, for objective next_video.")
    ] = None,
    history: Annotated[
        str | None, typer.Option("--history", help="A .csv, .parquet or .jsonl of watched videos, for next_video.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", help="Folder of the model, its checkpoints and its report.")
    ] = None,
    overrides: Overrides = None,
) -> int:
    """Train a classifier of videos, or a ranker of what users watch next. Run again to resume from a checkpoint."""
    from raypipe import api
    from raypipe.config import TrainConfig, load_config

    values = {
        "embeddings": embeddings,
        "labels": labels,
        "labels_from": labels_from,
        "index": index_uri,
        "history": history,
        "output": output,
    }
    settings = load_config(TrainConfig, config, values=values, overrides=overrides or ())
    result = api.train(config=settings)
    if not result.is_new:
        say(f"Nothing to do: {settings.output} already holds the finished model of this training.", err=False)
    show(result)
    return 0
