"""Training speed of stage 1 on one GPU at the real model's shape, with random weights: tokens/s and MFU.

Runs lrem/ alone (no Ray, no DeepSpeed): the joint step in chunks, bf16, PyTorch's fused AdamW. Lengths are those of
product search in the chat template: a fixed instruction, then queries of 2 to 12 words and titles of 5 to 40, or the
lengths of an ESCI folder.

    python benchmarks/gpu_step.py --shape qwen2.5-0.5b --out benchmarks/results/gpu_step_0.5b.json
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from lrem.config import ColdStartConfig
from lrem.modeling.encoding import EncoderOutput, encode
from lrem.modeling.sequences import Sequences
from lrem.training.cold_start_step import ColdStartBatch, accumulate_gradients
from lrem.training.memory_estimate import DecoderShape, peak_tflops, step_flops

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "qwen2.5-3b": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    },
    "tiny": {  # to run the script without a GPU
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
}
QUERY_FRAME, ITEM_FRAME, TOKENS_PER_WORD = 58, 24, 1.4  # tokens of the chat template around a text


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    arguments.add_argument("--batch", type=int, default=128, help="queries per step (paper: 128 per GPU)")
    arguments.add_argument("--chunk-tokens", type=int, default=16384)
    arguments.add_argument("--graph-tokens", type=int, help="padded tokens whose activations are kept; default: all")
    arguments.add_argument("--checkpointing", action="store_true", help="recompute activations")
    arguments.add_argument("--steps", type=int, default=10)
    arguments.add_argument("--esci", type=Path, help="ESCI folder to take lengths from")
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    report = run(given)
    print(json.dumps(report, indent=2))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(report, indent=2) + "\n")


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Train for some steps and return the medians."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = SHAPES[given.shape]
    torch.manual_seed(0)
    with torch.device(device):
        lm = Qwen2ForCausalLM(Qwen2Config(vocab_size=151936, tie_word_embeddings=True, **sizes)).bfloat16().train()
    if given.checkpointing:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    shape = DecoderShape.of(lm)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-5, fused=device.type == "cuda")
    limits = {"chunk_tokens": given.chunk_tokens, "graph_tokens": given.graph_tokens}
    settings = ColdStartConfig.model_validate(limits)
    random = np.random.default_rng(0)
    words = word_counts(given.esci)
    seconds, flops, tokens = [], [], []
    for _ in range(given.steps + 3):
        batch = draw(random, given.batch, words)
        work = batch.work
        wait(device)
        started = time.perf_counter()
        accumulate_gradients(batch, settings, forward_of(lm), lambda loss, last: loss.backward(), device)
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        wait(device)
        seconds.append(time.perf_counter() - started)
        flops.append(step_flops(shape, *work))
        tokens.append(work[0])
    seconds, flops, tokens = seconds[3:], flops[3:], tokens[3:]
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    peak = peak_tflops(name)
    achieved = statistics.median(f / s for f, s in zip(flops, seconds, strict=True))
    return {
        "device": name,
        "shape": given.shape,
        "parameters_m": round(shape.parameters / 1e6),
        "batch": given.batch,
        "chunk_tokens": given.chunk_tokens,
        "graph_tokens": given.graph_tokens,
        "checkpointing": given.checkpointing,
        "lengths": "esci" if given.esci else "generated",
        "tokens_per_step": round(statistics.median(tokens)),
        "seconds_per_step": round(statistics.median(seconds), 4),
        "tokens_per_s": round(statistics.median(t / s for t, s in zip(tokens, seconds, strict=True))),
        "tflops": round(achieved / 1e12, 1),
        "mfu": round(achieved / 1e12 / peak, 3) if peak else None,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if device.type == "cuda" else None,
    }


def forward_of(lm: Qwen2ForCausalLM) -> Any:
    """Return the embedder's forward pass on a bare language model, which needs no tokenizer."""

    def forward(batch: Sequences) -> EncoderOutput:
        return encode(lm, batch)

    return forward


def word_counts(esci: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the word counts of queries and of titles to draw from."""
    if esci is None:
        return np.arange(2, 13), np.arange(5, 41)
    import pyarrow.parquet as pq

    tables = {file.stem: pq.read_table(file) for file in sorted(esci.glob("*.parquet"))}
    counts = {}
    for table in tables.values():
        for column in ("query", "title", "product_title"):
            if column in table.column_names:
                texts = [text or "" for text in table[column].to_pylist()]
                counts[column.removeprefix("product_")] = np.array([max(1, len(text.split())) for text in texts])
    return counts["query"], counts["title"]


def draw(random: np.random.Generator, size: int, words: tuple[np.ndarray, np.ndarray]) -> ColdStartBatch:
    """Draw random token ids with realistic lengths; the reasoning has 6 to 16 tokens."""
    query_lengths = np.minimum((random.choice(words[0], size) * TOKENS_PER_WORD).astype(int), 64) + QUERY_FRAME
    reasoning_lengths = random.integers(6, 17, size) + 3
    item_lengths = np.minimum((random.choice(words[1], size) * TOKENS_PER_WORD).astype(int), 96) + ITEM_FRAME
    queries = [random.integers(0, 151000, n).tolist() for n in query_lengths + reasoning_lengths]
    items = [random.integers(0, 151000, n).tolist() for n in item_lengths]
    scored = [(int(start), int(start + n)) for start, n in zip(query_lengths, reasoning_lengths, strict=True)]
    return ColdStartBatch(queries, scored, items, list(range(size)), np.full((size, 1), -1))


def wait(device: torch.device) -> None:
    """Wait for the GPU, so that times are of finished work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
