"""The command ``raypipe recommend``."""

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli.app import JOBS, TOO_MANY_BAD, Overrides, command, config_file, say, show


@command(JOBS)
def recommend(
    config: Annotated[Path | None, config_file("recommend")] = None,
    *,
    index_uri: Annotated[str | None, typer.Option("--index", help="The output folder of index.")] = None,
    history: Annotated[
        str | None, typer.Option("--history", help="A .parquet, .csv or .jsonl with user_id and history.")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", help="Folder of the recommendations.")] = None,
    overrides: Overrides = None,
) -> int:
    """Recommend videos to every user of a history file, as the endpoint would. Run again to resume."""
    from raypipe import api
    from raypipe.config import RecommendConfig, load_config

    values = {"index": index_uri, "history": history, "output": output}
    settings = load_config(RecommendConfig, config, values=values, overrides=overrides or ())
    result = api.recommend(config=settings)
    if not result.is_new:
        say(f"Nothing to do: {settings.output} already holds the recommendations for this history.", err=False)
    show(result)
    if result.unknown_fraction > settings.max_unknown_fraction:
        say(
            f"The index does not hold {result.unknown_fraction:.1%} of the ids in histories; "
            f"max_unknown_fraction is {settings.max_unknown_fraction:g}."
        )
        return TOO_MANY_BAD
    return 0
