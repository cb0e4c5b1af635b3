"""Where the two files lie, and what to do with them."""

from importlib.resources import files
from pathlib import Path

SCRAPE_CONFIG = "prometheus.yml"
DASHBOARD = "grafana-dashboard.json"


def path_of(name: str) -> Path:
    """Where a file of this package lies."""
    return Path(str(files(__package__) / name))


def how_to_use() -> str:
    """Where the two are and how to use them, in three lines."""
    return (
        f"Prometheus: {path_of(SCRAPE_CONFIG)} (on the head node: prometheus --config.file=THAT_FILE)\n"
        f"Grafana: {path_of(DASHBOARD)} (Dashboards, New, Import; then choose the Prometheus data source)\n"
        "Nodes need ray[default] to tell of themselves and of jobs; the endpoint tells of itself at /metrics."
    )
