"""The command ``raypipe init``, which prints a configuration to start from."""

from typing import Annotated, Literal

import typer

from raypipe.cli.app import START, command


@command(START)
def init(
    job: Annotated[
        Literal[
            "embed",
            "suggest",
            "train",
            "compress",
            "classify",
            "index",
            "recommend",
            "anomalies",
            "evaluate",
            "serve",
        ],
        typer.Argument(help="The command that reads the configuration."),
    ],
    *,
    schema: Annotated[bool, typer.Option("--schema", help="Print a JSON Schema of it, for an editor.")] = False,
) -> int:
    """Print a YAML file with every key, its default and its meaning. Example: raypipe init embed > embed.yaml."""
    from raypipe.config.templates import json_schema, template

    typer.echo(json_schema(job) if schema else template(job), nl=False)
    return 0
