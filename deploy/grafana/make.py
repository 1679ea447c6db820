"""Writes lrem.json, the dashboard, from panels.yaml and the metrics' meanings: `python deploy/grafana/make.py`.

Ray shows a gauge for 20 s after it was set and a counter from its first value on. So gauges are read by
`last_over_time`, and rare counters by what they grew since, the first value included: `rate` would miss both.
"""

import json
from pathlib import Path
from typing import Any

import yaml
from ray.util.metrics import Counter

from ray_apps.cluster.metrics import METRICS

HERE = Path(__file__).parent
STEP, WINDOW, WINDOW_S = "$__rate_interval", "5m", 300
WIDTH, HEIGHT, HOUR_MS = 24, 8, 3_600_000
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
KINDS = ("logged", "last", "rate", "per_second", "grown", "quantiles", "expr")
Spec = dict[str, Any]
Target = tuple[str, str]  # an expression, and what its lines are called


def selector(metric: str, where: str = "", ending: str = "") -> str:
    """A metric as Prometheus knows it, of the chosen runs and stages."""
    kind, labels, _ = METRICS[metric]
    chosen = [f'{label}=~"${label}"' for label in ("run", "stage") if label in labels and f"{label}=" not in where]
    inside = ",".join([*chosen, where] if where else chosen)
    return f"ray_lrem_{metric}{ending or ('_total' if kind is Counter else '')}" + (f"{{{inside}}}" if inside else "")


def over(function: str, labels: list[str], inside: str) -> str:
    """An aggregation by labels."""
    return f"{function} by ({', '.join(labels)}) ({inside})" if labels else f"{function}({inside})"


def grown(metric: str, labels: list[str], where: str) -> str:
    """What a counter grew by, first values included; never negative, as where a node leaves with its counters."""
    now = over("sum", labels, selector(metric, where))
    before = over("sum", labels, f"{selector(metric, where)} offset {WINDOW}")
    return f"clamp_min({now} - ({before} or 0 * {now}), 0)"


def quantile(share: float, metric: str, labels: list[str], where: str, so_far: bool) -> str:
    """Of a histogram."""
    buckets = selector(metric, where, "_bucket")
    inside = buckets if so_far else f"rate({buckets}[{WINDOW}])"
    return f"histogram_quantile({share}, {over('sum', [*labels, 'le'], inside)})"


def called(labels: list[str]) -> str:
    """The legend of lines with these labels, the run behind in brackets."""
    own = " ".join(f"{{{{{label}}}}}" for label in labels if label != "run")
    return f"{own} ({{{{run}}}})" if own and "run" in labels else own or "{{run}}"


def targets(line: str | Spec, shown: list[str]) -> list[Target]:
    """The expressions of one of a panel's lines."""
    spec: Spec = {line: shown[0]} if isinstance(line, str) else line
    [kind] = [kind for kind in KINDS if kind in spec]
    if kind == "expr":
        return [(spec["expr"], spec["legend"])]
    metric = {"logged": "training", "quantiles": shown[0]}.get(kind) or spec[kind]
    labels = spec["by"].split(", ") if "by" in spec else list(METRICS[metric].labels)
    where, legend = spec.get("where", ""), spec.get("legend", called(labels))
    if kind == "logged":
        where = f'name=~"{spec[kind]}"' + (f",{where}" if where else "")
    if kind == "quantiles":
        so_far = spec.get("so_far", False)
        return [(quantile(q, metric, labels, where, so_far), f"p{100 * q:g} {legend}") for q in spec[kind]]
    if kind in ("grown", "per_second"):
        divided = f" / {WINDOW_S}" if kind == "per_second" else ""
        return [(grown(metric, labels, where) + divided, legend)]
    if kind == "rate":
        return [(over("sum", labels, f"rate({selector(metric, where)}[{STEP}])"), legend)]
    # one process sets a gauge; the one before it may be shown for a moment more
    return [(over("max", labels, f"last_over_time({selector(metric, where)}[{STEP}])"), legend)]


