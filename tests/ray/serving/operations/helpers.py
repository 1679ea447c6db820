"""What the modules of this package share: keys, reads and writes of items, and faults."""

import json
import time
from typing import Any

import httpx

from ray_apps.serving import live_record
from ray_apps.serving.live_record import LiveRecord
from tests.serving import Served, replica_processes

READ, WRITE = "r" * 20, "w" * 20
KEYS = f"# who may do what\nread {READ}\nwrite {WRITE}\n"
WRITER = {"authorization": f"Bearer {WRITE}"}


def put(served: Served, *items: dict[str, Any]) -> dict[str, Any]:
    """Write items with `PUT /v1/items`, which must succeed; return its JSON."""
    response = served.http.put("/v1/items", json={"items": items})
    assert response.status_code == 200, response.text
    return dict(response.json())


def bulk(served: Served, ids: list[str]) -> httpx.Response:
    """Write items with `POST /v1/items/bulk`."""
    lines = "\n".join(json.dumps({"item_id": item_id, "title": f"hose {item_id}"}) for item_id in ids)
    return served.http.post("/v1/items/bulk", content=lines, headers={"content-type": "application/x-ndjson"})


def count(served: Served, where: Any = None) -> int:
    """Return how many items match a filter."""
    return int(served.http.post("/v1/items/count", json={"filter": where}).json()["count"])


def read_live_record() -> LiveRecord:
    """Return the live record, which must exist."""
    record = live_record.read()
    assert record is not None
    return record


def kill(deployment: str, survivors: int = 0) -> None:
    """Kill the replicas of a deployment but `survivors`."""
    processes = replica_processes(deployment)
    assert processes, f"no replica of {deployment}"
    for process in processes[: len(processes) - survivors]:
        process.kill()


def wait_ready(served: Served) -> None:
    """Wait until every deployment answers."""
    deadline = time.monotonic() + 120
    while served.http.get("/readyz").status_code != 200:
        assert time.monotonic() < deadline, served.http.get("/readyz").text
        time.sleep(0.5)
