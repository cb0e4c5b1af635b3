"""The command ``raypipe evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli.app import CHECKS, Overrides, command, config_file, say


@command(CHECKS)
def evaluate(
    config: Annotated[Path | None, config_file("evaluate")] = None,
    *,
    index_uri: Annotated[str | None, typer.Option("--index", help="The output folder of index.")] = None,
    history: Annotated[
        str | None, typer.Option("--history", help="A .parquet, .csv or .jsonl with the videos that users watched.")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", help="Folder of the metrics.")] = None,
    require: Annotated[
        str | None, typer.Option("--require", help="Exit with 1 if measurably worse: 'ndcg@10 >= transitions'.")
    ] = None,
    overrides: Overrides = None,
) -> int:
    """Measure how well an index predicts what users watched next, against simple baselines."""
    from rich.console import Console

    from raypipe import api
    from raypipe.config import EvaluateConfig, load_config

    values = {"index": index_uri, "history": history, "output": output, "require": require}
    settings = load_config(EvaluateConfig, config, values=values, overrides=overrides or ())
    console = Console()
    result = api.evaluate(config=settings, console=console)
    console.print(result)
    if not result.meets_requirement:
        say(f"The index does not meet the requirement {settings.require}.")
        return 1
    return 0
