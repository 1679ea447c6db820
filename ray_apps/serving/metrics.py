"""What the service counts and times: at /metrics of each replica of the ingress, and by Ray of all of them together."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ray_apps.cluster import metrics

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Measures:
    """The counters, gauges and histograms of one ingress."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        common: Any = {"namespace": "lrem", "registry": self.registry}
        self._requests = Counter("requests", "Requests answered", ["path", "status"], **common)
        self._phases = Histogram("phase_seconds", "Time in a phase", ["phase"], buckets=SECONDS, **common)
        self._cache = Counter("cache_queries", "Queries looked up in the cache", ["found"], **common)
        self._degraded = Counter("degraded", "Requests answered without thinking", ["cause"], **common)
        self._missing = Counter("missing_shards", "Shards left out of an answer", **common)
        self._written = Counter("items_written", "Items written or deleted", ["how"], **common)
        self._under_way = Gauge("requests_under_way", "Requests that are being answered", **common)

    def request(self, path: str, status: int) -> None:
        """Count an answer; `path` as in the contract, not as it came."""
        self._requests.labels(path, str(status)).inc()
        metrics.count("requests", 1, path=path, status=str(status))

    def phase(self, name: str, seconds: float) -> None:
        """Time a phase."""
        self._phases.labels(name).observe(seconds)
        metrics.observe("phase_seconds", seconds, phase=name)

    def cache(self, found: int, missing: int) -> None:
        """Count queries that were in the cache, and that were not."""
        for number, answer in ((found, "yes"), (missing, "no")):
            self._cache.labels(answer).inc(number)
            metrics.count("cache_queries", number, found=answer)

    def degraded(self, cause: str) -> None:
        """Count a request answered without thinking, for the failure of this type."""
        self._degraded.labels(cause).inc()
        metrics.count("degraded", 1, cause=cause)

    def missing(self, shards: int) -> None:
        """Count shards that were left out."""
        self._missing.inc(shards)
        metrics.count("missing_shards", shards)

    def written(self, how: str, count: int) -> None:
        """Count items: `upserted` or `deleted`."""
        self._written.labels(how).inc(count)
        metrics.count("items_written", count, how=how)

    def under_way(self, requests: int) -> None:
        """Say how many requests are being answered."""
        self._under_way.set(requests)
        metrics.gauge("requests_under_way", requests)

    def page(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)
