"""Part b of serve.py: the search service over HTTP, the same work in one process, and a bare FastAPI server.

    ours        ray_apps.serving.deploy on its own local Ray, with reason=never, auto and always
    in process  the same model, one query at a time: VllmEngine.reason, encode_queries, Collection.search
    fastapi     uvicorn, one process: SentenceTransformer.encode, faiss.IndexFlatIP, JSON with the payload; it does not
                reason, and it renders a query as an item, two tokens shorter than ours

The load is a closed loop of 1, 8 or 32 callers (httpx.AsyncClient, loopback address): each sends its next request as
soon as it has a response. No side gets a query twice, and compared sides get the same queries. All processes run the
whole time and idle between their turns. The bare server answers in a thread pool (`def`) or on the event loop (`async
def`); the one that is faster with 32 callers counts.
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from paired_runner import answer, ask
from serve_common import free_port, query, side, spread, within, words

K = 10
REASONS, CALLERS = ("never", "auto", "always"), (1, 8, 32)
REQUEST_S, START_S = 60, 600  # limits
MAX_REQUESTS = 20_000  # per turn; each turn has its own range of queries
PHASES = ("reason", "embed", "search", "total")
Measurement = dict[str, Any]


class Turn(NamedTuple):
    """Which side is measured, with which reasoning mode and how many callers."""

    who: str  # ours, fastapi or in process
    reason: str
    callers: int


def compare(config: Any, pairs: int, seconds: float) -> dict[str, Any]:
    """Measure all sides `pairs` times after one warm-up round. Needs paths.model and paths.index."""
    from ray_apps.cluster.session import cluster
    from ray_apps.serving import deploy

    with tempfile.TemporaryDirectory(prefix="bench-") as name, cluster(config), ExitStack() as stack:
        folder = Path(name)
        vocabulary = export(config, folder)
        sides = Sides(vocabulary, seconds)
        sides.addresses["ours"] = f"{deploy.start(config)}/v1/search"
        stack.callback(deploy.stop)
        port = free_port()
        for who in ("fastapi", "in process"):
            sides.processes[who] = stack.enter_context(side(*command(who, config, folder, port)))
            ask(sides.processes[who], '"ready?"')
        route = sides.choose_route(f"http://127.0.0.1:{port}")
        auto = sides.supports_auto()
        turns = [turn for callers in CALLERS for turn in turns_of(callers, auto)]
        taken: list[dict[Turn, Measurement]] = []
        for i in range(pairs + 1):
            taken.append(sides.one_of_each(turns, i))
            print(f"http: {i} of {pairs} pairs", flush=True)
    given = {"seconds of a turn": seconds, "k": K, "fastapi endpoint": route, "auto": auto}
    return given | {"results": [row(callers, reason, taken[1:]) for callers in CALLERS for reason in REASONS]}


def export(config: Any, folder: Path) -> list[str]:
    """Build the index if it is missing, write its items for the peer, and return the vocabulary of the queries."""
    import numpy as np

    from lrem.index.snapshot import open_snapshot
    from ray_apps.indexing.embed import build_index, embed

    if not config.path("index").exists():
        with within(START_S, "the index"):
            embed(config, config.path("model"), config.path("vectors"))
            build_index(config, config.path("vectors"), config.path("index"))
    collection = open_snapshot(config.path("index"))
    try:
        items = collection.scroll(len(collection)).items
        stored = collection.get([item_id for item_id, _ in items])
    finally:
        collection.close()
    np.save(folder / "vectors.npy", np.stack([stored[item_id].vector for item_id, _ in items]))
    found = words([payload["title"] for _, payload in items])
    written = {"words": found, "items": [{"item_id": item_id, "payload": payload} for item_id, payload in items]}
    (folder / "items.json").write_text(json.dumps(written))
    return found


def command(who: str, config: Any, folder: Path, port: int) -> tuple[list[str], dict[str, str], Path]:
    """Return what starts a side: its command line, its environment, and the file for its stderr."""
    from ray_apps.cluster.session import worker_env

    told = [sys.executable, __file__, "--side", who, "--folder", str(folder), "--port", str(port)]
    told += ["--model", str(config.path("model")), "--index", str(config.path("index"))]
    return told, os.environ | worker_env(), folder / f"{who}.log"


def turns_of(callers: int, auto: bool) -> list[Turn]:
    """Return the turns for one number of callers."""
    found = [Turn("ours", reason, callers) for reason in REASONS if auto or reason != "auto"]
    found.append(Turn("fastapi", "never", callers))
    if callers == 1:
        found += [Turn("in process", reason, 1) for reason in ("never", "always")]
    return found


class Sides:
    """The sides, and how each is measured.

    Args:
        vocabulary: words of the queries. seconds: length of a turn.
    """

    def __init__(self, vocabulary: list[str], seconds: float) -> None:
        self.vocabulary, self.seconds = vocabulary, seconds
        self.addresses: dict[str, str] = {}
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def one_of_each(self, turns: list[Turn], pair: int) -> dict[Turn, Measurement]:
        """Measure every turn once, in reverse order in every second pair."""
        return {turn: self.take(turn, pair) for turn in (turns if pair % 2 else turns[::-1])}

    def take(self, turn: Turn, pair: int) -> Measurement:
        """Measure one turn; pair 0 is the warm-up. The queries depend on pair, callers and reason, not on the side."""
        block = (pair * len(CALLERS) + CALLERS.index(turn.callers)) * len(REASONS) + REASONS.index(turn.reason)
        first = (block + 1) * MAX_REQUESTS  # the queries before are for choose_route
        if turn.who == "in process":
            wanted = {"reason": turn.reason, "first": first, "seconds": self.seconds}
            found = ask(self.processes["in process"], json.dumps(wanted))
            return {name: value for name, value in found.items() if name != "value"}
        return self.ask_over_http(self.addresses[turn.who], turn, first)

    def ask_over_http(self, address: str, turn: Turn, first: int) -> Measurement:
        bodies = ({"query": query(self.vocabulary, number), "k": K} for number in range(first, first + MAX_REQUESTS))
        if turn.who == "ours":
            bodies = (body | {"reason": turn.reason} for body in bodies)
        limit = self.seconds + 2 * REQUEST_S
        return asyncio.run(asyncio.wait_for(closed_loop(address, bodies, turn.callers, self.seconds), limit))

    def choose_route(self, address: str) -> str:
        """Return the bare server's endpoint that is faster with many callers; the first measurement is the warm-up."""
        turn, rate = Turn("fastapi", "never", max(CALLERS)), {}
        for first, route in enumerate(("threads", "threads", "loop")):
            rate[route] = self.ask_over_http(f"{address}/{route}", turn, first * MAX_REQUESTS // 3)["requests/s"]
        route = max(rate, key=lambda name: rate[name])
        self.addresses["fastapi"] = f"{address}/{route}"
        return route

    def supports_auto(self) -> bool:
        answered = httpx.post(self.addresses["ours"], json={"query": "tea", "reason": "auto"}, timeout=REQUEST_S)
        if answered.status_code != 422:
            answered.raise_for_status()
        return answered.status_code == 200


async def closed_loop(address: str, bodies: Any, callers: int, seconds: float) -> Measurement:
    """Send requests for this many seconds; every response must have status 200."""
    latencies: list[float] = []
    phases: list[dict[str, float]] = []
    async with httpx.AsyncClient(timeout=REQUEST_S, limits=httpx.Limits(max_connections=callers)) as http:
        started = time.perf_counter()

        async def caller() -> None:
            while (begun := time.perf_counter()) < started + seconds and (body := next(bodies, None)):
                answered = await http.post(address, json=body)
                answered.raise_for_status()
                found = answered.json()
                latencies.append(time.perf_counter() - begun)
                assert len(found["items"] if "items" in found else found["results"][0]["items"]) == K
                if found.get("degraded") or found.get("missing_shards"):
                    raise RuntimeError("a response is degraded or incomplete, so this turn cannot be compared")
                phases.append(found.get("timings_ms", {}))

        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(caller())
        return summary(latencies, phases, time.perf_counter() - started)


def summary(latencies: list[float], phases: list[dict[str, float]], elapsed: float) -> Measurement:
    """Return a turn's latencies and the medians of its phases, in milliseconds."""
    late = sorted(latencies)
    medians = {name: statistics.median(one[name] for one in phases) for name in phases[0]}
    return {
        "p50 ms": round(1000 * statistics.median(late), 2),
        "p95 ms": round(1000 * late[int(0.95 * (len(late) - 1))], 2),
        "requests/s": round(len(late) / elapsed, 1),
        "requests": len(late),
    } | {f"{name} ms": round(value, 2) for name, value in medians.items()}


def row(callers: int, reason: str, taken: list[dict[Turn, Measurement]]) -> dict[str, Any]:
    """Return the medians of every side and the ratios, for one number of callers and one reasoning mode."""
    sides = {turn.who: turn for turn in taken[0] if (turn.callers, turn.reason) == (callers, reason)}
    found: dict[str, Any] = {"concurrency": callers, "reason": reason}
    if "ours" not in sides:
        return found | {"ours": "not supported"}
    for who, turn in sides.items():
        found[who] = {what: round(statistics.median(pair[turn][what] for pair in taken), 2) for what in taken[0][turn]}
    for who, what in (("in process", "p50 ms"), ("fastapi", "requests/s"), ("fastapi", "p50 ms")):
        if who in sides:
            ratios = [pair[sides["ours"]][what] / pair[sides[who]][what] for pair in taken]
            found[f"{what.removesuffix(' ms')} to {who}"] = spread(ratios)
    return found | {"pairs": [{who: pair[turn] for who, turn in sides.items()} for pair in taken]}


def run_in_process(model: str, index: Path, vocabulary: list[str]) -> None:
    """Answer turns by calling reasoner, embedder and index one after the other."""
    from lrem.config import RolloutConfig
    from lrem.index.snapshot import open_snapshot
    from lrem.modeling.model import ReasoningEmbedder
    from ray_apps.rollouts.engines import VllmEngine

    engine, embedder = VllmEngine(model, RolloutConfig()), ReasoningEmbedder.load(model).eval()
    items = open_snapshot(index)

    def one(text: str, reason: str) -> list[float]:
        clock = [time.perf_counter()]
        reasonings: list[str | None] = list(engine.reason([text])) if reason == "always" else [""]
        clock.append(time.perf_counter())
        vectors = embedder.encode_queries([text], reasonings)
        clock.append(time.perf_counter())
        items.search(vectors, K)
        return [*clock, time.perf_counter()]

    answer(0)  # ready
    sys.stdin.readline()
    for line in sys.stdin:
        wanted, clocks = json.loads(line), []
        deadline = time.perf_counter() + wanted["seconds"]
        numbers = itertools.count(wanted["first"])
        while time.perf_counter() < deadline:
            clocks.append(one(query(vocabulary, next(numbers)), wanted["reason"]))
        phases = [
            dict(zip(PHASES, [1000 * (b - a) for a, b in itertools.pairwise(clock)], strict=False)) for clock in clocks
        ]
        elapsed = clocks[-1][-1] - clocks[0][0]
        answer(0, **summary([clock[-1] - clock[0] for clock in clocks], phases, elapsed))


def run_fastapi(model: str, folder: Path, items: list[dict[str, Any]], port: int) -> None:
    """Run the bare server as the libraries' documentation shows it, until the parent ends."""
    import faiss
    import numpy as np
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel
    from sentence_transformers import SentenceTransformer

    vectors = np.load(folder / "vectors.npy")
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    encoder = SentenceTransformer(model)
    app = FastAPI()

    class Body(BaseModel):
        query: str
        k: int = K

    def find(body: Body) -> dict[str, Any]:
        scores, rows = index.search(encoder.encode([body.query], show_progress_bar=False), body.k)
        found = [items[row] | {"score": float(score)} for row, score in zip(rows[0], scores[0], strict=True)]
        return {"query": body.query, "items": found}

    @app.post("/threads")
    def in_threads(body: Body) -> dict[str, Any]:
        return find(body)

    @app.post("/loop")
    async def on_the_loop(body: Body) -> dict[str, Any]:
        return find(body)

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))

    def listen() -> None:
        for _ in sys.stdin:
            while not server.started:
                time.sleep(0.05)
            answer(0)
        server.should_exit = True

    threading.Thread(target=listen, daemon=True).start()
    server.run()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="Run one side; serve.py starts them.")
    for name in ("side", "model"):
        arguments.add_argument(f"--{name}", required=True)
    for name in ("folder", "index"):
        arguments.add_argument(f"--{name}", type=Path, required=True)
    arguments.add_argument("--port", type=int, required=True)
    given = arguments.parse_args()
    written = json.loads((given.folder / "items.json").read_text())
    if given.side == "fastapi":
        run_fastapi(given.model, given.folder, written["items"], given.port)
    else:
        run_in_process(given.model, given.index, written["words"])
