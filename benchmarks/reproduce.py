"""The paper's comparison on the demo world: one program from a seed to the tables of docs/results.md.

Learning rate and temperature of the direct baseline and of the cold start are chosen by an equal search on a world of
another seed: other products, brands and held-out combinations. Then each seed's systems are trained by the same stages
as `lrem demo`, and scored on queries that training never asked: *interpolation* (a fact under a new constraint, in a
new wording) and *composition* (a fact of two steps whose steps were only ever seen apart).

The work is cut into tasks (the two searches, then each seed and the lengths), each a process with a Ray of its own,
--parallel of them at once: starting a stage is one core's work for half a minute, which another task's training fills.
What is done is kept under --folder and not done again, and a training that was stopped goes on from its newest
checkpoint. The folder belongs to one configuration and code; another is refused. For CPUs: two tasks would want the
same GPU.
"""

import argparse
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import pyarrow.parquet as pq
import ray
from claim import MACRO, Means, Scores, gains, group_means, members, over_seeds, write_page

from lrem.config import Config, load_config, to_yaml
from lrem.data.files import write_json
from lrem.data.known_positives import identity
from lrem.data.schema import read_items
from lrem.evaluation.metrics import Qrels, Run, per_query
from lrem.evaluation.overrides import OVERRIDES, override, vocabulary
from lrem.modeling.model import RECORD, ReasoningEmbedder
from lrem.modeling.template import COMPACT
from lrem.modeling.template import FILE as TEMPLATE
from lrem.retrieval.bm25 import Bm25
from ray_apps.cluster.session import cluster
from ray_apps.cluster.versions import versions
from ray_apps.evaluation.inputs import Queries, test_set
from ray_apps.pipeline import run_stage
from ray_apps.rollouts.client import await_pool, start_pool, stop_pool
from ray_apps.rollouts.engines import expected_reports
from ray_apps.rollouts.pool import check_load_report
from ray_apps.rollouts.weight_sync import pack_state, state_checksum
from ray_apps.training.checkpoints import Checkpoints

CONFIG = Path("configs/reproduce.yaml")
TUNING_SEED = 100
SEARCHED = ("direct", "cold-start")
# The fourth corner (1e-3, 0.03) was the worst of four for both systems with five epochs: claim.json of commit 421779e.
GRID = [("1.0e-3", "0.06"), ("2.0e-3", "0.06"), ("2.0e-3", "0.03")]
SHARED = ("items", "queries", "qrels", "teacher", "triplets", "rl_pairs")
LENGTHS = (4, 8, 16, 32)  # tokens of reasoning, the model trained anew for each
PERFECT = "perfect"  # beside the overrides: the reasoning of a teacher who knows everything
TASK_TIMEOUT_S = 4 * 3600
SPENT = "spent.json"  # seconds, of all calls together
REINFORCED = {
    "lrem": [],
    "without InfoNCE": ["reinforce.info_nce_weight=0"],
    "without retrieval reward": ["reinforce.rewards.accuracy=0"],
}


def nearest(ids: list[str], vectors: np.ndarray, queries: np.ndarray, k: int) -> list[list[tuple[str, float]]]:
    """The k best (item_id, cosine) of each query by exact search. vectors: [N, H], queries: [Q, H] float32."""
    scores, rows = faiss.knn(queries, vectors, min(k, len(ids)), metric=faiss.METRIC_INNER_PRODUCT)
    return [
        [(ids[row], float(score)) for row, score in zip(*line, strict=True)] for line in zip(rows, scores, strict=True)
    ]


class Tried(NamedTuple):
    """One point of the search."""

    lr: str
    temperature: str
    hit_rate: float
    precision: float

    @property
    def value(self) -> float:
        return (self.hit_rate + self.precision) / 2


