"""A Prometheus configuration and a Grafana dashboard, to monitor jobs and the endpoint."""

from importlib.resources import files
from pathlib import Path

SCRAPE_CONFIG = "prometheus.yml"
DASHBOARD = "grafana-dashboard.json"


def path_of(name: str) -> Path:
    """Return the path of a file in this package."""
    return Path(str(files(__package__) / name))


def how_to_use() -> str:
    """Return a text of three lines: where the Prometheus and Grafana files are, and how to use them."""
    return (
        f"Prometheus: {path_of(SCRAPE_CONFIG)} (on the head node: prometheus --config.file=THAT_FILE)\n"
        f"Grafana: {path_of(DASHBOARD)} (Dashboards, New, Import; then choose the Prometheus data source)\n"
        "Metrics of nodes and jobs need ray[default] on every node; the endpoint exports its own at /metrics."
    )
