"""Make embeddings searchable, and recommend to many users at once: index, recommend."""

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli.app import TOO_MANY_BAD, Overrides, command, config_file, say


@command
def index(
    config: Annotated[Path | None, config_file("index")] = None,
    *,
    embeddings: Annotated[str | None, typer.Option("--embeddings", help="The output folder of embed.")] = None,
    catalogue: Annotated[
        str | None,
        typer.Option(
            "--catalogue", "--catalog", help="A .csv, .parquet or .jsonl with video_id and any other columns."
        ),
    ] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="The output folder of classify.")] = None,
    output: Annotated[str | None, typer.Option("--output", help="Folder of the index and its versions.")] = None,
    append: Annotated[
        bool | None, typer.Option("--append", help="Keep what the current version has learned, if it still fits.")
    ] = None,
    overrides: Overrides = None,
) -> int:
    """Build a version of a searchable index from sealed embeddings, and make it the current one."""
    from rich.console import Console

    from raypipe.config import IndexConfig, load_config

    values = {"embeddings": embeddings, "catalogue": catalogue, "labels": labels, "output": output, "append": append}
    settings = load_config(IndexConfig, config, values=values, overrides=overrides or ())
    from raypipe.jobs.index.job import index_table, run_index  # only once the configuration is known to be right

    console = Console()
    run = run_index(settings, console=console)
    if run.is_new:
        console.print(index_table(run))
    else:
        console.print(f"Nothing new: version {run.manifest['id']} of {settings.output} holds all of it.")
    return 0


@command
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
    """Recommend videos to every user of a history file, as the endpoint would; again: go on with what is missing."""
    from rich.console import Console

    from raypipe.config import RecommendConfig, load_config

    values = {"index": index_uri, "history": history, "output": output}
    settings = load_config(RecommendConfig, config, values=values, overrides=overrides or ())
    from raypipe.jobs.recommend.job import RecommendOutput, run_recommend  # after the configuration, as in index
    from raypipe.runs.summary_tables import recommend_table
    from raypipe.storage import Folder

    console = Console()
    run = run_recommend(settings, console=console)
    if not run.record.plans:
        console.print(f"Nothing to do: {settings.output} holds the recommendations for this very history.")
    held = RecommendOutput.read(Folder(settings.output))
    table = recommend_table(
        run.record,
        report_uri=run.report_uri,
        num_users=held.num_users,
        statuses=held.statuses,
        unknown_ids=held.unknown_ids,
        index=f"{held.index} at {held.index_version}",
    )
    console.print(table)
    if held.unknown_fraction > settings.max_unknown_fraction:
        say(
            f"The index does not hold {held.unknown_fraction:.1%} of the ids in histories; "
            f"max_unknown_fraction is {settings.max_unknown_fraction:g}."
        )
        return TOO_MANY_BAD
    return 0
