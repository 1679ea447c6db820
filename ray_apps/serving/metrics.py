"""Metrics of the service: each ingress replica has its own at /metrics, Ray's metrics add up all replicas."""

from typing import TypedDict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ray_apps.cluster import metrics

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class _Common(TypedDict):
    namespace: str
    registry: CollectorRegistry


class ServingMetrics:
    """The counters, gauges and histograms of one ingress."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        common = _Common(namespace="lrem", registry=self.registry)
        self._requests = Counter("requests", "Requests answered", ["path", "status"], **common)
        self._phases = Histogram("phase_seconds", "Time in a phase", ["phase"], buckets=SECONDS, **common)
        self._cache = Counter("cache_queries", "Queries looked up in the cache", ["found"], **common)
        self._degraded = Counter("degraded", "Requests answered without thinking", ["cause"], **common)
        self._missing = Counter("missing_shards", "Shards left out of an answer", **common)
        self._written = Counter("items_written", "Items written or deleted", ["how"], **common)
        self._in_progress = Gauge("requests_under_way", "Requests that are being answered", **common)

    def count_request(self, path: str, status: int) -> None:
        """Count a response; `path` is the route's, such as `/v1/items/{item_id}`, not the request's."""
        self._requests.labels(path, str(status)).inc()
        metrics.count("requests", 1, path=path, status=str(status))

    def observe_phase(self, phase: str, seconds: float) -> None:
        """Add the duration of a phase to its histogram."""
        self._phases.labels(phase).observe(seconds)
        metrics.observe("phase_seconds", seconds, phase=phase)

    def count_cache(self, hits: int, misses: int) -> None:
        """Count queries that were in the cache, and those that were not."""
        for number, label in ((hits, "yes"), (misses, "no")):
            self._cache.labels(label).inc(number)
            metrics.count("cache_queries", number, found=label)

    def count_degraded(self, cause: str) -> None:
        """Count a request that is answered without thinking; `cause` is the type of the failure."""
        self._degraded.labels(cause).inc()
        metrics.count("degraded", 1, cause=cause)

    def count_missing_shards(self, shards: int) -> None:
        """Count shards that are missing in a response."""
        self._missing.inc(shards)
        metrics.count("missing_shards", shards)

    def count_written(self, operation: str, items: int) -> None:
        """Count items that were `upserted` or `deleted`."""
        self._written.labels(operation).inc(items)
        metrics.count("items_written", items, how=operation)

    def set_in_progress(self, requests: int) -> None:
        """Set how many requests are being answered."""
        self._in_progress.set(requests)
        metrics.gauge("requests_under_way", requests)

    def render(self) -> bytes:
        """Return the page that Prometheus scrapes."""
        return generate_latest(self.registry)
