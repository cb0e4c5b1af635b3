"""The command ``raypipe compress``."""

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli.app import JOBS, Embeddings, Overrides, command, config_file, say, show


@command(JOBS)
def compress(
    config: Annotated[Path | None, config_file("compress")] = None,
    *,
    model: Annotated[
        str | None, typer.Option("--model", help="The output folder of train, or one of save_pretrained.")
    ] = None,
    embeddings: Embeddings = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="The labels of the training, to measure what is lost.")
    ] = None,
    index_uri: Annotated[str | None, typer.Option("--index", help="The output folder of index, for a ranker.")] = None,
    history: Annotated[str | None, typer.Option("--history", help="The history of a ranker's training.")] = None,
    output: Annotated[str | None, typer.Option("--output", help="Folder of the smaller model and its report.")] = None,
    overrides: Overrides = None,
) -> int:
    """Make a trained model smaller and faster, or say why that does not pay off."""
    from rich.console import Console

    from raypipe import api
    from raypipe.config import CompressConfig, load_config

    values = {
        "model": model,
        "embeddings": embeddings,
        "labels": labels,
        "index": index_uri,
        "history": history,
        "output": output,
    }
    settings = load_config(CompressConfig, config, values=values, overrides=overrides or ())
    result = api.compress(config=settings, console=Console())
    if not result.is_new:
        say(f"Nothing to do: {settings.output} already holds the model of this compression.", err=False)
    show(result)
    return 0
