"""The command ``raypipe index``."""

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli.app import JOBS, Overrides, command, config_file


@command(JOBS)
def index(
    config: Annotated[Path | None, config_file("index")] = None,
    *,
    embeddings: Annotated[
        str | None, typer.Option("--embeddings", help="The output folder of embed, or your own Parquet.")
    ] = None,
    catalogue: Annotated[
        str | None,
        typer.Option(
            "--catalogue", "--catalog", help="A .csv, .parquet or .jsonl with video_id and any other columns."
        ),
    ] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="The output folder of classify.")] = None,
    history: Annotated[
        str | None, typer.Option("--history", help="A .parquet, .csv or .jsonl with the videos that users watched.")
    ] = None,
    ranker: Annotated[
        str | None, typer.Option("--ranker", help="The output of train with objective next_video.")
    ] = None,
    evaluate: Annotated[
        str | None, typer.Option("--evaluate", help="Later events, to measure the version before it becomes current.")
    ] = None,
    require: Annotated[
        str | None, typer.Option("--require", help="Keep the current version if worse: 'ndcg@10 >= transitions'.")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", help="Folder of the index and its versions.")] = None,
    append: Annotated[
        bool | None, typer.Option("--append", help="Keep what the current version has learned, if it still fits.")
    ] = None,
    overrides: Overrides = None,
) -> int:
    """Build a version of a searchable index from embeddings, and make it the current one."""
    from rich.console import Console

    from raypipe import api
    from raypipe.config import IndexConfig, load_config

    values = {
        "embeddings": embeddings,
        "catalogue": catalogue,
        "labels": labels,
        "history": history,
        "ranker": ranker,
        "evaluate": evaluate,
        "require": require,
        "output": output,
        "append": append,
    }
    settings = load_config(IndexConfig, config, values=values, overrides=overrides or ())
    console = Console()
    console.print(api.index(config=settings, console=console))
    return 0
