"""Prometheus metrics of all stages, through Ray's own metrics: every node's agent exports them (docs/operating.md).

All names, kinds, labels and meanings are here, once. Ray puts `ray_` before each name and adds its own labels: node,
worker, session. In a process that is not connected to Ray they are not recorded and cost nothing.
"""

import threading
import time
from functools import cache
from typing import NamedTuple

from ray.util.metrics import Counter, Gauge, Histogram

BUCKETS_S = [step * 10.0**power for power in range(-3, 3) for step in (1.0, 2.5, 5.0)] + [1000.0]
REFRESH_S = 5.0
_gauge_values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}  # by metric and labels


class Metric(NamedTuple):
    """Kind, labels and meaning of a metric."""

    kind: type
    labels: tuple[str, ...]
    meaning: str


METRICS = {
    "progress_done": Metric(Gauge, ("run", "stage"), "Rows, items or steps of a stage that are done"),
    "progress_goal": Metric(Gauge, ("run", "stage"), "Rows, items or steps of a stage in total"),
    "training_step": Metric(Gauge, ("run", "stage"), "Training steps that are done"),
    "training": Metric(
        Gauge,
        ("run", "stage", "name"),
        "Values of the last step: losses, parts of the reward, ranks, tokens/s, seconds of each phase",
    ),
    "rollout_samples": Metric(Counter, ("run",), "Reasonings sampled for training"),
    "rollout_tokens": Metric(Counter, ("run",), "Tokens of the sampled reasonings"),
    "rollout_waiting": Metric(Gauge, ("run",), "Calls that wait for an engine or run on one"),
    "rollout_seconds": Metric(Histogram, ("run",), "Seconds from a call to its answer, waiting included"),
    "rollout_restarts": Metric(Counter, ("run",), "Rollout engines that were replaced"),
    "rollout_version": Metric(Gauge, ("run",), "Policy version that all engines have"),
    "curation_rows": Metric(Counter, ("run", "stage"), "Queries that a curation step has finished"),
    "curation_part_seconds": Metric(Histogram, ("run", "stage"), "Seconds of one part of a curation step"),
    "curation_questions": Metric(Counter, ("run", "stage"), "Questions to language models that are finished"),
    "curation_failures": Metric(Counter, ("run", "stage"), "Questions to language models without a readable answer"),
    "items_embedded": Metric(Counter, ("run",), "Items embedded offline"),
    "requests": Metric(Counter, ("path", "status"), "Requests answered"),
    "phase_seconds": Metric(Histogram, ("phase",), "Seconds of one phase of a request"),
    "cache_queries": Metric(Counter, ("found",), "Queries looked up in the cache"),
    "degraded": Metric(Counter, ("cause",), "Requests answered without reasoning"),
    "missing_shards": Metric(Counter, (), "Shards left out of an answer"),
    "items_written": Metric(Counter, ("how",), "Items written or deleted"),
    "requests_under_way": Metric(Gauge, (), "Requests in progress"),
}


def count(metric: str, amount: float, **labels: str) -> None:
    """Add to a counter."""
    if amount:  # Ray refuses zero
        _metric(metric).inc(amount, labels)


def gauge(metric: str, value: float, **labels: str) -> None:
    """Set a gauge; it keeps its value as long as this process lives."""
    _gauge_values[metric, tuple(labels.items())] = value
    _metric(metric).set(value, labels)
    _start_refreshing()


def observe(metric: str, seconds: float, **labels: str) -> None:
    """Add one duration to a histogram."""
    _metric(metric).observe(max(seconds, 0.0), labels)


@cache
def _start_refreshing() -> None:
    """Set all gauges again every few seconds: Ray exports a value only for some seconds after it is set (ray#56405)."""

    def refresh() -> None:
        while True:
            time.sleep(REFRESH_S)
            for (metric, labels), value in list(_gauge_values.items()):
                _metric(metric).set(value, dict(labels))

    threading.Thread(target=refresh, daemon=True).start()


@cache
def _metric(name: str) -> Counter | Gauge | Histogram:
    kind, labels, meaning = METRICS[name]
    buckets = {"boundaries": BUCKETS_S} if kind is Histogram else {}
    return kind(f"lrem_{name}", description=meaning, tag_keys=labels, **buckets)
