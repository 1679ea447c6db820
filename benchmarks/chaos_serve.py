"""The service under fire: replicas are killed with SIGKILL in turn, then a new model is rolled out, all under load.

Callers in a closed loop search (never, auto and always thinking, `complete`), embed, write, delete and read against the
real application, which has two replicas of everything; between two faults it is whole for a while. A request that is
cut, by a connection error or a 5xx, is sent once more, after the `Retry-After` of its answer where there is one. Each
caller writes to ids of its own, so that it knows what each may hold: the last acknowledged value, or a later one that
was not acknowledged. In the end every id is read from the new model's application and, once that is stopped, from the
shards' folders.

Prints a table fault → what happened, and writes a JSON; exits with 1 where a request failed twice or an item was lost.

    python benchmarks/chaos_serve.py --out benchmarks/results/chaos_serve.json
"""

import argparse
import itertools
import json
import os
import platform
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil
import torch
from ray import serve as ray_serve
from rich.console import Console
from rich.table import Table
from serve_common import free_port

from lrem.config import Config, ModelConfig
from lrem.data.files import write_json
from lrem.index import Collection
from lrem.index.bulk_load import Batch, write
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.tokenizer import train_tokenizer
from ray_apps.cluster.session import cluster
from ray_apps.serving import deploy
from ray_apps.serving.generation import NAME, plan

STUFFS = ["wool", "steel", "oak", "cotton", "leather", "glass", "paper", "rubber", "stone", "bamboo"]
THINGS = ["coat", "boots", "stove", "helmet", "pot", "chair", "lamp", "table", "bag", "bottle", "clock", "ladder"]
TITLES = [f"{stuff} {thing} of {year}" for stuff in STUFFS for thing in THINGS for year in range(2016, 2026)]
CALLERS, SHARDS, NEW_IDS, BULK = 8, 2, 100, 10  # NEW_IDS: of each caller, besides its part of the snapshot's
VICTIMS = {"reasoner": "Reasoner", "embedder": "Embedder", "shard": "IndexShard", "ingress": "Ingress"}
ROLL_OUT, NOTHING = "new model", "none"
WEIGHTS = {"never": 4, "auto": 3, "always": 3, "embed": 3, "put": 5, "bulk": 2, "delete": 3, "get": 3}
PAUSE_S, QUIET_S = 0.05, 5.0  # of a caller between two requests, so that replicas can start; between two faults
REQUEST_S, PATIENCE_S, LOAD_S, MOST = 90, 300, 3600, 50_000  # limits; the first is above the application's own
SAME, SHOWN = 0.999, 50  # cosine of equal vectors; failed requests and lost items that are written down
COLUMNS = ("requests", "retried", "failed", "degraded", "incomplete")
WRONG = ("lost acknowledged writes", "unknown items", "strange vectors")  # of which there should be none
Value = int | None  # the number that an item was written with; None: there is no such item


class Asked(NamedTuple):
    """A request of the load: when, what cut it (nothing, once or twice), why it failed, what its answer lacked."""

    kind: str
    begun: float
    ended: float
    cuts: list[str]
    failed: str
    degraded: bool
    incomplete: bool


class Window(NamedTuple):
    """A fault, and the time from it until everything was ready again."""

    fault: str
    begun: float
    ended: float