class Reasoner:
    """A rollout pool that serves one model after another: an engine takes new weights in a moment, and starts in many.

    It starts anew for a model of another tokenizer or template.
    """

    def __init__(self, config: Config) -> None:
        self.config, self.pool, self.made_for, self.version = config, None, "", 0

    def reason(self, folder: Path, queries: list[str]) -> dict[str, list[str]]:
        """One reasoning of each query, greedy and sampled at temperature 1."""
        made_for = "".join((folder / name).read_text(encoding="utf-8") for name in ("tokenizer.json", TEMPLATE))
        if made_for != self.made_for:
            self.stop()
            self.pool, self.made_for, self.version = start_pool(folder, self.config), made_for, 0
        model = ReasoningEmbedder.load(folder).eval().requires_grad_(False)
        weights = pack_state(model.lm.state_dict())
        self.version += 1
        synced = self._ask(self.pool.sync.remote([ray.put(weights)], self.version), "a model to be taken")
        rollout = self.config.rollout
        answers = expected_reports(
            lambda sequences: model(sequences, rollout.temperature).log_probs,
            model.renderer,
            synced.loaded,
            self.version,
            state_checksum(weights),
        )
        for answer in answers:
            check_load_report(*answer, rollout.probe_tolerance)
        seeds = [identity(str(self.config.seed), query) % 2**31 for query in queries]
        asked = {"greedy": (0.0, None), "sampled": (1.0, seeds)}
        return {
            mode: list(self._ask(self.pool.reason.remote(queries, *how), "reasonings")) for mode, how in asked.items()
        }

    def _ask(self, asked: Any, what: str) -> Any:
        return await_pool(self.pool, asked, self.config, what)

    def stop(self) -> None:
        if self.pool is not None:
            stop_pool(self.pool)
            self.pool, self.made_for = None, ""


