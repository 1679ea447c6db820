"""The service as it is operated: writes, keys, limits, parts that die, and a new model or index under load."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import ray
from ray.serve import get_deployment_handle

from lrem.config import Config, ServeConfig, to_yaml
from lrem.errors import ConfigError
from lrem.index import Collection, snapshot
from lrem.index.shard import owner
from ray_apps.cluster.session import cluster
from ray_apps.indexing.maintenance import live_folder, take_snapshot
from ray_apps.serving import deploy, live_record
from ray_apps.serving.deadline import Phases
from ray_apps.serving.metrics import Measures
from ray_apps.serving.search_backend import Backend, Parts
from tests.serving import (
    QUERIES,
    TITLES,
    Served,
    assert_error,
    build_world,
    client,
    counted,
    replicas,
    running,
    search,
    suspended,
)

READ, WRITE = "r" * 20, "w" * 20
KEYS = f"# who may do what\nread {READ}\nwrite {WRITE}\n"
WRITER = {"authorization": f"Bearer {WRITE}"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, new_port: Callable[[], int]) -> Iterator[Config]:
    folder = tmp_path_factory.mktemp("operated")
    (folder / "keys").write_text(KEYS)
    config = build_world(
        folder,
        new_port(),
        keys_file=folder / "keys",
        shard={"replicas": 2},
        reason_timeout_s=5,
        search_timeout_s=5,
        max_requests=40,
        max_body_mb=0.5,
    )
    # these tests go through HAProxy, those of test_serve.py through Serve's own proxy
    config = config.model_copy(update={"ray": config.ray.model_copy(update={"haproxy": True})})
    with cluster(config):
        yield config


@pytest.fixture(scope="module")
def served(world: Config) -> Iterator[Served]:
    with running(world, authorization=f"Bearer {WRITE}") as found:
        yield found


def put(served: Served, *items: dict[str, Any]) -> dict[str, Any]:
    answer = served.http.put("/v1/items", json={"items": items})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def count(served: Served, where: Any = None) -> int:
    return int(served.http.post("/v1/items/count", json={"filter": where}).json()["count"])


def first(served: Served, query: str, **body: Any) -> str:
    return str(search(served, query=query, k=1, reason="never", **body)["results"][0]["items"][0]["item_id"])


def test_an_item_is_found_as_soon_as_it_is_written(served: Served) -> None:
    before = count(served)
    item = {"item_id": "new/1", "title": "purple velvet armchair", "price": 3.5, "stock": {"here": 2}}
    assert put(served, item, {"item_id": "p0", "title": "red wool coat", "sale": True}) == {"written": 2, "new": 1}
    assert count(served) == before + 1
    assert served.http.get("/v1/items/new/1").json() == {
        "item_id": "new/1",
        "payload": {key: value for key, value in item.items() if key != "item_id"},
    }
    [hit] = search(served, query="armchair", filter={"price": 3.5}, reason="never")["results"][0]["items"]
    expected = served.embedder.encode_items([item["title"]])[0] @ served.embedder.encode_queries(["armchair"], [""])[0]
    assert hit["item_id"] == "new/1"
    assert hit["score"] == pytest.approx(float(expected), abs=1e-4)
    assert count(served, {"sale": True}) == 1
    assert served.http.delete("/v1/items/new/1").json() == {"deleted": 1}
    assert served.http.delete("/v1/items/new/1").json() == {"deleted": 0}
    assert_error(served.http.get("/v1/items/new/1"), 404, "there is no item 'new/1'")
    assert count(served) == before


def test_a_bulk_write_reports_every_line(served: Served) -> None:
    lines = [
        json.dumps({"item_id": "b1", "title": "garden hose"}),
        "{",
        json.dumps({"item_id": "b2"}),
        json.dumps({"item_id": "b3", "title": "  "}),
        '{"item_id": "b4", "title": "rake", "price": NaN}',
        json.dumps({"item_id": "b1", "title": "garden hose, again"}),
    ]
    kind = {"content-type": "application/x-ndjson"}
    answer = served.http.post("/v1/items/bulk", content="\n".join(lines) + "\n\n", headers=kind).json()
    assert_error(served.http.post("/v1/items/bulk", content=lines[0]), 415, "send application/x-ndjson")
    assert (answer["written"], answer["failed"]) == (2, 4)
    assert [(row["line"], row["item_id"]) for row in answer["rows"]] == [
        (1, "b1"),
        (2, None),
        (3, None),
        (4, None),
        (5, None),
        (6, "b1"),
    ]
    said = [row["error"] for row in answer["rows"]]
    assert said[0] is said[5] is None
    for part, error in zip(("no JSON", "title: Field required", "title: is blank", "JSON"), said[1:5], strict=True):
        assert part in error
    assert served.http.get("/v1/items/b1").json()["payload"]["title"] == "garden hose, again"
    assert served.http.post("/v1/items/delete", json={"item_ids": ["b1", "gone"]}).json() == {"deleted": 1}


@contextmanager
def refusing(shard: int) -> Iterator[None]:
    """A shard whose file takes no item, as on a full disk."""
    record = live_record.read()
    assert record is not None
    store = sqlite3.connect(Path(record.folder) / f"shard-{shard}-of-2" / "items.sqlite", timeout=30)
    store.execute("CREATE TRIGGER full BEFORE INSERT ON items BEGIN SELECT RAISE(ABORT, 'the disk is full'); END")
    try:
        yield
    finally:
        store.execute("DROP TRIGGER full")
        store.close()


def bulk(served: Served, ids: list[str]) -> httpx.Response:
    lines = "\n".join(json.dumps({"item_id": item_id, "title": f"hose {item_id}"}) for item_id in ids)
    return served.http.post("/v1/items/bulk", content=lines, headers={"content-type": "application/x-ndjson"})


def test_a_bulk_write_says_which_lines_a_shard_could_not_take(served: Served) -> None:
    ids = [f"h{i}" for i in range(8)]
    lost = [item_id for item_id in ids if owner(item_id, 2) == 1]
    assert 0 < len(lost) < len(ids)
    with refusing(1):
        answer = bulk(served, [*ids, ids[0]]).json()
        assert_error(bulk(served, lost), 503, "the disk is full")
        whole = served.http.put("/v1/items", json={"items": [{"item_id": i, "title": "hose"} for i in ids]})
        assert_error(whole, 503, "shard 1 of the index cannot do its part")
    assert {row["item_id"] for row in answer["rows"] if row["error"]} == set(lost)
    assert all("shard 1" in row["error"] for row in answer["rows"] if row["error"])
    assert answer["written"] == sum(row["error"] is None for row in answer["rows"]) == 9 - answer["failed"]
    assert [i for i in ids if served.http.get(f"/v1/items/{i}").status_code == 404] == lost
    again = bulk(served, ids).json()
    assert (again["written"], again["failed"]) == (8, 0)
    assert served.http.post("/v1/items/delete", json={"item_ids": ids}).json() == {"deleted": 8}


def test_items_a_page_at_a_time(served: Served) -> None:
    seen, after = [], ""
    while after is not None:
        page = served.http.get("/v1/items", params={"limit": 20, "after": after}).json()
        seen += [item["item_id"] for item in page["items"]]
        after = page["after"]
    assert seen == sorted(f"p{i}" for i in range(len(TITLES)))


def test_keys_and_their_scopes(served: Served) -> None:
    body = {"query": "tea", "reason": "never"}
    item = {"items": [{"item_id": "x", "title": "x"}]}
    with httpx.Client(base_url=served.url, timeout=60) as nobody:
        assert_error(nobody.post("/v1/search", json=body), 401, "no key was sent")
        assert_error(nobody.get("/metrics"), 401, "no key was sent")
        wrong = nobody.post("/v1/search", json=body, headers={"authorization": "Bearer nonsense"})
        assert_error(wrong, 401, "not known here")
        assert wrong.headers["www-authenticate"] == "Bearer"
        assert nobody.get("/healthz").status_code == nobody.get("/readyz").status_code == 200
        assert nobody.get("/").status_code == nobody.get("/docs").status_code == 200
        reader = {"authorization": f"Bearer {READ}"}
        assert nobody.post("/v1/search", json=body, headers=reader).status_code == 200
        for answer in (
            nobody.put("/v1/items", json=item, headers=reader),
            nobody.delete("/v1/items/x", headers=reader),
            nobody.post("/v1/items/bulk", content="{}", headers=reader),
        ):
            assert_error(answer, 403, "may read, not write")
    assert len(client(served, READ).embeddings.create(model="lrem", input="tea").data) == 1
    with pytest.raises(openai.AuthenticationError):
        client(served).embeddings.create(model="lrem", input="tea")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_long_body_is_refused(served: Served, chunked: bool) -> None:
    body = b'{"query": "' + b"a" * 600_000 + b'"}'
    content: Any = iter([body[:300_000], body[300_000:]]) if chunked else body
    answer = served.http.post("/v1/search", content=content, headers={"content-type": "application/json"})
    assert_error(answer, 413, "more than 0.5 MiB")


def test_too_many_at_once_are_told_to_come_back(served: Served) -> None:
    async def burst() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=served.url, timeout=90, headers=WRITER) as http:
            asked = (http.post("/v1/search", json={"query": f"burst {i}", "reasonings": 4}) for i in range(120))
            return list(await asyncio.gather(*asked))

    answers = asyncio.run(burst())
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 429}
    refused = answers[codes.index(429)]
    assert_error(refused, 429, "wait a second")
    assert refused.headers["retry-after"] == "1"
    assert search(served, query="after the burst")["results"][0]["items"]


def test_without_keys_only_loopback_is_bound(world: Config) -> None:
    def config(**changes: Any) -> Config:
        return world.model_copy(update={"serve": world.serve.model_copy(update=changes)})

    with pytest.raises(ConfigError, match=r"serve\.host=0\.0\.0\.0 can be reached by others: set serve\.keys_file"):
        deploy.start(config(host="0.0.0.0", keys_file=None))
    short = world.run_dir / "short"
    short.write_text("read abc\n")
    with pytest.raises(ConfigError, match="line 1: write 'read KEY' or 'write KEY'"):
        deploy.start(config(keys_file=short))
    with pytest.raises(ConfigError, match=r"192\.0\.2\.200 is none of the cluster's machines"):
        deploy.start(config(index_nodes=["192.0.2.200"], shards=3))
    assert httpx.get(deploy.base_url(world) + "/healthz").status_code == 200  # what runs goes on


def test_a_client_that_leaves_ends_its_generation(served: Served) -> None:
    """Sixteen samples for each of many queries take a second or so; the client leaves earlier or later in it."""
    record = live_record.read()
    assert record is not None
    aborted = get_deployment_handle("Reasoner", record.application).ping
    before = aborted.remote().result(timeout_s=60)
    for attempt in range(24):  # too soon, and it is given up before it is read; too late, and it is answered
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
        pytest.fail("nothing was taken out of the engine")
    left = 'lrem_requests_total{path="/v1/search",status="499"}'
    while counted(served, left) == 0 and time.monotonic() < deadline + 10:
        time.sleep(0.1)
    assert counted(served, left) > 0
    assert counted(served, 'lrem_requests_total{path="/v1/search",status="500"}') == 0
    assert not search(served, query="right behind", reason="always")["degraded"]


def kill(deployment: str, survivors: int = 0) -> None:
    found = replicas(deployment)
    assert found, f"no replica of {deployment}"
    for process in found[: len(found) - survivors]:
        process.kill()


def wait_ready(served: Served) -> None:
    deadline = time.monotonic() + 120
    while served.http.get("/readyz").status_code != 200:
        assert time.monotonic() < deadline, served.http.get("/readyz").text
        time.sleep(0.5)


def test_a_shard_answers_from_its_other_replica(served: Served) -> None:
    expected = search(served, queries=QUERIES, k=20, reason="never")["results"]
    kill("IndexShard0", survivors=1)
    for _ in range(10):
        found = search(served, queries=QUERIES, k=20, reason="never", complete=True)["results"]
        for one, other in zip(found, expected, strict=True):
            assert [item["item_id"] for item in one["items"]] == [item["item_id"] for item in other["items"]]
    assert put(served, {"item_id": "late", "title": "late arrival"})["written"] == 1
    wait_ready(served)
    for _ in range(6):  # whichever replica answers
        assert served.http.get("/v1/items/late").status_code == 200
    served.http.delete("/v1/items/late")


def test_without_a_shard_the_rest_answers_and_writes_survive(served: Served) -> None:
    items = [{"item_id": f"kept{i}", "title": f"kept through the crash {i}"} for i in range(20)]
    assert put(served, *items)["new"] == 20
    body = {"query": QUERIES[0], "k": 100, "reason": "never"}
    with suspended("IndexShard1"), ThreadPoolExecutor(3) as pool:
        found = pool.submit(search, served, **body)
        whole = pool.submit(served.http.post, "/v1/search", json=body | {"complete": True})
        ready = pool.submit(served.http.get, "/readyz")
        answer, refused = found.result(), whole.result()
        assert (ready.result().status_code, ready.result().json()["missing"]) == (503, ["shard 1"])
    assert answer["missing_shards"] == [1]
    assert 0 < len(answer["results"][0]["items"]) < len(TITLES) + 20
    assert_error(refused, 503, "shards [1]")
    assert refused.json()["error"]["code"] == "incomplete"
    kill("IndexShard1")
    wait_ready(served)
    assert count(served) == len(TITLES) + 20
    found = {item["item_id"] for item in search(served, query="kept", k=100, reason="never")["results"][0]["items"]}
    assert {item["item_id"] for item in items} <= found
    served.http.post("/v1/items/delete", json={"item_ids": [item["item_id"] for item in items]})


@pytest.mark.slow
def test_without_the_reasoner_queries_are_embedded_as_they_are(served: Served) -> None:
    with suspended("Reasoner"):
        answer = search(served, query="who thinks about this now", k=49)
        direct = search(served, query="who thinks about this now", k=49, reason="never")
        assert asyncio.run(degraded_in(6.0))
    assert answer["degraded"]
    assert answer["results"][0]["reasoning"] is None
    assert answer["results"][0]["items"] == direct["results"][0]["items"]
    assert counted(served, 'lrem_degraded_total{cause="TimeoutError"}') >= 1
    kill("Reasoner")
    wait_ready(served)
    again = search(served, query="who thinks about this now", k=49)
    assert not again["degraded"]
    assert again["results"][0]["reasoning"]


async def degraded_in(seconds: float) -> bool:
    """Whether a query goes unthought where a request has less time left than the reasoner may take."""
    record = live_record.read()
    assert record is not None
    names = ("Reasoner", "Embedder", "IndexShard0", "IndexShard1")
    reasoner, embedder, *shards = (get_deployment_handle(name, record.application) for name in names)
    measures = Measures()
    backend = Backend(Parts(record.model, reasoner, embedder, shards), ServeConfig(reason_timeout_s=50), measures)
    phases = Phases(seconds, measures)
    await backend.think(phases, ["short of time"], "always", 1)
    return phases.degraded


def test_queries_are_not_in_the_logs(served: Served) -> None:
    marker = "unmistakable7c1e9"
    assert search(served, queries=[f"{marker} shoes", f"{marker} boots"], reasonings=2)["results"]
    refused = served.http.post("/v1/search", json={"query": marker, "k": 0, "filter": {marker: {"$has": marker}}})
    assert refused.status_code == 422
    assert client(served, WRITE).embeddings.create(model="lrem", input=marker).data
    with suspended("Reasoner"):
        assert search(served, query=f"{marker} without a thought")["degraded"]
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    written = b"".join(file.read_bytes() for file in logs.rglob("*") if file.is_file())
    assert b"exact search is fast" in written  # the shards' reason for their structure: these are the logs
    assert marker.encode() not in written


@pytest.mark.slow
def test_who_deployed_first_leaves_what_another_deployed(served: Served, world: Config, tmp_path: Path) -> None:
    """Two processes: this one, and `lrem serve`, which takes over; then this one again."""
    file, told = tmp_path / "config.yaml", tmp_path / "told"
    file.write_text(to_yaml(world))
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "-m", "ray_apps.cli.main", "serve", "--config", str(file)]
    with told.open("w") as out:
        other = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while "serving on" not in told.read_text():
            assert other.poll() is None, told.read_text()
            assert time.monotonic() < deadline, told.read_text()
            time.sleep(0.2)
        assert not deploy.leave()
        assert served.http.get("/readyz").status_code == 200
        deploy.start(world)
    finally:
        other.terminate()
        code = other.wait(60)
    assert code == 130
    assert "another `lrem serve` has taken over" in told.read_text()
    assert served.http.get("/readyz").status_code == 200


class Load(threading.Thread):
    """Searches and writes one after the other until it is told to end; keeps what failed, and what was acknowledged."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url, self.over = url, threading.Event()
        self.failed: list[str] = []
        self.models: set[str] = set()
        self.written: dict[str, int] = {}
        self.asked = 0

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=90, headers=WRITER) as http:
            while not self.over.is_set():
                self.asked += 1
                item = {"item_id": f"load{self.asked % 30}", "title": f"written {self.asked}", "n": self.asked}
                written = http.put("/v1/items", json={"items": [item]})
                if written.status_code == 200:
                    self.written[item["item_id"]] = self.asked
                found = http.post("/v1/search", json={"query": f"load {self.asked}", "complete": True})
                self.failed += [a.text for a in (written, found) if a.status_code != 200]
                if found.status_code == 200:
                    self.models.add(found.json()["model"])


