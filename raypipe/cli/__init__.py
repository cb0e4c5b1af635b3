"""The command line. Each command loads its configuration, calls one function, and turns errors into exit codes."""

from raypipe.cli import demo, init  # noqa: I001 - the order in which --help lists the commands
from raypipe.cli import embed, suggest, train, compress, classify, index, recommend, anomalies
from raypipe.cli import serve, submit
from raypipe.cli import plan, verify, evaluate, doctor
from raypipe.cli.app import app

__all__ = [
    "anomalies",
    "app",
    "classify",
    "compress",
    "demo",
    "doctor",
    "embed",
    "evaluate",
    "index",
    "init",
    "main",
    "plan",
    "recommend",
    "serve",
    "submit",
    "suggest",
    "train",
    "verify",
]


def main() -> None:
    """Run the command line."""
    app()
