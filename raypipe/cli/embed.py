"""The command ``raypipe embed``."""

from pathlib import Path
from typing import Annotated

from raypipe.cli.app import (
    JOBS,
    TOO_MANY_BAD,
    Input,
    MaxFailed,
    Output,
    Overrides,
    Retry,
    command,
    config_file,
    say,
    show,
)


@command(JOBS)
def embed(
    config: Annotated[Path | None, config_file("embed")] = None,
    *,
    input_uri: Input = None,
    output: Output = None,
    overrides: Overrides = None,
    retry: Retry = None,
    max_failed_fraction: MaxFailed = None,
) -> int:
    """Decode and embed every new video of a bucket. Run again to resume, or to add new videos."""
    from raypipe import api
    from raypipe.config import EmbedConfig, load_config

    values = {"input": input_uri, "output": output, "retry": retry, "max_failed_fraction": max_failed_fraction}
    settings = load_config(EmbedConfig, config, values=values, overrides=overrides or ())
    result = api.embed(config=settings)
    show(result)
    failed = result.record.failed_fraction
    if failed > settings.max_failed_fraction:
        say(f"{failed:.1%} of the videos failed; max_failed_fraction is {settings.max_failed_fraction:g}.")
        return TOO_MANY_BAD
    return 0