class Caller:
    """One of the load's callers, and what each id of its own may hold; `ids` are its part of the snapshot's."""

    def __init__(self, http: httpx.Client, number: int, ids: list[str]) -> None:
        self.http, self.draw, self.numbers = http, random.Random(number), itertools.count(number * 10**6 + 1)
        self.may: dict[str, set[Value]] = {item_id: {0} for item_id in ids}
        self.may |= {f"new-{number}-{i}": {None} for i in range(NEW_IDS)}
        self.ids, self.asked, self.acknowledged, self.stale = list(self.may), list[Asked](), 0, 0

    def run(self, over: threading.Event) -> None:
        deadline = time.monotonic() + LOAD_S
        while not over.wait(PAUSE_S):
            if time.monotonic() > deadline or len(self.asked) == MOST:
                raise TimeoutError(f"a caller asked for {LOAD_S} s or {MOST} times: take fewer rounds")
            self.ask(*self.draw.choices(list(WEIGHTS), list(WEIGHTS.values())))

    def ask(self, kind: str) -> None:
        """One request; its text was never sent before, so that no answer comes from the cache."""
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
            case "get":  # what was acknowledged should be read, by whichever replica
                found = self.send(kind, "GET", f"/v1/items/{ids[0]}")
                self.stale += found is not None and found.get("payload", {}).get("n") not in self.may[ids[0]]
            case "embed":
                self.send(kind, "POST", "/v1/embeddings", json={"input": text})
            case _:
                self.send(kind, "POST", "/v1/search", json={"query": text, "reason": kind, "complete": True})

    def write(self, kind: str, ids: list[str], value: Value, *request: str, **body: Any) -> None:
        answer = self.send(kind, *request, **body)
        if answer is not None and not answer.get("failed"):
            self.acknowledged += len(ids)
            self.may |= {item_id: {value} for item_id in ids}
        else:
            self.may |= {item_id: self.may[item_id] | {value} for item_id in ids}

    def send(self, kind: str, method: str, path: str, **body: Any) -> Any:
        """The answer to a request that is sent twice at most; None without one."""
        begun, cuts = time.monotonic(), list[str]()
        for _ in range(2):
            answer, why, wait_s = once(self.http, method, path, **body)
            if not why or why.startswith("4"):
                break
            cuts.append(why)
            time.sleep(wait_s)
        said = answer or {}
        incomplete = bool(said.get("missing_shards")) or any("incomplete" in cut or "no shard" in cut for cut in cuts)
        self.asked.append(Asked(kind, begun, time.monotonic(), cuts, why, bool(said.get("degraded")), incomplete))
        return answer


def once(http: httpx.Client, method: str, path: str, **body: Any) -> tuple[Any, str, float]:
    """The answer, or None and why there is none, and the seconds to wait before it is worth asking again."""
    try:
        answer = http.request(method, path, **body)
    except httpx.TransportError as error:
        return None, f"{type(error).__name__}: {error}"[:200], 0.0
    if answer.status_code == 200 or '"item_not_found"' in answer.text:  # that an item is not there is an answer
        return answer.json(), "", 0.0
    return None, f"{answer.status_code} {answer.text}"[:300], float(answer.headers.get("retry-after", 0))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--rounds", type=int, default=5, help="how often each part loses a replica")
    arguments.add_argument("--small", action="store_true", help="one reasoner only, where memory is short")
    arguments.add_argument("--out", type=Path, required=True)
    given = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        config, new = world(Path(folder), 1 if given.small else 2)
        with cluster(config):
            report = run(config, new, given)
    write_json(report, given.out)
    show(report)
    if report["requests"]["failed"] or any(report["items"][name] for name in WRONG):
        raise SystemExit(1)


def world(folder: Path, reasoners: int) -> tuple[Config, Config]:
    """The same items twice, with a model of random weights each: what is served first, and what replaces it."""
    sizes = ModelConfig(vocab_size=500, hidden_size=64, intermediate_size=96, layers=2, heads=2, kv_heads=2)
    tokenizer = train_tokenizer(TITLES, 500)
    for seed in (0, 1):
        embedder = ReasoningEmbedder.from_config(sizes, tokenizer, seed).eval()
        with torch.no_grad():  # random, tied weights repeat their last token: not `<think>`, or nothing is thought
            embedder.lm.get_input_embeddings().weight[embedder.renderer.think] = 0
        model = embedder.save(folder / f"model-{seed}")
        ids, payloads = [f"p{i}" for i in range(len(TITLES))], [{"title": title, "n": 0} for title in TITLES]
        batch = Batch(ids, payloads, embedder.encode_items(TITLES))
        write(folder / f"index-{seed}", [batch], model, embedder.dimension)
    parts = {name: {"replicas": 2} for name in ("ingress", "embedder", "shard")} | {"reasoner": {"replicas": reasoners}}
    told: dict[str, Any] = {"run_dir": folder, "serve": {"port": free_port(), "shards": SHARDS} | parts}
    told["ray"] = {"num_cpus": 32, "start_timeout_s": 2 * PATIENCE_S, "address": "local"}
    paths = [{"model": folder / f"model-{seed}", "index": folder / f"index-{seed}"} for seed in (0, 1)]
    return Config.model_validate(told | {"paths": paths[0]}), Config.model_validate(told | {"paths": paths[1]})