class World:
    """One task's folder: a seed's data, the systems trained on it, and their scores of each query."""

    def __init__(self, folder: Path, config: Path, seed: int) -> None:
        self.folder, self.file, self.seed = folder, config, seed
        self.base = self.config("world")
        self.reasoner = Reasoner(self.base)
        self.scores: dict[str, dict[str, Scores]] = self._kept("scores.json")
        self.trainings: dict[str, dict[str, float]] = self._kept("trainings.json")

    def _kept(self, name: str) -> Any:
        file = self.folder / name
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def config(self, name: str, overrides: Iterable[str] = (), cold_start: Path | None = None) -> Config:
        """A system's configuration: a folder of its own, the data of all."""
        shared = [f"paths.{key}={self.folder / 'data' / key}.parquet" for key in SHARED]
        given = [f"paths.cold_start={cold_start}"] if cold_start else []
        return load_config(
            self.file, [f"seed={self.seed}", f"run_dir={self.folder / name}", *shared, *given, *overrides]
        )

    @cached_property
    def test(self) -> tuple[Queries, Qrels]:
        """The test queries and their judgements."""
        found = test_set(self.base)
        return found.queries, found.qrels

    @property
    def budget(self) -> int:
        """Tokens of reasoning that the configuration allows."""
        return self.base.model.budget or COMPACT.budget

    @property
    def gold(self) -> Path:
        """The last file that a world writes."""
        return self.base.path("items").with_name("gold.parquet")

    @cached_property
    def perfect(self) -> dict[str, str]:
        """query_id → the reasoning of a teacher who knows everything: how far better reasoning could lead."""
        rows = pq.read_table(self.gold).to_pylist()
        return {row["query_id"]: row["reasoning"] for row in rows}

    def make(self) -> None:
        """Products, queries and what curation makes of them."""
        for stage, last in (("world", self.gold), ("curate", self.base.path("rl_pairs"))):
            if not last.exists():
                run_stage(stage, self.base)

    def train(self, name: str, stage: str, config: Config) -> Path:
        """Run a training stage if it has not been; how long it was, start-up not counted, is kept."""
        key = stage.replace("-", "_")
        folder = config.path("model" if key == "reinforce" else key)
        if not folder.exists():
            unfinished = Checkpoints(config.run_dir / "checkpoints" / key, keep=1).newest()
            run_stage(stage, config, resume=unfinished is not None)
        made, told = json.loads((folder / RECORD).read_text(encoding="utf-8")), getattr(config, key)
        visits = made["steps"] * told.batch_size * told.workers  # of a query with an item
        self.trainings[name] = {"seconds": made["seconds"], "steps": made["steps"], "visits": visits}
        write_json(self.trainings, self.folder / "trainings.json")
        return folder

    def score(self, name: str, folder: Path, thinks: bool = True, overridden: bool = False) -> None:
        """Search the catalogue with each test query, with greedy and sampled reasoning if the system thinks."""
        if name in self.scores:
            return
        queries, _ = self.test
        items = read_items(self.base.path("items"))
        texts, titles = [row["query"] for row in queries.values()], items["title"].to_pylist()
        modes: dict[str, Any] = {"greedy": [None] * len(texts)}
        if thinks:
            modes = self.reasoner.reason(folder, texts)
            write_json(dict(zip(queries, modes["greedy"], strict=True)), self.folder / name / "reasonings.json")
        if overridden:
            words = vocabulary(titles)
            modes |= {kind: override(kind, texts, modes["greedy"], words, self.seed) for kind in OVERRIDES}
            modes[PERFECT] = [self.perfect[query_id] for query_id in queries]
        model = ReasoningEmbedder.load(folder).eval()
        ids, vectors = items["item_id"].to_pylist(), model.encode_items(titles)
        k = self.base.evaluate
        found = {}
        for mode, reasonings in modes.items():
            hits = nearest(ids, vectors, model.encode_queries(texts, reasonings), max(k.k, k.precision_k))
            found[mode] = self._scores(dict(zip(queries, hits, strict=True)))
        self._keep(name, found)

    def score_bm25(self) -> None:
        """The lexical baseline."""
        queries, _ = self.test
        items = read_items(self.base.path("items"))
        bm25 = Bm25(items["item_id"].to_pylist(), items["title"].to_pylist())
        k = self.base.evaluate
        found = bm25.search([row["query"] for row in queries.values()], max(k.k, k.precision_k))
        run = dict(zip(queries, found, strict=True))
        self._keep("BM25", {"greedy": self._scores(run)})

    def _scores(self, run: Run) -> Scores:
        """query_id → HitRate, Precision."""
        _, qrels = self.test
        found = per_query(run, qrels, self.base.evaluate.k, self.base.evaluate.precision_k)
        return {query_id: (values["hit_rate"], values["precision"]) for query_id, values in found.items()}

    def _keep(self, name: str, scores: dict[str, Scores]) -> None:
        self.scores[name] = scores
        write_json(self.scores, self.folder / "scores.json")

    def means(self, name: str, mode: str = "greedy") -> Means:
        """See `claim.group_means`."""
        queries, _ = self.test
        return group_means(self.scores[name][mode], queries)


def search(world: World, stage: str) -> None:
    """Train and score every point of the grid for one system."""
    for lr, tau in GRID:
        name = point(stage, lr, tau)
        config = world.config(name, settings_of(stage, lr, tau))
        world.score(name, world.train(name, stage, config), thinks=stage == "cold-start")


def tried(world: World, stage: str) -> list[Tried]:
    """What `search` found."""
    return [Tried(lr, tau, *world.means(point(stage, lr, tau))[MACRO]) for lr, tau in GRID]


def point(stage: str, lr: str, temperature: str) -> str:
    return f"{stage}, lr {lr}, temperature {temperature}"


def best(points: list[Tried]) -> Tried:
    return max(points, key=lambda tried: tried.value)


def settings_of(stage: str, lr: str, temperature: str) -> list[str]:
    section = stage.replace("-", "_")
    return [f"{section}.optim.lr={lr}", f"{section}.temperature={temperature}"]


