"""Options that several commands take."""

from typing import Annotated, Any

import typer


def config_file(command: str) -> Any:  # noqa: ANN401 - as typer types it
    """Describe the YAML file of a command."""
    return typer.Argument(help=f"A YAML file; jobs/{command}.yaml lists every key.", show_default=False)


Input = Annotated[str | None, typer.Option("--input", help="Folder, prefix, glob or manifest of videos.")]
Output = Annotated[str | None, typer.Option("--output", help="Folder of the embeddings: s3://BUCKET/PREFIX or a path.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key: backbone.name=resnet18.")
]
Retry = Annotated[str | None, typer.Option("--retry", help="Plan failed videos again: none, transient or all.")]
MaxFailed = Annotated[
    float | None, typer.Option("--max-failed-fraction", help="Exit with 3 when a larger share failed.")
]