@pytest.mark.slow
def test_a_new_model_takes_over_under_load(served: Served, world: Config, tmp_path: Path) -> None:
    """Another model with an index of its own, while it is searched and written to: nothing fails, nothing is lost."""
    put(served, {"item_id": "before", "title": "written before"}, {"item_id": "p3", "title": "changed before"})
    served.http.delete("/v1/items/p4")
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    refused = served.http.put("/v1/items", json={"items": [{"item_id": "deep", "title": "deep", "x": deep}]})
    assert_error(refused, 422, "nested 16 deep")
    other = build_world(tmp_path, world.serve.port, seed=1)
    paths = world.paths.model_copy(update={"model": other.path("model"), "index": other.path("index")})
    config = world.model_copy(update={"paths": paths})
    load = Load(served.url)
    load.start()
    try:
        time.sleep(2)
        assert deploy.start(config) == served.url
        time.sleep(2)
    finally:
        load.over.set()
        load.join(120)
    assert load.failed == []
    record = live_record.read()
    assert record is not None
    assert load.models == {served.index.model, record.model}
    assert served.http.get("/healthz").json()["model"] == record.model
    for item_id, number in load.written.items():
        assert served.http.get(f"/v1/items/{item_id}").json()["payload"]["n"] == number
    assert served.http.get("/v1/items/before").json()["payload"]["title"] == "written before"
    assert served.http.get("/v1/items/p3").json()["payload"]["title"] == "changed before"
    assert served.http.get("/v1/items/p4").status_code == 404
    assert count(served) == len(TITLES) + len(load.written)  # one came before, one went
    manifest = take_snapshot(str(live_folder(config)), str(tmp_path / "saved"), None)
    assert manifest["count"] == count(served)
    saved = snapshot.load(tmp_path / "saved", record.model)
    assert len(saved) == manifest["count"]
    saved.close()


def test_after_a_restart_everything_written_is_there(served: Served, world: Config) -> None:
    """The application is stopped, and its shards' folders are opened by nobody but this test."""
    record = live_record.read()
    assert record is not None
    expected = count(served)
    assert deploy.leave()
    found = [Collection(folder) for folder in Path(record.folder).glob("shard-*-of-2")]
    assert sum(map(len, found)) == expected
    for collection in found:
        collection.close()
