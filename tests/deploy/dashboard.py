"""The dashboard and the alerts, parsed: their expressions, and the metrics and labels that these use."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from ray.util.metrics import Counter, Gauge, Histogram

from ray_apps.cluster.metrics import METRICS

ROOT = Path(__file__).parents[2]
GRAFANA, PROMETHEUS = ROOT / "deploy/grafana", ROOT / "deploy/prometheus"
DASHBOARD = json.loads((GRAFANA / "lrem.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
ENDINGS = {Counter: ("_total",), Gauge: ("",), Histogram: ("_bucket",)}  # Ray's sums are not exact, so no `_sum`
RAY_LABELS = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId", "instance", "job"}  # on every series
RAY_METRICS = {
    "ray_resources": {"Name", "State"},
    "ray_object_store_memory": {"Location"},
    **{f"ray_cluster_{state}_nodes": {"node_type"} for state in ("active", "pending", "failed")},
    **{
        f"ray_node_{name}": {"ip"}
        for name in ("cpu_utilization", "mem_used", "mem_total", "disk_utilization_percentage")
    },
    "ray_node_gpus_utilization": {"ip", "GpuIndex"},
    "ray_serve_deployment_queued_queries": {"deployment", "application"},
}
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(not PROMTOOL, reason="promtool is missing: apt-get install prometheus")


class Selector(NamedTuple):
    """A metric in an expression; `metric` is its key in METRICS, or None for one of Ray's own."""

    name: str
    metric: str | None
    ending: str
    matchers: list[tuple[str, str, str]]  # label, operator, value


def _expressions() -> Iterator[tuple[str, str]]:
    """Yield the place and the text of every expression."""
    for panel in PANELS:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    for variable in DASHBOARD["templating"]["list"][1:]:
        yield variable["name"], re.sub(r"^label_values\((.+), (\w+)\)$", r"count by (\2) (\1)", variable["definition"])
    yield from ((rule["alert"], rule["expr"]) for rule in RULES)


EXPRESSIONS = list(_expressions())


def selectors(expression: str) -> list[Selector]:
    """Return the metrics of an expression."""
    result = []
    for name, matchers in re.findall(r"\b(ray_\w+)(?:\{([^}]*)\})?", expression):
        conditions = re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', matchers)
        if not name.startswith("ray_lrem_"):
            result.append(Selector(name, None, "", conditions))
            continue
        ours = name.removeprefix("ray_lrem_")
        known = [m for m in METRICS if ours.startswith(m) and ours.removeprefix(m) in ENDINGS[METRICS[m].kind]]
        assert len(known) == 1, f"{name} is not in METRICS, or is of another kind"
        result.append(Selector(name, known[0], ours.removeprefix(known[0]), conditions))
    return result


def labels(selector: Selector) -> set[str]:
    """Return all labels of the series of a metric."""
    own = METRICS[selector.metric].labels if selector.metric else RAY_METRICS[selector.name]
    return {*own, *RAY_LABELS, *({"le"} if selector.ending == "_bucket" else ())}


def as_sent(expression: str) -> str:
    """Return an expression as Grafana would send it to Prometheus."""
    return expression.replace("$__rate_interval", "2m").replace("$run", ".*").replace("$stage", ".*")


def promtool(*words: str | Path) -> None:
    """Run promtool, which has to succeed."""
    done = subprocess.run([str(PROMTOOL), *map(str, words)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
