"""The search service under load while replicas are killed with SIGKILL, one at a time, and a new model is rolled out.

Callers in a closed loop search (reasoning never, auto, always; `complete`), embed, write, delete and read. The service
has two replicas of everything and recovers fully between two faults. A request that fails with a connection error or
status 5xx is sent once more, after the `Retry-After` of the response if there is one. Each caller writes to its own
ids, so it knows which values each id may have: the last acknowledged one, or a later one that was not acknowledged. At
the end, every id is read from the new model's service and, after that has stopped, from the shards' folders.

Prints a table of faults and writes a JSON file. Exits with 1 if a request failed twice or an item was lost.

    python benchmarks/chaos_serve.py --out benchmarks/results/chaos_serve.json
"""

import argparse
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
from chaos_load import TITLES, Caller, RequestRecord, Value, send_once
from ray import serve as ray_serve
from rich.console import Console
from rich.table import Table
from serve_common import free_port

from lrem.config import Config, ModelConfig
from lrem.data.files import write_json
from lrem.index import Collection
from lrem.index.bulk_load import ItemBatch, build_snapshot
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.tokenizer import train_tokenizer
from ray_apps.cluster.session import cluster
from ray_apps.serving import deploy
from ray_apps.serving.generation import NAME, plan_generation

CALLERS, SHARDS = 8, 2
VICTIMS = {"reasoner": "Reasoner", "embedder": "Embedder", "shard": "IndexShard", "ingress": "Ingress"}
ROLL_OUT, NOTHING = "new model", "none"
QUIET_S = 5.0  # between faults
REQUEST_S, PATIENCE_S = 90, 300  # limits; the first is above the service's own
SAME, SHOWN = 0.999, 50  # cosine of equal vectors; failed requests and lost items to list
COLUMNS = ("requests", "retried", "failed", "degraded", "incomplete")
WRONG = ("lost acknowledged writes", "unknown items", "strange vectors")  # must all be zero


class Window(NamedTuple):
    """A fault, and the time from it until the service was ready again."""

    fault: str
    begun: float
    ended: float


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--rounds", type=int, default=5, help="how often each deployment loses a replica")
    arguments.add_argument("--small", action="store_true", help="only one reasoner, for little memory")
    arguments.add_argument("--out", type=Path, required=True)
    given = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that started processes are stopped
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        config, new = world(Path(folder), 1 if given.small else 2)
        with cluster(config):
            report = run(config, new, given)
    write_json(report, given.out)
    show(report)
    if report["requests"]["failed"] or any(report["items"][name] for name in WRONG):
        raise SystemExit(1)


def world(folder: Path, reasoners: int) -> tuple[Config, Config]:
    """Return the configurations of two services: the same items, and two models with random weights."""
    sizes = ModelConfig(vocab_size=500, hidden_size=64, intermediate_size=96, layers=2, heads=2, kv_heads=2)
    tokenizer = train_tokenizer(TITLES, 500)
    for seed in (0, 1):
        embedder = ReasoningEmbedder.from_config(sizes, tokenizer, seed).eval()
        with torch.no_grad():  # random tied weights repeat the last token, here `<think>`: prevent it
            embedder.lm.get_input_embeddings().weight[embedder.renderer.think] = 0
        model = embedder.save(folder / f"model-{seed}")
        ids, payloads = [f"p{i}" for i in range(len(TITLES))], [{"title": title, "n": 0} for title in TITLES]
        batch = ItemBatch(ids, payloads, embedder.encode_items(TITLES))
        build_snapshot(folder / f"index-{seed}", [batch], model, embedder.dimension)
    parts = {name: {"replicas": 2} for name in ("ingress", "embedder", "shard")} | {"reasoner": {"replicas": reasoners}}
    common: dict[str, Any] = {"run_dir": folder, "serve": {"port": free_port(), "shards": SHARDS} | parts}
    common["ray"] = {"num_cpus": 32, "start_timeout_s": 2 * PATIENCE_S, "address": "local"}
    paths = [{"model": folder / f"model-{seed}", "index": folder / f"index-{seed}"} for seed in (0, 1)]
    return Config.model_validate(common | {"paths": paths[0]}), Config.model_validate(common | {"paths": paths[1]})


def run(config: Config, new: Config, given: argparse.Namespace) -> dict[str, Any]:
    """Serve under load, inject the faults, roll out the new model, and check every write."""
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
                future.result()  # raises the caller's error, if any
            served = {item_id: read(http, item_id) for caller in callers for item_id in caller.ids}
    finally:
        deploy.stop()
    report = requests(windows, [record for caller in callers for record in caller.records])
    return {"setting": setting} | report | {"items": items(callers, served, *on_disk(new))}