def train_all(world: World, direct: Tried, cold: Tried) -> None:
    """Train and score the systems of one seed."""
    world.score_bm25()
    tau = [f"reinforce.temperature={cold.temperature}"]
    config = world.config("cold start", settings_of("cold-start", cold.lr, cold.temperature))
    cold_start = world.train("cold start", "cold-start", config)
    world.score("cold start", cold_start)
    for name, changed in REINFORCED.items():
        config = world.config(name, [*tau, *changed], cold_start)
        world.score(name, world.train(name, "reinforce", config), overridden=name == "lrem")
    best_direct = settings_of("direct", direct.lr, direct.temperature)
    config = world.config("direct", best_direct)
    world.score("direct", world.train("direct", "direct", config), thinks=False)
    both = world.trainings["cold start"]["seconds"] + world.trainings["lrem"]["seconds"]
    epochs = max(1, round(config.direct.epochs * both / world.trainings["direct"]["seconds"]))
    config = world.config("direct, same time", [*best_direct, f"direct.epochs={epochs}"])
    world.score("direct, same time", world.train("direct, same time", "direct", config), thinks=False)


def sweep(world: World, cold: Tried, lengths: list[int]) -> None:
    """The whole of LREM for each budget of reasoning; that of the configuration is there already."""
    for length in lengths:
        if length == world.budget:
            continue
        name, stage1 = f"length {length}", settings_of("cold-start", cold.lr, cold.temperature)
        config = world.config(f"{name}, cold start", [*stage1, f"model.budget={length}"])
        cold_start = world.train(f"{name}, cold start", "cold-start", config)
        config = world.config(name, [f"reinforce.temperature={cold.temperature}"], cold_start)
        world.score(name, world.train(name, "reinforce", config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS, help="budgets to sweep; nothing: no sweep")
    parser.add_argument("--folder", type=Path, default=Path("runs/reproduce"), help="where the runs are kept")
    parser.add_argument("--parallel", type=int, default=2, help="tasks at once; each wants a core and 6 GB")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/claim.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--task", help="only this one, in this process: search-direct, seed-0, lengths-0, …")
    given = parser.parse_args()
    if TUNING_SEED in given.seeds:
        parser.error(f"seed {TUNING_SEED} is the one that settings are chosen on: name others")
    made_by = check_folder(given.folder, given.config)
    first = given.seeds[0]
    worlds = {
        **{f"search-{stage}": World(given.folder / f"search-{stage}", given.config, TUNING_SEED) for stage in SEARCHED},
        **{f"seed-{seed}": World(given.folder / f"seed-{seed}", given.config, seed) for seed in given.seeds},
    }
    if given.lengths:
        worlds[f"lengths-{first}"] = World(given.folder / f"lengths-{first}", given.config, first)
    if given.task:
        do(given.task, worlds, given.lengths)
        return
    names = list(worlds)
    for some in (names[: len(SEARCHED)], names[len(SEARCHED) :]):
        do_all(some, given)
    worlds = {name: World(world.folder, world.file, world.seed) for name, world in worlds.items()}  # with their scores
    spent = json.loads((given.folder / SPENT).read_text(encoding="utf-8"))
    made = {"minutes": round(spent / 60, 1), "cores": os.cpu_count(), "parallel": given.parallel}
    report = assemble(worlds, given.lengths) | made | {"code": made_by["code"], "versions": versions()}
    write_json(report, given.out)
    write_page(report, given.page)


def do_all(names: list[str], given: argparse.Namespace) -> None:
    """Run tasks, each in a process of its own; the time that it takes is added up over calls.

    Raises:
        SystemExit: one failed; it says where its log is.
    """
    options = ["--config", given.config, "--folder", given.folder, "--seeds", *given.seeds, "--lengths", *given.lengths]

    def run(name: str) -> None:
        log = given.folder / f"{name}.log"
        print(f"{name}: follow it in {log}", flush=True)
        with log.open("a") as out:
            command = [sys.executable, __file__, *map(str, options), "--task", name]
            try:
                code = subprocess.run(command, stdout=out, stderr=out, timeout=TASK_TIMEOUT_S).returncode
                reason = f"exit code {code}"
            except subprocess.TimeoutExpired:
                code, reason = 1, f"no end after {TASK_TIMEOUT_S / 3600:.0f} hours"
        if code:
            if code == -signal.SIGKILL:
                reason = "signal 9, perhaps for want of memory: try --parallel 1"
            print(f"{name} failed ({reason}): the end of {log} says why; run this again to go on", flush=True)
            raise SystemExit(1)

    started, file = time.monotonic(), given.folder / SPENT
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else 0
    try:
        with ThreadPoolExecutor(given.parallel) as pool:
            list(pool.map(run, names))
    finally:
        write_json(before + time.monotonic() - started, file)


def do(name: str, worlds: dict[str, World], lengths: list[int]) -> None:
    """One task, under a Ray of its own.

    Raises:
        SystemExit: another process is at it.
    """
    world = worlds[name]
    world.folder.mkdir(parents=True, exist_ok=True)
    with (world.folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"another process is at work in {world.folder}: wait for it, or end it") from None
        with cluster(world.base):
            world.make()
            if name.startswith("search-"):
                search(world, name.removeprefix("search-"))
            elif name.startswith("lengths-"):
                sweep(world, chosen(worlds, "cold-start"), lengths)
            else:
                train_all(world, chosen(worlds, "direct"), chosen(worlds, "cold-start"))
            world.reasoner.stop()


def chosen(worlds: dict[str, World], stage: str) -> Tried:
    """The best point of a search that is done."""
    return best(tried(worlds[f"search-{stage}"], stage))


def check_folder(folder: Path, config: Path) -> dict[str, Any]:
    """What the runs of a folder share; those of another configuration or other code must not pass for this one's.

    Raises:
        SystemExit: the folder holds such.
    """
    constants = [TUNING_SEED, GRID, REINFORCED, OVERRIDES]
    sources = sorted(path for package in ("lrem", "ray_apps") for path in Path(package).rglob("*.py"))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    told = {"config": to_yaml(load_config(config, [])), "constants": repr(constants), "code": code}
    file = folder / "made_by.json"
    if not file.exists():
        write_json(told, file)
    if json.loads(file.read_text(encoding="utf-8")) != told:
        raise SystemExit(f"{folder} holds runs of another configuration or code: delete it, or name another --folder")
    return told


def assemble(tasks: dict[str, World], lengths: list[int]) -> dict[str, Any]:
    """Everything that the page says, and the means of each seed behind it."""
    names = ["BM25", "direct", "direct, same time", "cold start", *REINFORCED]
    worlds = [world for name, world in tasks.items() if name.startswith("seed-")]
    searched = {stage: tried(tasks[f"search-{stage}"], stage) for stage in SEARCHED}
    report: dict[str, Any] = {
        "seeds": [world.seed for world in worlds],
        "k": worlds[0].base.evaluate.model_dump(include={"k", "precision_k"}),
        "search": {stage: [point._asdict() for point in points] for stage, points in searched.items()},
        "chosen": {stage: best(points)._asdict() for stage, points in searched.items()},
        "training": {name: world.trainings for name, world in tasks.items()},
        "queries": {
            str(world.seed): {group: len(ids) for group, ids in members(world.test[0]).items()} for world in worlds
        },
    }
    report["greedy"] = {name: over_seeds([world.means(name) for world in worlds]) for name in names}
    thinking = ["cold start", *REINFORCED]
    report["sampled"] = {name: over_seeds([world.means(name, "sampled") for world in worlds]) for name in thinking}
    report["overrides"] = {
        kind: over_seeds([world.means("lrem", kind) for world in worlds]) for kind in (*OVERRIDES, PERFECT)
    }
    report["lengths"] = {}
    for length in lengths:
        first, swept = worlds[0], tasks[f"lengths-{worlds[0].seed}"]
        means = first.means("lrem") if length == first.budget else swept.means(f"length {length}")
        report["lengths"][str(length)] = over_seeds([means])
    pairs = [("lrem", "direct"), ("lrem", "direct, same time"), ("lrem", "cold start"), ("cold start", "direct")]
    means_of = {name: [world.means(name) for world in worlds] for name in names}
    report["gains"] = {f"{a} over {b}": gains(means_of[a], means_of[b]) for a, b in pairs}
    return report


if __name__ == "__main__":
    main()
