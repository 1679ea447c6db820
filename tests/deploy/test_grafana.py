"""deploy/grafana: every metric, label and function of the dashboard exists and is used as it should be.

No Grafana is available here: the generator keeps to its data model, and Prometheus checks the queries it would send.
"""

import importlib.util
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
import ray.dashboard
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE
from ray.util.metrics import Gauge

from ray_apps.cluster.metrics import METRICS
from tests.deploy.dashboard import (
    DASHBOARD,
    EXPRESSIONS,
    GRAFANA,
    PANELS,
    PROMETHEUS,
    RAY_METRICS,
    ROOT,
    RULES,
    labels,
    selectors,
)


def within(expression: str, opening: str) -> Iterator[tuple[re.Match[str], str]]:
    """Yield each match of a pattern that ends with an opening bracket, and the text inside the brackets."""
    for match in re.finditer(opening, expression):
        depth, end = 1, match.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(expression[end], 0)
            end += 1
        yield match, expression[match.end() : end - 1]


def test_the_dashboard_is_what_the_generator_writes() -> None:
    spec = importlib.util.spec_from_file_location("make_dashboard", GRAFANA / "make.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.text() == (GRAFANA / "lrem.json").read_text(), "run: python deploy/grafana/make.py"


def test_panels_are_complete_and_do_not_overlap() -> None:
    every = DASHBOARD["panels"]
    assert [panel["title"] for panel in every if panel["type"] == "row"] == [
        *("Training", "Rollouts", "Curation", "Serving", "Cluster")
    ]
    assert len({panel["id"] for panel in every}) == len(every)
    assert len({panel["title"] for panel in every}) == len(every)
    for panel in PANELS:
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert {t["datasource"]["uid"] for t in panel["targets"]} == {panel["datasource"]["uid"]} == {"${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for one, other in combinations([panel["gridPos"] for panel in every], 2):
        apart = any(a[at] + a[size] <= b[at] for a, b in ((one, other), (other, one)) for at, size in ("xw", "yh"))
        assert apart, (one, other)
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "run", "stage"]


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_metrics_labels_and_functions(where: str, expression: str) -> None:
    """Only metrics and labels that exist, and each kind of metric in functions that are made for it."""
    used = selectors(expression)
    assert used
    for selector in used:
        assert {label for label, _, _ in selector.matchers} <= labels(selector), selector
    for _, inside in within(expression, r"\b(?:rate|increase)\("):
        assert all(selector.ending in ("_total", "_bucket") for selector in selectors(inside)), inside
    for _, inside in within(expression, r"\b\w+_over_time\("):
        assert all(selector.metric and METRICS[selector.metric].kind is Gauge for selector in selectors(inside)), inside
    for _, inside in within(expression, r"\bhistogram_quantile\("):
        assert all(selector.ending == "_bucket" for selector in selectors(inside))
        assert re.search(r"by \([^)]*\ble\)", inside)
    for match, inside in within(expression, r"\bby \(([^)]*)\) \("):
        assert all(set(match[1].split(", ")) <= labels(selector) for selector in selectors(inside)), inside
    for match in re.finditer(r"\bon \(([^)]*)\)", expression):
        assert all(set(match[1].split(", ")) <= labels(selector) for selector in used)


def test_legends_and_messages_name_labels_that_remain() -> None:
    """A label that the aggregation drops would be empty."""
    texts = [(target["legendFormat"], target["expr"]) for panel in PANELS for target in panel["targets"]]
    texts += [(text, rule["expr"]) for rule in RULES for text in rule["annotations"].values()]
    for text, expression in texts:
        named = set(re.findall(r"\{\{(?: \$labels\.)?(\w+) ?\}\}", text))
        kept = {label for inside in re.findall(r"\bby \(([^)]*)\)", expression) for label in inside.split(", ")}
        assert named <= kept, (text, expression)
        assert text


def test_every_metric_is_on_a_panel() -> None:
    expressions = [target["expr"] for panel in PANELS for target in panel["targets"]]
    assert {selector.metric for text in expressions for selector in selectors(text)} - {None} == {*METRICS}


def test_paths_of_the_service_are_routes_of_the_ingress() -> None:
    routes = {*re.findall(r'@app\.\w+\(\s*"([^"]+)"', (ROOT / "ray_apps/serving/ingress.py").read_text())}
    matchers = [matcher for _, text in EXPRESSIONS for selector in selectors(text) for matcher in selector.matchers]
    paths = {path for label, _, value in matchers if label == "path" for path in value.split("|")}
    assert paths == {"/v1/search", "/v1/embeddings"} <= routes


def test_metrics_of_ray_exist_in_the_installed_ray() -> None:
    """Metrics of nodes are in the source of Ray's agent, those of raylets and Serve in Ray's own dashboards."""
    folder = Path(ray.dashboard.__file__).parent / "modules"
    agent = (folder / "reporter/reporter_agent.py").read_text()
    dashboards = (folder / f"metrics/dashboards/{name}_dashboard_panels.py" for name in ("default", "serve"))
    panels = "".join(file.read_text() for file in dashboards)
    used = [selector for _, expression in EXPRESSIONS for selector in selectors(expression)]
    assert {selector.name for selector in used if selector.metric is None} == {*RAY_METRICS}
    for name, own in RAY_METRICS.items():
        assert f'METRICS_GAUGES["{name.removeprefix("ray_")}"]' in agent or f"({name}{{{{" in panels, name
        assert all(
            f'"{label}":' in agent or f"{label}=" in panels or re.search(rf"by \([^)]*\b{label}\b", panels)
            for label in own
        ), name


def test_provisioning_and_discovery_fit() -> None:
    [source] = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/lrem.yaml").read_text())["providers"]
    scraping = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    [job] = scraping["scrape_configs"]
    assert source["type"] == DASHBOARD["templating"]["list"][0]["query"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == scraping["global"]["scrape_interval"] == "10s"
    assert provider["options"]["path"] in (GRAFANA / "README.md").read_text()
    assert job["file_sd_configs"] == [{"files": [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]}]