def panel(spec: Spec) -> Spec:
    """A panel in Grafana's model, without its place."""
    shown, bars = spec.get("of", "").split(), spec.get("bars", False)
    found = [target for line in spec["lines"] for target in targets(line, shown)]
    made: list[Spec] = [
        {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
        | ({"instant": True, "range": False} if bars else {"range": True})
        for place, (expression, legend) in enumerate(found)
    ]
    return {
        "type": "bargauge" if bars else "timeseries",
        "title": spec["title"],
        "description": " ".join([*(f"{METRICS[metric].meaning}." for metric in shown), spec["says"]]),
        "datasource": SOURCE,
        "gridPos": {"w": spec.get("width", 8), "h": HEIGHT},
        "targets": made,
        "fieldConfig": {"defaults": defaults(spec), "overrides": apart(spec, made[-1]["refId"])},
        "options": options(bars),
    }


def defaults(spec: Spec) -> Spec:
    """How values are written and drawn."""
    steps = [{"color": colour, "value": spec[colour]} for colour in ("orange", "red") if colour in spec]
    found = {
        "unit": spec["unit"],
        "thresholds": {"mode": "absolute", "steps": [{"color": "green", "value": None}, *steps]},
    }
    if spec.get("bars"):
        return found | {"min": 0, "max": 1, "color": {"mode": "thresholds"}}
    style: Spec = {"lineWidth": 1, "fillOpacity": 8, "spanNulls": HOUR_MS * spec.get("gap_h", 1)}
    style["thresholdsStyle"] = {"mode": "line" if steps else "off"}
    if spec.get("stacked"):
        style |= {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 40}
    if spec.get("log"):
        style["scaleDistribution"] = {"type": "log", "log": 10}
    return found | {"color": {"mode": "palette-classic"}, "custom": style}


def apart(spec: Spec, ref: str) -> list[Spec]:
    """The last line on the right axis, where it has a unit of its own."""
    if "right" not in spec:
        return []
    properties = [{"id": "unit", "value": spec["right"]}, {"id": "custom.axisPlacement", "value": "right"}]
    return [{"matcher": {"id": "byFrameRefID", "options": ref}, "properties": properties}]


def options(bars: bool) -> Spec:
    """Legend and tooltip, or the bars' direction."""
    if bars:
        newest = {"calcs": ["lastNotNull"], "values": False, "fields": ""}
        return {"orientation": "horizontal", "displayMode": "gradient", "reduceOptions": newest}
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull"]}
    return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def laid_out(rows: dict[str, list[Spec]]) -> list[Spec]:
    """Rows of panels, from left to right and down."""
    made: list[Spec] = []
    down = 0
    for title, specs in rows.items():
        place = {"x": 0, "y": down, "w": WIDTH, "h": 1}
        made.append({"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": place})
        right, down = 0, down + 1
        for one in map(panel, specs):
            if right + one["gridPos"]["w"] > WIDTH:
                right, down = 0, down + HEIGHT
            one["gridPos"] |= {"x": right, "y": down}
            right += one["gridPos"]["w"]
            made.append(one)
        down += HEIGHT
    return [{"id": number, **one} for number, one in enumerate(made, 1)]


def variable(name: str, query: str) -> Spec:
    """A choice of a label's values, all of them at first."""
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"qryType": 1, "query": query, "refId": name},
        "refresh": 2,  # with the time range
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def dashboard() -> Spec:
    """All of it, in Grafana's classic model."""
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1}
    known = "ray_lrem_progress_done"
    run, stage = f"label_values({known}, run)", f'label_values({known}{{run=~"$run"}}, stage)'
    return {
        "uid": "lrem",
        "title": "LREM",
        "description": "Training, rollouts, curation, serving, and the Ray cluster below them.",
        "tags": ["lrem", "ray"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,  # one crosshair for all panels
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [source, variable("run", run), variable("stage", stage)]},
        "panels": laid_out(yaml.safe_load((HERE / "panels.yaml").read_text(encoding="utf-8"))),
    }


def text() -> str:
    """The content of lrem.json."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (HERE / "lrem.json").write_text(text(), encoding="utf-8")
