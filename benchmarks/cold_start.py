"""Stage 1 and its peer: one joint step of ours, and sentence-transformers' cached contrastive step plus an SFT step.

The peer is SentenceTransformerTrainer with CachedMultipleNegativesRankingLoss, and a transformers Trainer for the SFT
pass over the same query tokens: two trainers, because neither does both. Each side is a process with the same weights,
token ids, batch, threads, AdamW, clipping and precision. The parent lets one side at a time make one step, in turn, so
that machine noise affects all alike. The peer is tuned: its contrastive trainer runs with several mini-batch sizes,
packed by tokens, and up to 256 rows without cache; its SFT trainer with several mini-batch sizes grouped by length. The
fastest of each counts. The peer's seconds are the sum of its two steps; its memory is the larger of its two processes.

    python benchmarks/cold_start.py --out benchmarks/results/cold_start.json

With `--source` the model is a pretrained one, trained as `make real` trains it: all sides freeze the lower layers and
the embeddings, and compute in bfloat16 under autocast. Ours also trains the rows of three tokens. `--compile` compiles
our layers, and the whole model of the peer. All sides use eager attention, which is faster on sequences this short.

    lrem backbone smollm2
    python benchmarks/cold_start.py --source runs/backbones/smollm2 --batches 64 --out smollm2.json
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cold_start_peers import CHUNK_TOKENS, FROZEN, TAU, peer_contrast, peer_sft
from paired_runner import answer, ask, start, wait_for_step

THREADS, WARM_UP, GRAPH_TOKENS = 2, 1, 8192
MODEL = {"hidden_size": 128, "intermediate_size": 512, "layers": 8, "heads": 4, "kv_heads": 4}
VOCABULARY = 6144  # embedding parameters are 0.38 of the layers', as in Qwen2.5-0.5B


def sides_of(size: int) -> list[str]:
    """Return the sides for one batch size: ours, bare passes, and the peer's trainers in each setting."""
    mini = [rows for rows in (32, 128) if rows <= size]
    contrast = [f"contrast:{rows}" for rows in mini] + ["contrast:packed"] + ["contrast:uncached"] * (size <= 256)
    return ["ours", "bare", *contrast, *(f"sft:{rows}" for rows in mini)]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024])
    arguments.add_argument("--pairs", type=int, default=7)
    arguments.add_argument(
        "--graph-tokens", type=int, default=GRAPH_TOKENS, help="of ours; see cold_start.graph_tokens"
    )
    arguments.add_argument("--source", type=Path, help="folder of a pretrained model")
    arguments.add_argument("--compile", action="store_true", help="compile the layers with torch.compile")
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--side", help=argparse.SUPPRESS)
    arguments.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.side:
        run_side(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), max(given.batches), given.source)
        results = [compare(Path(folder), size, given) for size in given.batches]
    report = {"setting": setting(given), "results": results}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=2) + "\n")
    for row in results:
        print(json.dumps(row))


