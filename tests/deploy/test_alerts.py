"""deploy/prometheus: the configuration and every expression are valid, and the alerts fire when they should."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.dashboard import EXPRESSIONS, PANELS, PROMETHEUS, RULES, as_sent, needs_promtool, promtool


@needs_promtool
@pytest.mark.parametrize("name", ["prometheus", "service"])
def test_the_configuration_and_the_alerts_are_valid(name: str) -> None:
    promtool("check", "config", PROMETHEUS / f"{name}.yml")
    promtool("check", "rules", PROMETHEUS / "alerts.yml")


@needs_promtool
def test_every_expression_is_valid(tmp_path: Path) -> None:
    rules = [{"record": f"e{n}", "expr": as_sent(expression)} for n, (_, expression) in enumerate(EXPRESSIONS)]
    assert not [rule for rule in rules if "$" in rule["expr"]]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yml")


DONE, GOAL = (f'ray_lrem_progress_{name}{{run="r",stage="s",WorkerId="a"}}' for name in ("done", "goal"))
DONE_AGAIN, GOAL_AGAIN = (series.replace('"a"', '"b"') for series in (DONE, GOAL))  # in another process
ANSWERS = 'ray_lrem_requests_total{{path="{}",status="{}"}}'
LAG = {'ray_lrem_training_step{run="r",stage="reinforce"}': "0+1x60"}
VERSION = 'ray_lrem_rollout_version{run="r"}'
FAILURES, QUESTIONS = (f'ray_lrem_curation_{name}_total{{run="r",stage="judge"}}' for name in ("failures", "questions"))
# alert; series with one value per minute, `_` where Ray exports none; minute → whether the alert fires
CASES: list[tuple[str, dict[str, str], dict[int, bool]]] = [
    ("StageStandsStill", {DONE: "0+1x30 _x90", GOAL: "99+0x30 _x90"}, {60: False, 95: True}),
    (
        "StageStandsStill",
        {DONE: "0+1x30 30+0x90", GOAL: "99+0x120"},
        {60: False, 95: True},
    ),  # also if Ray kept exporting it
    ("StageStandsStill", {DONE: "0+1x99 _x90", GOAL: "99+0x99 _x90"}, {180: False}),
    (
        "StageStandsStill",  # killed, then resumed in another process and finished
        {
            DONE: "0+1x30 _x150",
            GOAL: "99+0x30 _x150",
            DONE_AGAIN: "_x39 30+1x69 _x80",
            GOAL_AGAIN: "_x39 99+0x69 _x80",
        },
        {180: False},
    ),
    ("StageStandsStill", {DONE: "0 _x13 1 _x13 2 _x13 3 _x13 4 _x13 5 _x13 6", GOAL: "9+0x90"}, {84: False}),
    (
        "EnginesReplacedOften",
        {'ray_lrem_rollout_restarts_total{run="r"}': "_x9 1 2 3 4+0x80"},
        {11: False, 15: True, 80: False},
    ),
    ("StaleRollouts", LAG | {VERSION: "0+0x60"}, {15: False, 30: True}),
    ("StaleRollouts", LAG | {VERSION: "1+1x60"}, {30: False, 60: False}),
    ("CurationFailures", {QUESTIONS: "0+10x60 600+0x90", FAILURES: "_x60 60+0x90"}, {59: False, 65: True, 125: False}),
    ("CurationFailures", {QUESTIONS: "0+10x60 600+0x90", FAILURES: "_x60 6+0x90"}, {65: False}),
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
# panel title; series with one value per minute; what the panel shows in minute 6
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
    ("Progress", {DONE: "5 6 _x9", GOAL: "12 12 _x9"}, [('{run="r",stage="s"}', 0.5)]),
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
    """Prometheus's own unit tests, on minutes of synthetic series."""
    groups = []
    for alert, series, minutes in CASES:
        query = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
        expected = [(minute, query, [("{}", 1.0)] if fires else []) for minute, fires in minutes.items()]
        groups.append(group(series, expected))
    for title, series, samples in SHOWN:
        [panel] = [panel for panel in PANELS if panel["title"] == title]
        groups.append(group(series, [(6, as_sent(panel["targets"][0]["expr"]), samples)]))
    file = tmp_path / "tests.yml"
    tests = {"rule_files": [str(PROMETHEUS / "alerts.yml")], "evaluation_interval": "1m", "tests": groups}
    file.write_text(yaml.safe_dump(tests))
    promtool("test", "rules", file)
    assert {alert for alert, _, minutes in CASES if any(minutes.values())} == {rule["alert"] for rule in RULES}


def group(series: dict[str, str], expected: list[tuple[int, str, list[tuple[str, float]]]]) -> dict[str, Any]:
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": query, "eval_time": f"{minute}m", "exp_samples": [{"labels": k, "value": v} for k, v in samples]}
            for minute, query, samples in expected
        ],
    }
