"""A real Prometheus scrapes a cluster while stages run on it as jobs, with the discovery file that Ray writes."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
import yaml

from lrem.world import make_world
from tests.ray_cluster import RayHead

TINY = ("--config", "configs/tiny.yaml")
WAIT_S = 60.0
pytestmark = pytest.mark.slow


class Prometheus:
    """A server that scrapes the cluster."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, query: str) -> list[dict[str, Any]]:
        """Return labels and value (`is`) of each series."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": query}, timeout=20).json()
        assert answer["status"] == "success", answer
        return [series["metric"] | {"is": float(series["value"][1])} for series in answer["data"]["result"]]

    def until(self, query: str, accepted: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """Repeat a query until its result is accepted; return the result."""
        deadline = time.monotonic() + WAIT_S
        while not accepted(series := self.query(query)):
            assert time.monotonic() < deadline, f"{query}: {series}"
            time.sleep(1)
        return series


@pytest.fixture(scope="module")
def prometheus(
    head: RayHead, new_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no Prometheus on this machine: install it (Debian, Ubuntu: apt-get install prometheus)")
    folder, port = tmp_path_factory.mktemp("prometheus"), new_port()
    discovery = head.folder / "ray/prom_metrics_service_discovery.json"
    scraped = {"job_name": "ray", "file_sd_configs": [{"files": [str(discovery)], "refresh_interval": "1s"}]}
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scraped]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{port}"
    command = [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command.append(f"--web.listen-address={address}")
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            prometheus, deadline = Prometheus(f"http://{address}"), time.monotonic() + WAIT_S
            while not _is_ready(prometheus.url):
                alive = server.poll() is None and time.monotonic() < deadline
                assert alive, (folder / "log").read_text()[-2000:]
                time.sleep(0.2)
            prometheus.until('up{job="ray"}', lambda series: any(one["is"] == 1 for one in series))
            yield prometheus
        finally:
            server.terminate()
            server.wait(30)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=5).is_success
    except httpx.TransportError:
        return False


def run(head: RayHead, folder: Path, *stages: str) -> list[str]:
    """Run each stage as a job; return what they printed."""
    printed = []
    for stage in stages:
        code, output = head.submit(None, *stage.split(), *TINY, f"run_dir={folder}")
        assert code == 0, output
        printed.append(output)
    return printed


def test_metrics_of_curation_and_training(head: RayHead, prometheus: Prometheus, tmp_path: Path) -> None:
    """Two jobs: what they print, what they write, and what they count meanwhile."""
    folder = tmp_path / "seen"
    make_world(0, 600, 300, 50).write(folder / "world")
    printed = run(head, folder, "curate", "cold-start")
    assert f"curate wrote {folder}/curated/triplets.parquet" in printed[0]
    assert f"cold-start wrote {folder}/cold_start" in printed[1]
    sheet = json.loads((folder / "curated/datasheet.json").read_text())
    assert pq.read_metadata(folder / "curated/triplets.parquet").num_rows == sheet["split"]["cold start"]["rows"]
    assert (folder / "cold_start/model.safetensors").exists()
    rows = "sum by (stage) (max_over_time(ray_lrem_curation_rows_total{run='seen'}[1h]))"
    steps = prometheus.until(rows, lambda series: len(series) == 3)
    assert {one["stage"]: one["is"] for one in steps} == dict.fromkeys(("find", "teach", "judge"), 300)
    done = prometheus.until(
        "max_over_time(ray_lrem_progress_done{run='seen',stage='cold_start'}[1h])", lambda series: bool(series)
    )
    total = prometheus.query("max_over_time(ray_lrem_progress_goal{run='seen',stage='cold_start'}[1h])")
    assert 0 < done[0]["is"] <= total[0]["is"]
    values = prometheus.until(
        "max_over_time(ray_lrem_training{run='seen',stage='cold_start'}[1h])", lambda series: bool(series)
    )
    assert {"info_nce", "sft", "grad_norm", "tokens_per_s", "lr"} <= {one["name"] for one in values}
    assert all(one["is"] > 0 for one in values if one["name"] in ("info_nce", "sft", "tokens_per_s"))


def test_metrics_of_rollouts_and_the_service(
    head: RayHead, prometheus: Prometheus, tmp_path: Path, new_port: Callable[[], int]
) -> None:
    folder, port = tmp_path / "served", new_port()
    make_world(0, 600, 300, 50).write(folder / "world")
    run(head, folder, "curate", "cold-start", "reinforce reinforce.steps=30", "embed", "index build")
    samples = "max_over_time(ray_lrem_rollout_samples_total{run='served'}[1h])"
    assert prometheus.until(samples, lambda series: bool(series))[0]["is"] > 0
    versions = "max_over_time(ray_lrem_rollout_version{run='served'}[1h])"
    assert prometheus.until(versions, lambda series: bool(series))[0]["is"] > 0
    values = prometheus.query("max_over_time(ray_lrem_training{run='served',stage='reinforce'}[1h])")
    assert {"reward", "sync_s", "rollout_s", "samples_per_s"} <= {one["name"] for one in values}
    for counter in ("rollout_tokens_total", "items_embedded_total"):
        series = prometheus.until(f"sum(max_over_time(ray_lrem_{counter}{{run='served'}}[1h]))", bool)
        assert series[0]["is"] > 0, counter
    code, output = head.submit("serve", "serve", *TINY, f"run_dir={folder}", f"serve.port={port}", wait=False)
    assert code == 0, output
    deadline = time.monotonic() + 180
    while not _answers(port):
        assert time.monotonic() < deadline, head.run("ray", "job", "logs", "serve").stdout
        time.sleep(1)
    for number in range(5):
        body = {"query": f"warm hat {number}", "k": 3}
        assert httpx.post(f"http://127.0.0.1:{port}/v1/search", json=body, timeout=60).is_success
    requests = "sum(ray_lrem_requests_total{path='/v1/search',status='200'})"
    assert prometheus.until(requests, lambda series: bool(series) and series[0]["is"] == 5)
    phases = prometheus.until("ray_lrem_phase_seconds_count", lambda series: bool(series))
    assert {"embed", "search"} <= {one["phase"] for one in phases}
    item = {"items": [{"item_id": "new", "title": "warm hat of wool"}]}
    assert httpx.put(f"http://127.0.0.1:{port}/v1/items", json=item, timeout=60).is_success
    for name in ("items_written_total", "cache_queries_total", "requests_under_way"):
        prometheus.until(f"ray_lrem_{name}", bool)
    queued = prometheus.until("ray_serve_deployment_queued_queries", bool)
    assert "Embedder" in {one["deployment"] for one in queued}
    assert head.run("ray", "job", "stop", "serve").returncode == 0


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).is_success
    except httpx.TransportError:
        return False
