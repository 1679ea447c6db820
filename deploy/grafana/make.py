"""Write the dashboard lrem.json from panels.yaml and the meanings of the metrics: `python deploy/grafana/make.py`.

Ray exports a gauge for 20 s after it is set, and a counter from its first value on. So gauges are read with
`last_over_time`, and rare counters by their increase, first value included: `rate` would miss both.
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
Target = tuple[str, str]  # an expression and its legend


def selector(metric: str, where: str = "", ending: str = "") -> str:
    """Return the selector of a metric for the chosen runs and stages."""
    kind, labels, _ = METRICS[metric]
    matchers = [f'{label}=~"${label}"' for label in ("run", "stage") if label in labels and f"{label}=" not in where]
    inside = ",".join([*matchers, where] if where else matchers)
    return f"ray_lrem_{metric}{ending or ('_total' if kind is Counter else '')}" + (f"{{{inside}}}" if inside else "")


def aggregate(function: str, labels: list[str], inside: str) -> str:
    """Return an aggregation by labels."""
    return f"{function} by ({', '.join(labels)}) ({inside})" if labels else f"{function}({inside})"


def increase(metric: str, labels: list[str], where: str) -> str:
    """Return the increase of a counter, first values included; 0 if a node leaves with its counters."""
    now = aggregate("sum", labels, selector(metric, where))
    before = aggregate("sum", labels, f"{selector(metric, where)} offset {WINDOW}")
    return f"clamp_min({now} - ({before} or 0 * {now}), 0)"


def quantile(share: float, metric: str, labels: list[str], where: str, so_far: bool) -> str:
    """Return a quantile of a histogram."""
    buckets = selector(metric, where, "_bucket")
    inside = buckets if so_far else f"rate({buckets}[{WINDOW}])"
    return f"histogram_quantile({share}, {aggregate('sum', [*labels, 'le'], inside)})"


def default_legend(labels: list[str]) -> str:
    """Return the legend of lines with these labels, with the run last, in brackets."""
    own = " ".join(f"{{{{{label}}}}}" for label in labels if label != "run")
    return f"{own} ({{{{run}}}})" if own and "run" in labels else own or "{{run}}"


def targets(line: str | Spec, metrics: list[str]) -> list[Target]:
    """Return the expressions of one entry of `lines`."""
    spec: Spec = {line: metrics[0]} if isinstance(line, str) else line
    [kind] = [kind for kind in KINDS if kind in spec]
    if kind == "expr":
        return [(spec["expr"], spec["legend"])]
    metric = {"logged": "training", "quantiles": metrics[0]}.get(kind) or spec[kind]
    labels = spec["by"].split(", ") if "by" in spec else list(METRICS[metric].labels)
    where, legend = spec.get("where", ""), spec.get("legend", default_legend(labels))
    if kind == "logged":
        where = f'name=~"{spec[kind]}"' + (f",{where}" if where else "")
    if kind == "quantiles":
        so_far = spec.get("so_far", False)
        return [(quantile(q, metric, labels, where, so_far), f"p{100 * q:g} {legend}") for q in spec[kind]]
    if kind in ("grown", "per_second"):
        divided = f" / {WINDOW_S}" if kind == "per_second" else ""
        return [(increase(metric, labels, where) + divided, legend)]
    if kind == "rate":
        return [(aggregate("sum", labels, f"rate({selector(metric, where)}[{STEP}])"), legend)]
    # one process sets a gauge; its predecessor may be exported for a moment longer
    return [(aggregate("max", labels, f"last_over_time({selector(metric, where)}[{STEP}])"), legend)]


def panel(spec: Spec) -> Spec:
    """Return a panel in Grafana's model, without its position."""
    metrics, bars = spec.get("of", "").split(), spec.get("bars", False)
    expressions = [target for line in spec["lines"] for target in targets(line, metrics)]
    lines: list[Spec] = [
        {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
        | ({"instant": True, "range": False} if bars else {"range": True})
        for place, (expression, legend) in enumerate(expressions)
    ]
    return {
        "type": "bargauge" if bars else "timeseries",
        "title": spec["title"],
        "description": " ".join([*(f"{METRICS[metric].meaning}." for metric in metrics), spec["description"]]),
        "datasource": SOURCE,
        "gridPos": {"w": spec.get("width", 8), "h": HEIGHT},
        "targets": lines,
        "fieldConfig": {"defaults": field_defaults(spec), "overrides": right_axis(spec, lines[-1]["refId"])},
        "options": options(bars),
    }


def field_defaults(spec: Spec) -> Spec:
    """Return how values are formatted and drawn."""
    steps = [{"color": colour, "value": spec[colour]} for colour in ("orange", "red") if colour in spec]
    defaults = {
        "unit": spec["unit"],
        "thresholds": {"mode": "absolute", "steps": [{"color": "green", "value": None}, *steps]},
    }
    if spec.get("bars"):
        return defaults | {"min": 0, "max": 1, "color": {"mode": "thresholds"}}
    style: Spec = {"lineWidth": 1, "fillOpacity": 8, "spanNulls": HOUR_MS * spec.get("gap_h", 1)}
    style["thresholdsStyle"] = {"mode": "line" if steps else "off"}
    if spec.get("stacked"):
        style |= {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 40}
    if spec.get("log"):
        style["scaleDistribution"] = {"type": "log", "log": 10}
    return defaults | {"color": {"mode": "palette-classic"}, "custom": style}


def right_axis(spec: Spec, ref: str) -> list[Spec]:
    """Return the override that puts the last line on the right axis, if it has its own unit."""
    if "right" not in spec:
        return []
    properties = [{"id": "unit", "value": spec["right"]}, {"id": "custom.axisPlacement", "value": "right"}]
    return [{"matcher": {"id": "byFrameRefID", "options": ref}, "properties": properties}]


def options(bars: bool) -> Spec:
    """Return legend and tooltip, or the layout of bars."""
    if bars:
        newest = {"calcs": ["lastNotNull"], "values": False, "fields": ""}
        return {"orientation": "horizontal", "displayMode": "gradient", "reduceOptions": newest}
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull"]}
    return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def arrange(rows: dict[str, list[Spec]]) -> list[Spec]:
    """Return all panels with their positions: rows from top to bottom, panels from left to right."""
    panels: list[Spec] = []
    y = 0
    for title, specs in rows.items():
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        panels.append({"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": place})
        x, y = 0, y + 1
        for one in map(panel, specs):
            if x + one["gridPos"]["w"] > WIDTH:
                x, y = 0, y + HEIGHT
            one["gridPos"] |= {"x": x, "y": y}
            x += one["gridPos"]["w"]
            panels.append(one)
        y += HEIGHT
    return [{"id": number, **one} for number, one in enumerate(panels, 1)]


def variable(name: str, query: str) -> Spec:
    """Return a variable to choose values of a label, initially all."""
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"qryType": 1, "query": query, "refId": name},
        "refresh": 2,  # when the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def dashboard() -> Spec:
    """Return the dashboard in Grafana's classic model."""
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1}
    metric = "ray_lrem_progress_done"
    run, stage = f"label_values({metric}, run)", f'label_values({metric}{{run=~"$run"}}, stage)'
    return {
        "uid": "lrem",
        "title": "LREM",
        "description": "Training, rollouts, curation, serving, and the Ray cluster.",
        "tags": ["lrem", "ray"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,  # one crosshair for all panels
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [source, variable("run", run), variable("stage", stage)]},
        "panels": arrange(yaml.safe_load((HERE / "panels.yaml").read_text(encoding="utf-8"))),
    }


def text() -> str:
    """Return the content of lrem.json."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (HERE / "lrem.json").write_text(text(), encoding="utf-8")