def setting(given: argparse.Namespace) -> dict[str, Any]:
    """Describe the run, for the reader of the JSON."""
    import importlib.metadata
    import platform

    packages = ("torch", "transformers", "sentence-transformers", "deepspeed")
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": THREADS,
        "model": f"{given.source.name}, bf16 autocast, {FROZEN} layers frozen"
        if given.source
        else f"Qwen2, fp32, {MODEL}, vocabulary {VOCABULARY}",
        "compile": given.compile,
        "pairs": given.pairs,
        "chunk_tokens": CHUNK_TOKENS,
        "graph_tokens": given.graph_tokens,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def prepare(folder: Path, rows: int, source: Path | None) -> None:
    """Write a small model or that of `source`, and the token ids of `rows` triplets of the generated shop."""
    from lrem.config import ModelConfig
    from lrem.modeling.model import ReasoningEmbedder
    from lrem.modeling.tokenizer import train_tokenizer
    from lrem.world import make_world

    world = make_world(0, 3000, 3000, 50)
    title = dict(zip(world.items["item_id"].to_pylist(), world.items["title"].to_pylist(), strict=True))
    reasoning = {row["query_id"]: row["reasoning"] for row in world.teacher.to_pylist()}
    query = {row["query_id"]: row["query"] for row in world.queries.to_pylist()}
    first: dict[str, str] = {}
    for row in world.qrels.to_pylist():
        if row["grade"] > 0 and row["query_id"] in reasoning:
            first.setdefault(row["query_id"], row["item_id"])
    if source:
        model = ReasoningEmbedder.load(source, limits=ModelConfig(template="compact"))
    else:
        texts = [f" {text}" for text in [*title.values(), *query.values(), *reasoning.values()]]
        tokenizer = train_tokenizer(texts, 2048)
        model = ReasoningEmbedder.from_config(ModelConfig.model_validate(MODEL), tokenizer, 0)
        model.lm.resize_token_embeddings(VOCABULARY, mean_resizing=False)
    model.save(folder / "model")
    renderer, triplets = model.renderer, []
    for number, (query_id, item_id) in enumerate(list(first.items())[:rows]):
        triplets.append(
            {
                "query_ids": renderer.query_ids(query[query_id], reasoning[query_id]),
                "start": len(renderer.query_prompt(query[query_id])),
                "item_ids": renderer.item_ids(title[item_id]),
                "query_key": number,
                "item_key": number,  # distinct, since the peer masks nothing: both see the same negatives
                "negative_ids": [],
                "negative_keys": [],
            }
        )
    if len(triplets) < rows:
        raise SystemExit(f"the shop has {len(triplets)} triplets, {rows} are needed: lower --batches")
    (folder / "rows.json").write_text(json.dumps(triplets))


def compare(folder: Path, size: int, given: argparse.Namespace) -> dict[str, Any]:
    """Let every side make one step in turn, `pairs` times, at one batch size."""
    command = [sys.executable, __file__, "--out", "-", "--folder", str(folder), "--batches", str(size)]
    command += ["--graph-tokens", str(given.graph_tokens), *["--compile"] * given.compile]
    command += ["--source", str(given.source)] if given.source else []
    environment = os.environ | {
        "OMP_NUM_THREADS": str(THREADS),
        "DS_ACCELERATOR": "cpu",
        "TOKENIZERS_PARALLELISM": "false",
    }
    sides = {side: start([*command, "--side", side], environment) for side in sides_of(size)}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(WARM_UP + given.pairs):
        for side, process in sides.items():
            step_s = ask(process, "step")["value"]
            if turn >= WARM_UP:
                seconds[side].append(step_s)
    memory = {side: ask(process, "memory")["value"] for side, process in sides.items()}
    for process in sides.values():
        process.kill()
        process.wait()
    return summary(size, seconds, memory)


def summary(size: int, seconds: dict[str, list[float]], memory: dict[str, float]) -> dict[str, Any]:
    """Return medians, and the median paired ratio to the fastest setting of each of the peer's trainers."""
    median = statistics.median
    medians = {side: median(values) for side, values in seconds.items()}
    contrast, sft = (min((s for s in medians if s.startswith(kind)), key=medians.get) for kind in ("contrast", "sft"))
    peer = [sum(pair) for pair in zip(seconds[contrast], seconds[sft], strict=True)]
    ratios = [theirs / ours for theirs, ours in zip(peer, seconds["ours"], strict=True)]
    bare = [least / ours for least, ours in zip(seconds["bare"], seconds["ours"], strict=True)]
    return {
        "batch": size,
        "peer": [contrast, sft],
        "ours_steps_per_s": round(1 / medians["ours"], 3),
        "peer_steps_per_s": round(1 / median(peer), 3),
        "speed_ratio": round(median(ratios), 2),
        "speed_ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "share_of_bare_forward_backward": round(median(bare), 3),
        "ours_peak_mib": round(memory["ours"]),
        "peer_peak_mib": round(max(memory[contrast], memory[sft])),
        "seconds": {side: round(value, 3) for side, value in medians.items()},
        "peak_mib": {side: round(value) for side, value in memory.items()},
    }