def run(config: Config, new: Config, given: argparse.Namespace) -> dict[str, Any]:
    """Serve, ask, break, roll out, and look for what was written."""
    setting = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "load before": round(os.getloadavg()[0], 1)}
    setting |= {"items": len(TITLES), "options": {key: str(value) for key, value in vars(given).items()}}
    url, over = deploy.start(config), threading.Event()
    try:
        wait_until_ready(config)
        shares = [[f"p{i}" for i in range(first, len(TITLES), CALLERS)] for first in range(CALLERS)]
        with httpx.Client(base_url=url, timeout=REQUEST_S) as http, ThreadPoolExecutor(CALLERS) as pool:
            callers = [Caller(http, number, share) for number, share in enumerate(shares)]
            running = [pool.submit(caller.run, over) for caller in callers]
            try:
                windows = list(faults(config, new, given.rounds))
            finally:
                over.set()
            for future in running:
                future.result()  # raises what a caller ended with
            served = {item_id: read(http, item_id) for caller in callers for item_id in caller.ids}
    finally:
        deploy.stop()
    report = requests(windows, [asked for caller in callers for asked in caller.asked])
    return {"setting": setting} | report | {"items": items(callers, served, *on_disk(new))}


def faults(config: Config, new: Config, rounds: int) -> Iterator[Window]:
    """One fault after the other, each until everything is ready again; the last is the new model."""
    draw = random.Random(0)
    for fault, deployment in [*VICTIMS.items()] * rounds:
        time.sleep(QUIET_S)
        yield window(fault, config, draw.choice(replicas(deployment)).kill)
    time.sleep(QUIET_S)
    yield window(ROLL_OUT, new, lambda: deploy.start(new))
    time.sleep(QUIET_S)  # the load goes on


def window(fault: str, config: Config, act: Callable[[], Any]) -> Window:
    begun = time.monotonic()
    act()
    wait_until_ready(config)
    print(f"{fault}: ready again after {time.monotonic() - begun:.1f} s", flush=True)
    return Window(fault, begun, time.monotonic())


def replicas(deployment: str) -> list[psutil.Process]:
    """The processes of replicas, of all deployments whose name begins so, of this program's own Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error, IndexError):  # it has just ended
            if process.cmdline()[0].rpartition(":")[2].startswith(deployment):  # …:ServeReplica:application:name
                found.append(process)
    return found


def wait_until_ready(config: Config) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while found := unready(config):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_S} s for every replica: {found}")
        time.sleep(0.2)


def unready(config: Config) -> str:
    """What is not as it should be: replicas as Serve counts them, their processes, or /readyz; empty if all is well.

    Serve goes on counting a killed replica until it looks; the processes tell at once.
    """
    served = config.serve
    wanted = {"Generation": 1, "Reasoner": served.reasoner.replicas, "Embedder": served.embedder.replicas}
    wanted |= {f"IndexShard{i}": served.shard.replicas for i in range(served.shards)}
    parts = {(plan(config).name, name): count for name, count in wanted.items()}
    parts[NAME, "Ingress"] = served.ingress.replicas
    status = ray_serve.status().applications
    counted = {(one, name): dict(at.replica_states) for one in status for name, at in status[one].deployments.items()}
    if counted != {part: {"RUNNING": count} for part, count in parts.items()}:
        return f"Serve counts {counted}"
    if (processes := {part: len(replicas(part[1])) for part in parts}) != parts:
        return f"there are so many processes: {processes}"
    with httpx.Client(base_url=deploy.base_url(config), timeout=REQUEST_S) as http:
        return once(http, "GET", "/readyz")[1]


def read(http: httpx.Client, item_id: str) -> Value:
    answer, why, _ = once(http, "GET", f"/v1/items/{item_id}")
    if why:
        raise RuntimeError(f"{item_id} cannot be read: {why}")
    return answer.get("payload", {}).get("n")


def on_disk(config: Config) -> tuple[dict[str, Value], int]:
    """What the shards' folders hold, and how many vectors there are not what the model makes of the title."""
    embedder = ReasoningEmbedder.load(config.path("model")).eval()
    values: dict[str, Value] = {}
    strange = 0
    for folder in sorted(plan(config).folder.glob(f"shard-*-of-{SHARDS}")):
        collection = Collection(folder)
        found = collection.get([item_id for item_id, _ in collection.scroll(len(collection)).items])
        collection.close()
        made = embedder.encode_items([item.payload["title"] for item in found.values()])
        cosines = (made * np.stack([item.vector for item in found.values()])).sum(axis=1)
        strange += int((cosines < SAME).sum())
        values |= {item_id: item.payload["n"] for item_id, item in found.items()}
    return values, strange


