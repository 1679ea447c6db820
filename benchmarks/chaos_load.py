"""The load of chaos_serve.py: callers that search, embed, write, delete and read, and record every request."""

import itertools
import json
import random
import threading
import time
from typing import Any, NamedTuple

import httpx

STUFFS = ["wool", "steel", "oak", "cotton", "leather", "glass", "paper", "rubber", "stone", "bamboo"]
THINGS = ["coat", "boots", "stove", "helmet", "pot", "chair", "lamp", "table", "bag", "bottle", "clock", "ladder"]
TITLES = [f"{stuff} {thing} of {year}" for stuff in STUFFS for thing in THINGS for year in range(2016, 2026)]
WEIGHTS = {"never": 4, "auto": 3, "always": 3, "embed": 3, "put": 5, "bulk": 2, "delete": 3, "get": 3}
NEW_IDS, BULK = 100, 10  # ids per caller besides its share of the snapshot; items per bulk write
PAUSE_S = 0.05  # between a caller's requests, so that replicas can start
LOAD_S, MAX_REQUESTS = 3600, 50_000  # limits per caller
Value = int | None  # the number that an item was written with; None: no such item


class RequestRecord(NamedTuple):
    """One request of the load: when it ran, its errors (at most two), why it failed, what its response lacked."""

    kind: str
    begun: float
    ended: float
    cuts: list[str]
    failed: str
    degraded: bool
    incomplete: bool


class Caller:
    """One caller of the load, and the values that each of its ids may have; `ids` are its share of the snapshot."""

    def __init__(self, http: httpx.Client, number: int, ids: list[str]) -> None:
        self.http, self.draw, self.numbers = http, random.Random(number), itertools.count(number * 10**6 + 1)
        self.may: dict[str, set[Value]] = {item_id: {0} for item_id in ids}
        self.may |= {f"new-{number}-{i}": {None} for i in range(NEW_IDS)}
        self.ids, self.records, self.acknowledged, self.stale = list(self.may), list[RequestRecord](), 0, 0

    def run(self, over: threading.Event) -> None:
        """Send requests until `over` is set."""
        deadline = time.monotonic() + LOAD_S
        while not over.wait(PAUSE_S):
            if time.monotonic() > deadline or len(self.records) == MAX_REQUESTS:
                raise TimeoutError(f"a caller ran for {LOAD_S} s or sent {MAX_REQUESTS} requests: take fewer rounds")
            self.ask(*self.draw.choices(list(WEIGHTS), list(WEIGHTS.values())))

    def ask(self, kind: str) -> None:
        """Send one request with new text, so that no response comes from the cache."""
        number, ids = next(self.numbers), self.draw.sample(self.ids, BULK if kind == "bulk" else 1)
        text = f"{self.draw.choice(TITLES)} {number}"
        items = [{"item_id": item_id, "title": text, "n": number} for item_id in ids]
        match kind:
            case "put":
                self.write(kind, ids, number, "PUT", "/v1/items", json={"items": items})
            case "bulk":
                lines, kinds = "\n".join(map(json.dumps, items)), {"content-type": "application/x-ndjson"}
                self.write(kind, ids, number, "POST", "/v1/items/bulk", content=lines, headers=kinds)
            case "delete":
                self.write(kind, ids, None, "POST", "/v1/items/delete", json={"item_ids": ids})
            case "get":  # every replica should return what was acknowledged
                found = self.send(kind, "GET", f"/v1/items/{ids[0]}")
                self.stale += found is not None and found.get("payload", {}).get("n") not in self.may[ids[0]]
            case "embed":
                self.send(kind, "POST", "/v1/embeddings", json={"input": text})
            case _:
                self.send(kind, "POST", "/v1/search", json={"query": text, "reason": kind, "complete": True})

    def write(self, kind: str, ids: list[str], value: Value, *request: str, **body: Any) -> None:
        """Send a write and update the values that its ids may have."""
        answer = self.send(kind, *request, **body)
        if answer is not None and not answer.get("failed"):
            self.acknowledged += len(ids)
            self.may |= {item_id: {value} for item_id in ids}
        else:
            self.may |= {item_id: self.may[item_id] | {value} for item_id in ids}

    def send(self, kind: str, method: str, path: str, **body: Any) -> Any:
        """Send a request, twice at most, and return the response; None if both failed."""
        begun, cuts = time.monotonic(), list[str]()
        for _ in range(2):
            answer, why, wait_s = send_once(self.http, method, path, **body)
            if not why or why.startswith("4"):
                break
            cuts.append(why)
            time.sleep(wait_s)
        response = answer or {}
        incomplete = bool(response.get("missing_shards")) or any(
            "incomplete" in cut or "no shard" in cut for cut in cuts
        )
        self.records.append(
            RequestRecord(kind, begun, time.monotonic(), cuts, why, bool(response.get("degraded")), incomplete)
        )
        return answer


def send_once(http: httpx.Client, method: str, path: str, **body: Any) -> tuple[Any, str, float]:
    """Return the response, or None and the reason, and the seconds to wait before a retry."""
    try:
        answer = http.request(method, path, **body)
    except httpx.TransportError as error:
        return None, f"{type(error).__name__}: {error}"[:200], 0.0
    if answer.status_code == 200 or '"item_not_found"' in answer.text:  # "no such item" is a response
        return answer.json(), "", 0.0
    return None, f"{answer.status_code} {answer.text}"[:300], float(answer.headers.get("retry-after", 0))
