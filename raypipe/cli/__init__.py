"""The command line: each command loads its configuration, calls one function and turns an error into an exit code."""

from raypipe.cli import embed, train, index, serve  # noqa: I001 - the order in which --help lists the commands
from raypipe.cli import submit, demo
from raypipe.cli.app import app

__all__ = ["app", "demo", "embed", "index", "main", "serve", "submit", "train"]


def main() -> None:
    """Run the command line."""
    app()