def items(callers: list[Caller], served: dict[str, Value], kept: dict[str, Value], strange: int) -> dict[str, Any]:
    """What became of the writes: an item is lost where it does not hold what it may, served or on the disk."""
    may = {item_id: values for caller in callers for item_id, values in caller.may.items()}
    lost = [one for one in may if not {served[one], kept.get(one)} <= may[one]]
    return {
        "acknowledged writes": sum(caller.acknowledged for caller in callers),
        "ids in doubt": sum(len(values) > 1 for values in may.values()),  # their last write was not acknowledged
        "lost acknowledged writes": len(lost),
        "unknown items": len(kept.keys() - may.keys()),
        "strange vectors": strange,
        "stale reads": sum(caller.stale for caller in callers),
        "lost items": [[one, "may", *may[one], "is", served[one], kept.get(one)] for one in lost[:SHOWN]],
    }


def requests(windows: list[Window], load: list[Asked]) -> dict[str, Any]:
    """What became of the requests, for each fault; one belongs to the first window that it reaches into."""
    of: dict[str, list[Asked]] = {fault: [] for fault in (NOTHING, *(window.fault for window in windows))}
    for one in load:
        inside = (window.fault for window in windows if one.begun < window.ended and one.ended > window.begun)
        of[next(inside, NOTHING)].append(one)
    ready = {fault: [round(w.ended - w.begun, 1) for w in windows if w.fault == fault] for fault in of}
    failed = [{"fault": fault} | one._asdict() for fault, mine in of.items() for one in mine if one.failed]
    return {
        "faults": {fault: {"ready again after s": ready[fault]} | counts(mine) for fault, mine in of.items()},
        "requests": counts(load),
        "failed requests": failed[:SHOWN],
    }


def counts(asked: list[Asked]) -> dict[str, Any]:
    late = sorted(1000 * (one.ended - one.begun) for one in asked) or [0.0]
    cut = Counter(f"{one.kind}: {one.cuts[0][:90]}" for one in asked if one.cuts)
    lacking = [sum(bool(getattr(one, what)) for one in asked) for what in ("cuts", "failed", "degraded", "incomplete")]
    return dict(zip(COLUMNS, [len(asked), *lacking], strict=True)) | {
        "ms": [round(late[int(share * (len(late) - 1))]) for share in (0.5, 0.95, 1)],
        "retried because of": dict(cut.most_common()),
    }


def show(report: dict[str, Any]) -> None:
    table = Table("fault", "times", *COLUMNS, "ready again after s", "p50 ms", "p95 ms", "max ms")
    for fault, row in report["faults"].items():
        ready = sorted(row["ready again after s"])
        cells = [len(ready), *(row[name] for name in COLUMNS), " to ".join(map(str, ready[:: max(1, len(ready) - 1)]))]
        table.add_row(fault, *map(str, [*cells, *row["ms"]]))
    Console(width=140).print(table)
    found = {f"{name} requests" if name == "failed" else name: report["requests"][name] for name in COLUMNS}
    print(", ".join(f"{value} {name}" for name, value in (found | report["items"]).items() if isinstance(value, int)))


if __name__ == "__main__":
    main()
