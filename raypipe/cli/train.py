"""Learn labels from embeddings, and give them to a whole catalogue: train, classify."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raypipe.cli.app import Overrides, command, config_file

if TYPE_CHECKING:
    from raypipe.config import ClassifyConfig, TrainConfig

Embeddings = Annotated[str | None, typer.Option("--embeddings", help="The output folder of embed.")]


@command
def train(
    config: Annotated[Path | None, config_file("train")] = None,
    *,
    embeddings: Embeddings = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="A .csv, .parquet or .jsonl with video_id and label.")
    ] = None,
    labels_from: Annotated[
        str | None, typer.Option("--labels-from", help="folder: a video's parent folder is its label.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", help="Folder of the model, its checkpoints and its report.")
    ] = None,
    overrides: Overrides = None,
) -> int:
    """Fine-tune a GPT-2 over the frame embeddings of labelled videos; again: go on from the last checkpoint."""
    from raypipe.config import TrainConfig, load_config

    values = {"embeddings": embeddings, "labels": labels, "labels_from": labels_from, "output": output}
    return _train(load_config(TrainConfig, config, values=values, overrides=overrides or ()))


def _train(settings: "TrainConfig") -> int:
    from rich.console import Console

    from raypipe.jobs.train.job import run_train
    from raypipe.runs.summary_tables import training_table

    console = Console()
    run = run_train(settings, console=console)
    if not run.is_new:
        console.print(f"Nothing to do: {settings.output} holds the finished model of this very training.")
    console.print(training_table(run.record, report_uri=run.report_uri))
    return 0


@command
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
    """Label every new video of sealed embeddings with a trained model; again: resume, or only what is new."""
    from raypipe.config import ClassifyConfig, load_config

    values = {"embeddings": embeddings, "model": model, "output": output}
    return _classify(load_config(ClassifyConfig, config, values=values, overrides=overrides or ()))


def _classify(settings: "ClassifyConfig") -> int:
    from rich.console import Console

    from raypipe.jobs.classify.job import run_classify
    from raypipe.runs.summary_tables import final_table

    console = Console()
    run = run_classify(settings, console=console)
    if run.record.plans:
        console.print(final_table(run.record, report_uri=run.report_uri))
    else:
        console.print(
            f"Nothing new: every video of {settings.embeddings} is classified and sealed in {settings.output}."
        )
    return 0
