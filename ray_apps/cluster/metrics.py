"""What stages count for Prometheus, by Ray's own metrics: each node's agent shows them (docs/operating.md).

Every name, its kind, labels and meaning stand here, once. Ray puts `ray_` before a name, and labels of its own beside
ours: node, worker, session. In a process that has joined no Ray they are kept nowhere and cost nothing.
"""

import threading
import time
from functools import cache
from typing import Any, NamedTuple

from ray.util.metrics import Counter, Gauge, Histogram

SECONDS = [step * 10.0**power for power in range(-3, 3) for step in (1.0, 2.5, 5.0)] + [1000.0]
AGAIN_S = 5.0
_held: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}  # the present value of each gauge


class Metric(NamedTuple):
    """Its kind, the labels that it takes, and what it means."""

    kind: type
    labels: tuple[str, ...]
    meaning: str


METRICS = {
    "progress_done": Metric(Gauge, ("run", "stage"), "Rows, items or steps of a stage that are done"),
    "progress_goal": Metric(Gauge, ("run", "stage"), "Rows, items or steps of a stage in all"),
    "training_step": Metric(Gauge, ("run", "stage"), "Steps of training that are done"),
    "training": Metric(
        Gauge,
        ("run", "stage", "name"),
        "What the last step recorded: losses, parts of the reward, ranks, tokens/s, seconds of each phase",
    ),
    "rollout_samples": Metric(Counter, ("run",), "Reasonings that were sampled for training"),
    "rollout_tokens": Metric(Counter, ("run",), "Tokens of these"),
    "rollout_waiting": Metric(Gauge, ("run",), "Calls that wait for an engine, or are with one"),
    "rollout_seconds": Metric(Histogram, ("run",), "From a call to its answer, waiting included"),
    "rollout_restarts": Metric(Counter, ("run",), "Engines that were replaced"),
    "rollout_version": Metric(Gauge, ("run",), "The policy version that all engines hold"),
    "curation_rows": Metric(Counter, ("run", "stage"), "Queries that a step of curation is done with"),
    "curation_part_seconds": Metric(Histogram, ("run", "stage"), "Seconds of one part of a step"),
    "curation_questions": Metric(Counter, ("run", "stage"), "Questions to language models that are done with"),
    "curation_failures": Metric(Counter, ("run", "stage"), "Of these, without an answer that can be read"),
    "items_embedded": Metric(Counter, ("run",), "Items embedded offline"),
    "requests": Metric(Counter, ("path", "status"), "Requests answered"),
    "phase_seconds": Metric(Histogram, ("phase",), "Time of a request in a phase"),
    "cache_queries": Metric(Counter, ("found",), "Queries looked up in the cache"),
    "degraded": Metric(Counter, ("cause",), "Requests answered without thinking"),
    "missing_shards": Metric(Counter, (), "Shards left out of an answer"),
    "items_written": Metric(Counter, ("how",), "Items written or deleted"),
    "requests_under_way": Metric(Gauge, (), "Requests that are being answered"),
}


def count(metric: str, amount: float, **labels: str) -> None:
    """Add to a counter."""
    if amount:  # Ray refuses zero
        _metric(metric).inc(amount, labels)


def gauge(metric: str, value: float, **labels: str) -> None:
    """Set a gauge; it stays while this process lives."""
    _held[metric, tuple(labels.items())] = value
    _metric(metric).set(value, labels)
    _keep()


def observe(metric: str, seconds: float, **labels: str) -> None:
    """Add one duration to a histogram."""
    _metric(metric).observe(max(seconds, 0.0), labels)


@cache
def _keep() -> None:
    """Ray shows a value for some seconds after it was set, then nothing (ray#56405): so set them again and again."""

    def again() -> None:
        while True:
            time.sleep(AGAIN_S)
            for (metric, labels), value in list(_held.items()):
                _metric(metric).set(value, dict(labels))

    threading.Thread(target=again, daemon=True).start()


@cache
def _metric(name: str) -> Any:
    kind, labels, meaning = METRICS[name]
    bounds = {"boundaries": SECONDS} if kind is Histogram else {}
    return kind(f"lrem_{name}", description=meaning, tag_keys=labels, **bounds)
