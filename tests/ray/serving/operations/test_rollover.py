"""A new model or another process takes over, and a restart: no write is lost."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray

from lrem.config import Config
from lrem.config.loader import to_yaml
from lrem.index import Collection, snapshot
from ray_apps.indexing.maintenance import save_served_index, served_folder
from ray_apps.serving import deploy
from tests.ray.serving.operations.helpers import WRITER, count, put, read_live_record
from tests.serving import TITLES, Served, assert_error, build_world


@pytest.mark.slow
def test_only_the_last_process_that_deployed_stops_the_service(served: Served, world: Config, tmp_path: Path) -> None:
    """This process deployed first; `lrem serve` takes over; then this process again."""
    file, output = tmp_path / "config.yaml", tmp_path / "output"
    file.write_text(to_yaml(world))
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "-m", "ray_apps.cli.main", "serve", "--config", str(file)]
    with output.open("w") as out:
        other = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while "serving on" not in output.read_text():
            assert other.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.2)
        assert not deploy.stop_if_owner()
        assert served.http.get("/readyz").status_code == 200
        deploy.start(world)
    finally:
        other.terminate()
        code = other.wait(60)
    assert code == 130
    assert "another `lrem serve` has taken over" in output.read_text()
    assert served.http.get("/readyz").status_code == 200


class ServiceLoad(threading.Thread):
    """Writes and searches in turn until `over` is set; keeps the failures and the acknowledged writes."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url, self.over = url, threading.Event()
        self.failures: list[str] = []
        self.models: set[str] = set()
        self.written: dict[str, int] = {}
        self.requests = 0

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=90, headers=WRITER) as http:
            while not self.over.is_set():
                self.requests += 1
                item = {"item_id": f"load{self.requests % 30}", "title": f"written {self.requests}", "n": self.requests}
                write = http.put("/v1/items", json={"items": [item]})
                if write.status_code == 200:
                    self.written[item["item_id"]] = self.requests
                searched = http.post("/v1/search", json={"query": f"load {self.requests}", "complete": True})
                self.failures += [r.text for r in (write, searched) if r.status_code != 200]
                if searched.status_code == 200:
                    self.models.add(searched.json()["model"])


@pytest.mark.slow
def test_a_new_model_replaces_the_old_one_under_load(served: Served, world: Config, tmp_path: Path) -> None:
    """Another model and index replace those that are searched and written to: no request fails, no write is lost."""
    put(served, {"item_id": "before", "title": "written before"}, {"item_id": "p3", "title": "changed before"})
    served.http.delete("/v1/items/p4")
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    refused = served.http.put("/v1/items", json={"items": [{"item_id": "deep", "title": "deep", "x": deep}]})
    assert_error(refused, 422, "16")
    other = build_world(tmp_path, world.serve.port, seed=1)
    paths = world.paths.model_copy(update={"model": other.path("model"), "index": other.path("index")})
    config = world.model_copy(update={"paths": paths})
    load = ServiceLoad(served.url)
    load.start()
    try:
        time.sleep(2)
        assert deploy.start(config) == served.url
        time.sleep(2)
    finally:
        load.over.set()
        load.join(120)
    assert load.failures == []
    record = read_live_record()
    assert load.models == {served.index.model, record.model}
    assert served.http.get("/healthz").json()["model"] == record.model
    for item_id, number in load.written.items():
        assert served.http.get(f"/v1/items/{item_id}").json()["payload"]["n"] == number
    assert served.http.get("/v1/items/before").json()["payload"]["title"] == "written before"
    assert served.http.get("/v1/items/p3").json()["payload"]["title"] == "changed before"
    assert served.http.get("/v1/items/p4").status_code == 404
    assert count(served) == len(TITLES) + len(load.written)  # "before" was added, "p4" deleted
    manifest = save_served_index(str(served_folder(config)), str(tmp_path / "saved"), None)
    assert manifest["count"] == count(served)
    saved = snapshot.open_snapshot(tmp_path / "saved", record.model)
    assert len(saved) == manifest["count"]
    saved.close()


def test_writes_survive_the_end_of_the_service(served: Served, world: Config) -> None:
    """The service is stopped, and this test opens its shards' folders."""
    record = read_live_record()
    expected = count(served)
    assert deploy.stop_if_owner()
    collections = [Collection(folder) for folder in Path(record.folder).glob("shard-*-of-2")]
    assert sum(map(len, collections)) == expected
    for collection in collections:
        collection.close()
