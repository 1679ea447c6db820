"""Deployments that die, hang or are too slow, and clients that leave."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import ray
from ray.serve import get_deployment_handle

from lrem.config import ServeConfig
from ray_apps.serving.deadline import Deadline
from ray_apps.serving.handles import connect
from ray_apps.serving.metrics import ServingMetrics
from ray_apps.serving.query_path import QueryPath
from tests.ray.serving.operations.helpers import WRITE, count, kill, put, read_live_record, wait_ready
from tests.serving import QUERIES, TITLES, Served, assert_error, metric_value, openai_client, search, suspend


def test_a_client_that_leaves_ends_its_reasoning(served: Served) -> None:
    """16 samples of each of 64 queries take about a second; the client leaves at varying times within it."""
    aborted = get_deployment_handle("Reasoner", read_live_record().application).count_aborted
    before = aborted.remote().result(timeout_s=60)
    for attempt in range(24):  # too early, and the request is never read; too late, and it is answered
        body = {"queries": [f"leaving {attempt} {i}" for i in range(64)], "reasonings": 16, "reason": "always"}
        try:
            served.http.post("/v1/search", json=body, timeout=0.2 + 0.15 * (attempt % 12))
            continue
        except httpx.ReadTimeout:
            deadline = time.monotonic() + 3
        while aborted.remote().result(timeout_s=60) == before and time.monotonic() < deadline:
            time.sleep(0.1)
        if aborted.remote().result(timeout_s=60) > before:
            break
    else:
        pytest.fail("no request was taken out of the engine")
    closed = 'lrem_requests_total{path="/v1/search",status="499"}'
    while metric_value(served, closed) == 0 and time.monotonic() < deadline + 10:
        time.sleep(0.1)
    assert metric_value(served, closed) > 0
    assert metric_value(served, 'lrem_requests_total{path="/v1/search",status="500"}') == 0
    assert not search(served, query="right behind", reason="always")["degraded"]


def test_a_shard_answers_while_one_of_its_replicas_is_dead(served: Served) -> None:
    expected = search(served, queries=QUERIES, k=20, reason="never")["results"]
    kill("IndexShard0", survivors=1)
    for _ in range(10):
        results = search(served, queries=QUERIES, k=20, reason="never", complete=True)["results"]
        for one, other in zip(results, expected, strict=True):
            assert [item["item_id"] for item in one["items"]] == [item["item_id"] for item in other["items"]]
    assert put(served, {"item_id": "late", "title": "late arrival"})["written"] == 1
    wait_ready(served)
    for _ in range(6):  # so that both replicas answer
        assert served.http.get("/v1/items/late").status_code == 200
    served.http.delete("/v1/items/late")


def test_the_other_shards_answer_for_a_dead_one_and_its_writes_survive(served: Served) -> None:
    items = [{"item_id": f"kept{i}", "title": f"kept through the crash {i}"} for i in range(20)]
    assert put(served, *items)["new"] == 20
    body = {"query": QUERIES[0], "k": 100, "reason": "never"}
    with suspend("IndexShard1"), ThreadPoolExecutor(3) as pool:
        partial = pool.submit(search, served, **body)
        complete = pool.submit(served.http.post, "/v1/search", json=body | {"complete": True})
        ready = pool.submit(served.http.get, "/readyz")
        response, refused = partial.result(), complete.result()
        assert (ready.result().status_code, ready.result().json()["missing"]) == (503, ["shard 1"])
    assert response["missing_shards"] == [1]
    assert 0 < len(response["results"][0]["items"]) < len(TITLES) + 20
    assert_error(refused, 503, "shards [1]")
    assert refused.json()["error"]["code"] == "incomplete"
    kill("IndexShard1")
    wait_ready(served)
    assert count(served) == len(TITLES) + 20
    results = search(served, query="kept", k=100, reason="never")["results"]
    assert {item["item_id"] for item in items} <= {item["item_id"] for item in results[0]["items"]}
    served.http.post("/v1/items/delete", json={"item_ids": [item["item_id"] for item in items]})


@pytest.mark.slow
def test_without_the_reasoner_queries_are_embedded_without_thinking(served: Served) -> None:
    with suspend("Reasoner"):
        response = search(served, query="who thinks about this now", k=49)
        direct = search(served, query="who thinks about this now", k=49, reason="never")
        assert asyncio.run(is_degraded_within(6.0))
    assert response["degraded"]
    assert response["results"][0]["reasoning"] is None
    assert response["results"][0]["items"] == direct["results"][0]["items"]
    assert metric_value(served, 'lrem_degraded_total{cause="TimeoutError"}') >= 1
    kill("Reasoner")
    wait_ready(served)
    recovered = search(served, query="who thinks about this now", k=49)
    assert not recovered["degraded"]
    assert recovered["results"][0]["reasoning"]


async def is_degraded_within(seconds: float) -> bool:
    """Return whether a request with this many seconds left, fewer than the reasoner may take, goes without thinking."""
    record, metrics = read_live_record(), ServingMetrics()
    handles = connect(record.application, record.model, record.shards)
    queries = QueryPath(handles, ServeConfig(reason_timeout_s=50), metrics)
    encoded = await queries.encode(Deadline(seconds, metrics), ["short of time"], "always", 1)
    return encoded.degraded


def test_queries_are_not_in_the_logs(served: Served) -> None:
    marker = "unmistakable7c1e9"
    assert search(served, queries=[f"{marker} shoes", f"{marker} boots"], reasonings=2)["results"]
    refused = served.http.post("/v1/search", json={"query": marker, "k": 0, "filter": {marker: {"$has": marker}}})
    assert refused.status_code == 422
    assert openai_client(served, WRITE).embeddings.create(model="lrem", input=marker).data
    with suspend("Reasoner"):
        assert search(served, query=f"{marker} without a thought")["degraded"]
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    written = b"".join(file.read_bytes() for file in logs.rglob("*") if file.is_file())
    assert b"exact search is fast" in written  # the log line of a shard: these are the right files
    assert marker.encode() not in written
