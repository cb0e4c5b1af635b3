"""The command ``raypipe classify``."""

from pathlib import Path
from typing import Annotated

import typer

from raypipe.cli.app import JOBS, Embeddings, Overrides, command, config_file, show


@command(JOBS)
def classify(
    config: Annotated[Path | None, config_file("classify")] = None,
    *,
    embeddings: Embeddings = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The output folder of train, or one of save_pretrained.")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", help="Folder of the predictions.")] = None,
    overrides: Overrides = None,
) -> int:
    """Label every new video of sealed embeddings with a trained model. Run again to resume, or to add new videos."""
    from raypipe import api
    from raypipe.config import ClassifyConfig, load_config

    values = {"embeddings": embeddings, "model": model, "output": output}
    show(api.classify(config=load_config(ClassifyConfig, config, values=values, overrides=overrides or ())))
    return 0
