"""Every metric and label that the dashboard queries is exported, by raypipe or by Ray."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.dashboard.modules.metrics
import yaml
from prometheus_client.parser import text_string_to_metric_families
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

from raypipe import cli
from raypipe.endpoint.http import NAMES
from raypipe.endpoint.metrics import EndpointMetrics
from raypipe.monitoring import DASHBOARD, SCRAPE_CONFIG, how_to_use, path_of
from raypipe.runs import progress as of_jobs
from raypipe.status import NOT_FAILED, Status

FUNCTIONS = {"avg", "histogram_quantile", "last_over_time", "max", "rate", "sum", "vector"}
GROUPING = re.compile(r"\b(?:by|on|group_left|group_right)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"([a-zA-Z_:]\w*)\{([^}]*)\}")
WORD = re.compile(r"[a-zA-Z_:]\w*")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
OF_PROMETHEUS = {"instance", "job"}
Exported = Mapping[str, set[str]]  # metric -> its labels
Panel = dict[str, Any]

dashboard: dict[str, Any] = json.loads(path_of(DASHBOARD).read_text())
panels: list[Panel] = dashboard["panels"]
charts = [panel for panel in panels if panel["type"] != "row"]
expressions = [target["expr"] for panel in charts for target in panel["targets"]]


def served() -> Exported:
    """Return the metrics that the endpoint exports after every event that it counts has happened."""
    manifest = {"created_at": datetime.now(UTC).isoformat(), "kind": "flat"}
    live = SimpleNamespace(index=SimpleNamespace(manifest=manifest), num_videos=1, version="v1")
    index = SimpleNamespace(live=live, broken=None, num_failed_polls=0)
    metrics = EndpointMetrics(index)  # type: ignore[arg-type]
    metrics.started("similar")
    metrics.answered("similar", 429, 0.1)
    metrics.batched("similar", 2)
    metrics.recommended(fallback=True, selectivity=0.5)
    families = text_string_to_metric_families(metrics.text().decode())
    samples = [sample for family in families for sample in family.samples]
    return {
        name: {label for s in samples if s.name == name for label in s.labels} for name in {s.name for s in samples}
    }


def of_shards() -> Exported:
    """Return the metrics that a job exports; Ray prefixes each name and keeps counters that end in _total."""
    counters, gauges = of_jobs._make_metrics()
    infos = [metric.info for metric in (*counters.values(), *gauges.values())]
    return {f"ray_{info['name']}": set(info["tag_keys"]) for info in infos}


def of_ray() -> Exported:
    """Return the metrics that Ray's own dashboards query, with all labels that Ray uses."""
    folder = Path(ray.dashboard.modules.metrics.__file__).parent / "dashboards"
    source = "\n".join(file.read_text() for file in folder.glob("*_panels.py"))
    labels = {name for group in GROUPING.findall(source) for name in WORD.findall(group)}
    labels |= {name for name, _, _ in MATCHER.findall(source)}
    return dict.fromkeys(re.findall(r"\bray_\w+", source), labels)


@pytest.fixture(scope="module")
def exported() -> Exported:
    return {**of_ray(), **of_shards(), **served()}


def tokens(expression: str) -> Iterator[tuple[str, bool]]:
    """Yield the words of an expression that are metrics or functions, and whether each is called."""
    bare = re.sub(r"\[[^]]*\]|\{[^}]*\}", "", GROUPING.sub("", expression))
    for found in WORD.finditer(bare):
        if found[0] not in {"and", "or", "unless"}:
            yield found[0], bare[found.end() :].lstrip().startswith("(")


def metrics_of(expression: str) -> set[str]:
    return {word for word, is_called in tokens(expression) if not is_called and word not in {"by", "on"}}


@pytest.mark.parametrize("expression", expressions)
def test_every_metric_is_exported(expression: str, exported: Exported) -> None:
    names = metrics_of(expression)
    assert names
    assert names <= exported.keys()


@pytest.mark.parametrize("expression", expressions)
def test_every_label_is_one_of_its_metrics(expression: str, exported: Exported) -> None:
    known = OF_PROMETHEUS.union(*(exported[name] for name in metrics_of(expression)))
    grouped = {label for group in GROUPING.findall(expression) for label in WORD.findall(group)}
    assert grouped <= known
    for name, matchers in SELECTOR.findall(expression):
        assert {label for label, _, _ in MATCHER.findall(matchers)} <= exported[name]


@pytest.mark.parametrize("expression", expressions)
def test_every_expression_is_well_formed(expression: str) -> None:
    assert {word for word, is_called in tokens(expression) if is_called} <= FUNCTIONS
    assert all(MATCHER.sub("", matchers).strip(" ,") == "" for _, matchers in SELECTOR.findall(expression))
    outside = re.sub(r'"[^"]*"', "", expression)
    assert '"' not in outside
    open_ones: list[str] = []
    for sign in outside:
        if sign in "([{":
            open_ones.append(sign)
        elif sign in ")]}":
            assert open_ones
            assert open_ones.pop() + sign in {"()", "[]", "{}"}
    assert not open_ones
    for word, rest in re.findall(r"(\w+)\((\w+[^()]*)\)", outside):
        assert word not in {"rate", "last_over_time"} or rest.endswith("[$window]")
    counters = re.findall(r"rate\((\w+)", outside)
    assert all(name.endswith(("_total", "_bucket", "_sum", "_count")) for name in counters)


def test_values_of_labels_are_those_that_are_counted() -> None:
    values = {(label, value) for text in expressions for label, _, value in MATCHER.findall(text)}
    assert {value for label, value in values if label == "status"} == {"|".join(sorted(NOT_FAILED)), "429"}
    assert {one for label, value in values if label == "endpoint" for one in value.split("|")} <= set(NAMES)
    assert {value for label, value in values if label == "stage"} == {"decode", "embed"}
    assert set(Status) > NOT_FAILED


def test_panels_have_all_that_a_reader_needs() -> None:
    assert max(Counter(panel["id"] for panel in panels).values()) == 1
    assert max(Counter(panel["title"] for panel in charts).values()) == 1
    for panel in charts:
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["legendFormat"] for target in panel["targets"])
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)


def test_panels_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below


def test_the_dashboard_works_with_any_data_source() -> None:
    assert dashboard["schemaVersion"] >= 39
    assert "id" not in dashboard, "that of another Grafana"
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels)))
    assert used == set(variables)


def test_prometheus_scrapes_ray_and_the_endpoint() -> None:
    config = yaml.safe_load(path_of(SCRAPE_CONFIG).read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert set(jobs) == {"ray", "raypipe-serve"}
    assert jobs["ray"]["file_sd_configs"][0]["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]  # noqa: S108
    assert jobs["raypipe-serve"]["metrics_path"] == "/metrics"
    assert jobs["raypipe-serve"]["static_configs"] == [{"targets": ["127.0.0.1:8000"]}]
    assert set(config) <= {"global", "scrape_configs"}


def test_doctor_says_where_the_files_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.app(["doctor", "--grafana"], prog_name="raypipe")
    assert not caught.value.code
    said = capsys.readouterr().out
    assert said == f"{how_to_use()}\n"
    assert len(said.splitlines()) == 3
    for name in (SCRAPE_CONFIG, DASHBOARD):
        assert path_of(name).is_file()
        assert str(path_of(name)) in said