def faults(config: Config, new: Config, rounds: int) -> Iterator[Window]:
    """Inject one fault after the other, each until the service is ready again; the last is the new model."""
    draw = random.Random(0)
    for fault, deployment in [*VICTIMS.items()] * rounds:
        time.sleep(QUIET_S)
        yield window(fault, config, draw.choice(replicas(deployment)).kill)
    time.sleep(QUIET_S)
    yield window(ROLL_OUT, new, lambda: deploy.start(new))
    time.sleep(QUIET_S)  # the load goes on


def window(fault: str, config: Config, act: Callable[[], Any]) -> Window:
    """Inject a fault and wait until the service is ready again."""
    begun = time.monotonic()
    act()
    wait_until_ready(config)
    print(f"{fault}: ready again after {time.monotonic() - begun:.1f} s", flush=True)
    return Window(fault, begun, time.monotonic())


def replicas(deployment: str) -> list[psutil.Process]:
    """Return the replica processes of all deployments whose name starts so, in this program's Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error, IndexError):  # it just ended
            if process.cmdline()[0].rpartition(":")[2].startswith(deployment):  # …:ServeReplica:application:name
                found.append(process)
    return found


def wait_until_ready(config: Config) -> None:
    """Wait until every replica is ready."""
    deadline = time.monotonic() + PATIENCE_S
    while problem := unready(config):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_S} s for every replica: {problem}")
        time.sleep(0.2)


def unready(config: Config) -> str:
    """Return what is not ready: replicas as Serve counts them, their processes, or /readyz; empty if all are ready.

    Serve counts a killed replica until its next health check; the processes show it at once.
    """
    served = config.serve
    wanted = {"Generation": 1, "Reasoner": served.reasoner.replicas, "Embedder": served.embedder.replicas}
    wanted |= {f"IndexShard{i}": served.shard.replicas for i in range(served.shards)}
    parts = {(plan_generation(config).name, name): count for name, count in wanted.items()}
    parts[NAME, "Ingress"] = served.ingress.replicas
    status = ray_serve.status().applications
    counted = {(one, name): dict(at.replica_states) for one in status for name, at in status[one].deployments.items()}
    if counted != {part: {"RUNNING": count} for part, count in parts.items()}:
        return f"Serve counts {counted}"
    if (processes := {part: len(replicas(part[1])) for part in parts}) != parts:
        return f"running processes: {processes}"
    with httpx.Client(base_url=deploy.base_url(config), timeout=REQUEST_S) as http:
        return send_once(http, "GET", "/readyz")[1]


def read(http: httpx.Client, item_id: str) -> Value:
    """Return the value that the service has for an id."""
    answer, why, _ = send_once(http, "GET", f"/v1/items/{item_id}")
    if why:
        raise RuntimeError(f"{item_id} cannot be read: {why}")
    return answer.get("payload", {}).get("n")


def on_disk(config: Config) -> tuple[dict[str, Value], int]:
    """Return the values in the shards' folders, and how many vectors differ from the embedding of their title."""
    embedder = ReasoningEmbedder.load(config.path("model")).eval()
    values: dict[str, Value] = {}
    strange = 0
    for folder in sorted(plan_generation(config).folder.glob(f"shard-*-of-{SHARDS}")):
        collection = Collection(folder)
        stored = collection.get([item_id for item_id, _ in collection.scroll(len(collection)).items])
        collection.close()
        expected = embedder.encode_items([item.payload["title"] for item in stored.values()])
        cosines = (expected * np.stack([item.vector for item in stored.values()])).sum(axis=1)
        strange += int((cosines < SAME).sum())
        values |= {item_id: item.payload["n"] for item_id, item in stored.items()}
    return values, strange


def items(callers: list[Caller], served: dict[str, Value], kept: dict[str, Value], strange: int) -> dict[str, Any]:
    """Count the writes: an item is lost if it has a value that it may not have, served or on disk."""
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


def requests(windows: list[Window], load: list[RequestRecord]) -> dict[str, Any]:
    """Count the requests by fault; a request belongs to the first window that it overlaps."""
    of: dict[str, list[RequestRecord]] = {fault: [] for fault in (NOTHING, *(window.fault for window in windows))}
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


def counts(records: list[RequestRecord]) -> dict[str, Any]:
    """Count requests, their errors and latencies."""
    late = sorted(1000 * (one.ended - one.begun) for one in records) or [0.0]
    cut = Counter(f"{one.kind}: {one.cuts[0][:90]}" for one in records if one.cuts)
    lacking = [
        sum(bool(getattr(one, what)) for one in records) for what in ("cuts", "failed", "degraded", "incomplete")
    ]
    return dict(zip(COLUMNS, [len(records), *lacking], strict=True)) | {
        "ms": [round(late[int(share * (len(late) - 1))]) for share in (0.5, 0.95, 1)],
        "retried because of": dict(cut.most_common()),
    }


def show(report: dict[str, Any]) -> None:
    """Print the table of faults."""
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
