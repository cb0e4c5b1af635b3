"""The command ``raypipe plan``, which estimates an embed run."""

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli.app import CHECKS, Input, MaxFailed, Output, Overrides, Retry, command, config_file


@command(CHECKS)
def plan(
    config: Annotated[Path | None, config_file("embed")] = None,
    *,
    input_uri: Input = None,
    output: Output = None,
    overrides: Overrides = None,
    retry: Retry = None,
    max_failed_fraction: MaxFailed = None,
    hourly_price: Annotated[
        float | None, typer.Option(help="The price of one machine like this per hour, for the estimate.")
    ] = None,
) -> int:
    """Estimate the work, the time and the bottleneck of an embed run. Measures a few videos, and writes nothing."""
    from rich.console import Console

    from raypipe.config import EmbedConfig, load_config
    from raypipe.jobs.embed.estimate import estimate, estimate_table

    values = {"input": input_uri, "output": output, "retry": retry, "max_failed_fraction": max_failed_fraction}
    settings = load_config(EmbedConfig, config, values=values, overrides=overrides or ())
    Console().print(estimate_table(estimate(settings), hourly_price=hourly_price))
    return 0
