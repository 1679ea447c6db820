"""deploy/grafana and deploy/prometheus: every name, label and function against METRICS, the trainers and promtool.

There is no Grafana here: its model is kept by the generator, and what it would ask of Prometheus is asked.
"""

import ast
import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import ray.dashboard
import torch
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE
from ray.util.metrics import Counter, Gauge, Histogram

from lrem.config import ColdStartConfig, ModelConfig
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.tokenizer import train_tokenizer
from lrem.training.cold_start_step import accumulate_gradients as cold_start
from lrem.training.cold_start_step import state_gradient_norms
from lrem.training.grpo_step import accumulate_gradients as reinforce
from lrem.training.rewards import BUILT_IN
from ray_apps.cluster.metrics import METRICS
from tests.unit.training.test_gradcache import make_batch
from tests.unit.training.test_grpo_step import TEMPERATURE, TITLES, extra, make, settings

ROOT = Path(__file__).parents[2]
GRAFANA, PROMETHEUS = ROOT / "deploy/grafana", ROOT / "deploy/prometheus"
DASHBOARD = json.loads((GRAFANA / "lrem.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
ENDINGS = {Counter: ("_total",), Gauge: ("",), Histogram: ("_bucket",)}  # Ray's sums are not exact, so no `_sum`
RAYS = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId", "instance", "job"}  # beside our labels
UNSHOWN = {"epoch", "actor_restarts", "samples_per_s", "reward_s"}  # said better by other metrics, or part of train_s
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(not PROMTOOL, reason="no promtool here: apt-get install prometheus")


class Use(NamedTuple):
    """A selector in an expression; `metric` is a key of METRICS, or None for one of Ray's own."""

    name: str
    metric: str | None
    ending: str
    matchers: list[tuple[str, str, str]]  # label, operator, value


def expressions() -> Iterator[tuple[str, str]]:
    """Where it stands, and what it is."""
    for panel in PANELS:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    for variable in DASHBOARD["templating"]["list"][1:]:
        yield variable["name"], re.sub(r"^label_values\((.+), (\w+)\)$", r"count by (\2) (\1)", variable["definition"])
    yield from ((rule["alert"], rule["expr"]) for rule in RULES)


EXPRESSIONS = list(expressions())


def uses(expression: str) -> list[Use]:
    found = []
    for name, matchers in re.findall(r"\b(ray_\w+)(?:\{([^}]*)\})?", expression):
        asked = re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', matchers)
        if not name.startswith("ray_lrem_"):
            found.append(Use(name, None, "", asked))
            continue
        ours = name.removeprefix("ray_lrem_")
        known = [m for m in METRICS if ours.startswith(m) and ours.removeprefix(m) in ENDINGS[METRICS[m].kind]]
        assert len(known) == 1, f"{name} is none of METRICS, or of another kind"
        found.append(Use(name, known[0], ours.removeprefix(known[0]), asked))
    return found


def within(expression: str, opening: str) -> Iterator[tuple[re.Match[str], str]]:
    """What stands in the brackets that a pattern, which ends with the first of them, opens."""
    for match in re.finditer(opening, expression):
        depth, end = 1, match.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(expression[end], 0)
            end += 1
        yield match, expression[match.end() : end - 1]


def labels(use: Use) -> set[str]:
    """All that a series of this name has."""
    own = METRICS[use.metric].labels if use.metric else RAY_OWN[use.name]
    return {*own, *RAYS, *({"le"} if use.ending == "_bucket" else ())}


RAY_OWN = {
    "ray_resources": {"Name", "State"},
    "ray_object_store_memory": {"Location"},
    **{f"ray_cluster_{what}_nodes": {"node_type"} for what in ("active", "pending", "failed")},
    **{
        f"ray_node_{what}": {"ip"}
        for what in ("cpu_utilization", "mem_used", "mem_total", "disk_utilization_percentage")
    },
    "ray_node_gpus_utilization": {"ip", "GpuIndex"},
    "ray_serve_deployment_queued_queries": {"deployment", "application"},
}


def test_the_dashboard_is_what_the_generator_writes() -> None:
    spec = importlib.util.spec_from_file_location("make_dashboard", GRAFANA / "make.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert made.text() == (GRAFANA / "lrem.json").read_text(), "run: python deploy/grafana/make.py"


def test_panels_are_whole_and_none_lies_on_another() -> None:
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
    """Only what exists, each kind in the functions that are made for it."""
    found = uses(expression)
    assert found
    for use in found:
        assert {label for label, _, _ in use.matchers} <= labels(use), use
    for _, inside in within(expression, r"\b(?:rate|increase)\("):
        assert all(use.ending in ("_total", "_bucket") for use in uses(inside)), inside
    for _, inside in within(expression, r"\b\w+_over_time\("):
        assert all(use.metric and METRICS[use.metric].kind is Gauge for use in uses(inside)), inside
    for _, inside in within(expression, r"\bhistogram_quantile\("):
        assert all(use.ending == "_bucket" for use in uses(inside))
        assert re.search(r"by \([^)]*\ble\)", inside)
    for match, inside in within(expression, r"\bby \(([^)]*)\) \("):
        assert all(set(match[1].split(", ")) <= labels(use) for use in uses(inside)), inside
    for match in re.finditer(r"\bon \(([^)]*)\)", expression):
        assert all(set(match[1].split(", ")) <= labels(use) for use in found)


def test_legends_and_messages_name_labels_that_are_left() -> None:
    """A label that no aggregation keeps would be empty."""
    said = [(target["legendFormat"], target["expr"]) for panel in PANELS for target in panel["targets"]]
    said += [(text, rule["expr"]) for rule in RULES for text in rule["annotations"].values()]
    for text, expression in said:
        named = set(re.findall(r"\{\{(?: \$labels\.)?(\w+) ?\}\}", text))
        kept = {label for inside in re.findall(r"\bby \(([^)]*)\)", expression) for label in inside.split(", ")}
        assert named <= kept, (text, expression)
        assert text


def test_every_metric_is_on_a_panel() -> None:
    assert {use.metric for panel in PANELS for t in panel["targets"] for use in uses(t["expr"])} - {None} == {*METRICS}


@pytest.fixture(scope="module")
def logged() -> set[str]:
    """The names of the values that the trainers log: of a real step of each stage on a tiny model, and, as the rest
    needs DeepSpeed and engines, what the trainers' sources add to that.
    """
    tokenizer = train_tokenizer([f" {title}" for title in TITLES], 300)
    shape = ModelConfig(hidden_size=32, intermediate_size=48, layers=1, heads=2, kv_heads=2)
    model, cpu = ReasoningEmbedder.from_config(shape, tokenizer, seed=0), torch.device("cpu")
    names = {*cold_start(make_batch(model), ColdStartConfig(), model, lambda loss, _: loss.backward(), cpu)}
    names |= {*state_gradient_norms(model.state_gradients, cpu)}
    rl = settings("kl", rewards=dict.fromkeys(BUILT_IN, 1.0))
    forward: Callable[..., Any] = lambda sequences: model(sequences, TEMPERATURE)  # noqa: E731
    batch = make(model, [0, 1, 2])
    step = reinforce(batch, rl, 9, 12, forward, lambda loss, _: loss.backward(), cpu, extra(model), forward)
    return names | {*step.values} | added("cold_start", "step", "_speed") | added("reinforce", "step", "update") | dev()


def functions(module: str, *names: str) -> Iterator[ast.AST]:
    tree = ast.parse((ROOT / f"ray_apps/{module}.py").read_text())
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name in names:
            yield from ast.walk(function)


def texts(nodes: list[ast.expr | None]) -> set[str]:
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def added(module: str, *names: str) -> set[str]:
    """Keys of dicts, keys that are assigned to, and the names of phases, which are tuples."""
    found: set[str] = set()
    for node in functions(module, *names):
        if isinstance(node, ast.Dict):
            found |= texts(node.keys)
        if isinstance(node, ast.Assign):
            found |= texts([one.slice for one in node.targets if isinstance(one, ast.Subscript)])
        if isinstance(node, ast.Tuple):
            found |= texts([*node.elts])
    assert found
    return found


def dev() -> set[str]:
    """What loop.py puts `dev_` before."""
    found = [texts([*node.elts]) for node in functions("dev_set", "measure") if isinstance(node, ast.Tuple)]
    return {f"dev_{name}" for names in found for name in names}


def test_panels_name_what_the_trainers_log(logged: set[str]) -> None:
    shown: dict[str, set[str]] = {}
    for panel in PANELS:
        for use in (use for t in panel["targets"] for use in uses(t["expr"]) if use.metric == "training"):
            asked = [(operator, value) for label, operator, value in use.matchers if label == "name"]
            found = {name for name in logged if all(bool(re.fullmatch(v, name)) != ("!" in o) for o, v in asked)}
            plain = {name for o, v in asked if "!" not in o and re.fullmatch(r"[\w|]+", v) for name in v.split("|")}
            assert plain <= logged, f"{panel['title']}: nothing logs {plain - logged}"
            assert found, (panel["title"], asked)
            shown.setdefault(panel["title"], set()).update(found)
    assert shown["Reward and its parts"] == {"reward", *(f"reward_{name}" for name in BUILT_IN)}
    assert logged - set().union(*shown.values()) == UNSHOWN, "put them on a panel, or into UNSHOWN"


def test_paths_of_the_service_are_its_own() -> None:
    routes = {*re.findall(r'@app\.\w+\(\s*"([^"]+)"', (ROOT / "ray_apps/serving/ingress.py").read_text())}
    asked = [v for _, e in EXPRESSIONS for use in uses(e) for label, _, v in use.matchers if label == "path"]
    assert {path for value in asked for path in value.split("|")} == {"/v1/search", "/v1/embeddings"} <= routes


def test_rays_metrics_are_in_this_ray() -> None:
    """Those that nodes measure in the agent that does, the raylets' and Serve's in Ray's own dashboards."""
    folder = Path(ray.dashboard.__file__).parent / "modules"
    agent = (folder / "reporter/reporter_agent.py").read_text()
    dashboards = (folder / f"metrics/dashboards/{name}_dashboard_panels.py" for name in ("default", "serve"))
    panels = "".join(file.read_text() for file in dashboards)
    found = {use.name for _, expression in EXPRESSIONS for use in uses(expression) if use.metric is None}
    assert found == {*RAY_OWN}
    for name, own in RAY_OWN.items():
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


def promtool(*words: str | Path) -> None:
    done = subprocess.run([str(PROMTOOL), *map(str, words)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize("name", ["prometheus", "service"])
def test_prometheus_takes_its_configuration_and_the_alerts(name: str) -> None:
    promtool("check", "config", PROMETHEUS / f"{name}.yml")
    promtool("check", "rules", PROMETHEUS / "alerts.yml")


def plain(expression: str) -> str:
    """As Grafana would send it."""
    return expression.replace("$__rate_interval", "2m").replace("$run", ".*").replace("$stage", ".*")


@needs_promtool
def test_prometheus_understands_every_expression(tmp_path: Path) -> None:
    rules = [{"record": f"e{n}", "expr": plain(expression)} for n, (_, expression) in enumerate(EXPRESSIONS)]
    assert not [rule for rule in rules if "$" in rule["expr"]]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yml")


DONE, TOTAL = (f'ray_lrem_progress_{what}{{run="r",stage="s",WorkerId="a"}}' for what in ("done", "goal"))
AGAIN, OF = (series.replace('"a"', '"b"') for series in (DONE, TOTAL))  # in another process
ANSWERS = 'ray_lrem_requests_total{{path="{}",status="{}"}}'
LAG = {'ray_lrem_training_step{run="r",stage="reinforce"}': "0+1x60"}
VERSION = 'ray_lrem_rollout_version{run="r"}'
FAILED, ASKED = (f'ray_lrem_curation_{what}_total{{run="r",stage="judge"}}' for what in ("failures", "questions"))
# series, a value a minute, `_` where Ray shows none → in which minutes the alert fires, and in which it does not
CASES: list[tuple[str, dict[str, str], dict[int, bool]]] = [
    ("StageStandsStill", {DONE: "0+1x30 _x90", TOTAL: "99+0x30 _x90"}, {60: False, 95: True}),
    ("StageStandsStill", {DONE: "0+1x30 30+0x90", TOTAL: "99+0x120"}, {60: False, 95: True}),  # if it were shown
    ("StageStandsStill", {DONE: "0+1x99 _x90", TOTAL: "99+0x99 _x90"}, {180: False}),
    (
        "StageStandsStill",  # killed, then resumed in another process and finished
        {
            DONE: "0+1x30 _x150",
            TOTAL: "99+0x30 _x150",
            AGAIN: "_x39 30+1x69 _x80",
            OF: "_x39 99+0x69 _x80",
        },
        {180: False},
    ),
    ("StageStandsStill", {DONE: "0 _x13 1 _x13 2 _x13 3 _x13 4 _x13 5 _x13 6", TOTAL: "9+0x90"}, {84: False}),
    (
        "EnginesReplacedOften",
        {'ray_lrem_rollout_restarts_total{run="r"}': "_x9 1 2 3 4+0x80"},
        {11: False, 15: True, 80: False},
    ),
    ("StaleRollouts", LAG | {VERSION: "0+0x60"}, {15: False, 30: True}),
    ("StaleRollouts", LAG | {VERSION: "1+1x60"}, {30: False, 60: False}),
    ("CurationFailures", {ASKED: "0+10x60 600+0x90", FAILED: "_x60 60+0x90"}, {59: False, 65: True, 125: False}),
    ("CurationFailures", {ASKED: "0+10x60 600+0x90", FAILED: "_x60 6+0x90"}, {65: False}),
    ("ServerErrors", {ANSWERS.format("/", 200): "0+100x60", ANSWERS.format("/", 503): "0+6x60"}, {3: False, 20: True}),
    ("ServerErrors", {ANSWERS.format("/", 200): "0+100x60", ANSWERS.format("/", 429): "0+6x60"}, {20: False}),
    (
        "Degraded",
        {
            'ray_lrem_degraded_total{cause="resting"}': "0+20x60",
            ANSWERS.format("/v1/search", 200): "0+100x60",
            ANSWERS.format("/", 200): "0+900x60",
        },
        {8: False, 20: True},
    ),
    ("MissingShards", {"ray_lrem_missing_shards_total": "_x20 1+0x60"}, {15: False, 27: True, 40: False}),
]
# titles → series, a value a minute, and what the panel shows in minute 6
SHOWN: list[tuple[str, dict[str, str], list[tuple[str, float]]]] = [
    (
        "Rows/s by step",
        {f'ray_lrem_curation_rows_total{{run="r",stage="find",WorkerId="{w}"}}': "_x4 600+0x9" for w in "ab"},
        [('{run="r",stage="find"}', 4.0)],
    ),
    ("Missing shards", {'ray_lrem_missing_shards_total{WorkerId="a"}': "1+0x4 3+0x9"}, [("{}", 2.0)]),
    (
        "Missing shards",  # one node leaves with its counters
        {f'ray_lrem_missing_shards_total{{WorkerId="{w}"}}': v for w, v in (("a", "7+0x3 stale"), ("b", "1+0x9"))},
        [("{}", 0.0)],
    ),
    ("Steps", {'ray_lrem_training_step{run="r",stage="s"}': "1 2 3 4 5 6 _x9"}, [('{run="r",stage="s"}', 6.0)]),
    ("Progress", {DONE: "5 6 _x9", TOTAL: "12 12 _x9"}, [('{run="r",stage="s"}', 0.5)]),
    (
        "Degraded by cause",
        {
            'ray_lrem_degraded_total{cause="resting"}': "0+6x9",
            **{ANSWERS.format(path, 200): "0+30x9" for path in ("/v1/search", "/v1/embeddings", "/healthz")},
        },
        [('{cause="resting"}', 0.1)],
    ),
]


@needs_promtool
def test_alerts_fire_when_they_should_and_panels_show_what_was_counted(tmp_path: Path) -> None:
    """Prometheus's own unit tests, over minutes of made-up series."""
    groups = []
    for alert, series, minutes in CASES:
        asked = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
        expected = [(minute, asked, [("{}", 1.0)] if fires else []) for minute, fires in minutes.items()]
        groups.append(group(series, expected))
    for title, series, samples in SHOWN:
        [panel] = [panel for panel in PANELS if panel["title"] == title]
        groups.append(group(series, [(6, plain(panel["targets"][0]["expr"]), samples)]))
    file = tmp_path / "tests.yml"
    written = {"rule_files": [str(PROMETHEUS / "alerts.yml")], "evaluation_interval": "1m", "tests": groups}
    file.write_text(yaml.safe_dump(written))
    promtool("test", "rules", file)
    assert {alert for alert, _, minutes in CASES if any(minutes.values())} == {rule["alert"] for rule in RULES}


def group(series: dict[str, str], expected: list[tuple[int, str, list[tuple[str, float]]]]) -> dict[str, Any]:
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": asked, "eval_time": f"{minute}m", "exp_samples": [{"labels": k, "value": v} for k, v in samples]}
            for minute, asked, samples in expected
        ],
    }