def run_side(given: argparse.Namespace) -> None:
    """Run one side until the parent closes its stdin."""
    import torch

    torch.set_num_threads(THREADS)
    rows = json.loads((given.folder / "rows.json").read_text())[: given.batches[0]]
    kind, _, how = given.side.partition(":")
    if kind == "contrast":
        peer_contrast(given, rows, how)
    elif kind == "sft":
        peer_sft(given, rows, int(how))
    else:
        step = our_step(given, rows) if kind == "ours" else bare_step(given, rows)
        while True:
            wait_for_step()
            started = time.perf_counter()
            step()
            answer(time.perf_counter() - started)


def our_model(given: argparse.Namespace) -> Any:
    """Return the model as our trainer prepares it."""
    from lrem.modeling.compiling import compile_layers
    from lrem.modeling.encoding import use_fast_attention
    from lrem.modeling.freezing import freeze_lower_layers
    from lrem.modeling.model import ReasoningEmbedder

    model = ReasoningEmbedder.load(given.folder / "model")
    if given.source:
        freeze_lower_layers(model, FROZEN)
        model.autocast = True
    use_fast_attention(model.lm, model.renderer)
    if given.compile:
        compile_layers(model.lm)
    return model


def settings(graph_tokens: int | None) -> Any:
    """Return our settings, equal to the peer's: queries with the teacher's thoughts alone, each forwarded once."""
    from lrem.config import ColdStartConfig

    optim = {"lr": 1e-4, "zero_stage": 0}
    given = {"temperature": TAU, "sft_weight": 1.0, "chunk_tokens": CHUNK_TOKENS, "graph_tokens": graph_tokens}
    given |= {"thoughts": {"teacher": 1, "own": 0, "corrupted": 0}, "empty_weight": 0}
    return ColdStartConfig.model_validate(given | {"optim": optim})


def our_step(given: argparse.Namespace, rows: list[dict[str, Any]]) -> Callable[[], None]:
    """Return our trainer's step: collate, gradients in chunks, DeepSpeed's update."""
    import numpy as np
    import torch.distributed as dist

    from lrem.data.known_positives import KnownPositives
    from lrem.training.cold_start_step import accumulate_gradients, collate
    from lrem.training.gradient_observer import GradNormObserver
    from ray_apps.training.deepspeed_engine import engine_backward, make_engine, update

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("gloo", init_method=f"file://{tempfile.mkdtemp()}/store", rank=0, world_size=1)
    stage = settings(given.graph_tokens)
    engine = make_engine(our_model(given), stage.optim, len(rows), 1000)
    engine.train()
    known = KnownPositives(np.arange(len(rows)), np.arange(len(rows)))

    def step() -> None:
        batch, observer = collate(rows, known), GradNormObserver()
        accumulate_gradients(batch, stage, engine, engine_backward(engine), engine.device, observer)
        observer.norms(engine.device)
        update(engine)

    return step


def bare_step(given: argparse.Namespace, rows: list[dict[str, Any]]) -> Callable[[], None]:
    """Return a step of one forward and one backward pass per chunk and nothing else: the lower bound of any trainer."""
    import torch

    from lrem.training.gradcache import make_chunks

    model = our_model(given).train()
    scored = [(row["start"], len(row["query_ids"])) for row in rows]

    def step() -> None:
        model.zero_grad()
        cpu = torch.device("cpu")
        parts = make_chunks([row["query_ids"] for row in rows], scored, 0, CHUNK_TOKENS, cpu)
        parts += make_chunks([row["item_ids"] for row in rows], None, len(rows), CHUNK_TOKENS, cpu)
        for part in parts:
            encoded = model(part.sequences)
            loss = encoded.embeddings.sum()
            (loss if encoded.log_probs is None else loss + encoded.log_probs.sum()).backward()

    return step


if __name__ == "__main__":
    main()
