"""The command ``raypipe anomalies``."""

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli.app import JOBS, Embeddings, Overrides, command, config_file, show


@command(JOBS)
def anomalies(
    config: Annotated[Path | None, config_file("anomalies")] = None,
    *,
    index_uri: Annotated[str | None, typer.Option("--index", help="The output folder of index: the catalogue.")] = None,
    embeddings: Embeddings = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The output folder of train with objective=masked_frame.")
    ] = None,
    times: Annotated[
        str | None, typer.Option("--times", help="A .csv, .parquet or .jsonl with video_id and time.")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", help="Folder of the scores and the report.")] = None,
    overrides: Overrides = None,
) -> int:
    """Find the embedded videos that are unlike everything in an index, and say since when. Run again to resume."""
    from raypipe import api
    from raypipe.config import AnomaliesConfig, load_config

    values = {"index": index_uri, "embeddings": embeddings, "model": model, "times": times, "output": output}
    show(api.anomalies(config=load_config(AnomaliesConfig, config, values=values, overrides=overrides or ())))
    return 0
