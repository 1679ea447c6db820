"""Small runs of stage 2 on two ranks and two rollout actors: their data and settings, and what their logs say."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lrem.config import ColdStartConfig, Config, ModelConfig, load_config
from lrem.data.files import write_parquet
from lrem.data.known_positives import KnownPositives, identity
from lrem.data.schema import RL_PAIRS, TRIPLETS
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.tokenizer import train_tokenizer
from lrem.training.cold_start_step import accumulate_gradients, collate
from tests.ray.training.helpers import read_log

KINDS, COLOURS = ("coat", "shirt", "hat", "scarf", "shoe"), ("red", "blue", "green", "black")
ITEMS = [{"item_id": f"p{i}", "title": f"{COLOURS[i % 4]} {KINDS[i // 4]}"} for i in range(20)]
ROWS, BATCH = 37, 4
STEPS = 5  # ceil(ceil(37 / 2) / 4)
SETTINGS = [
    "seed=1",
    "ray.num_cpus=6",  # two ranks, two actors, and some for Ray Data
    f"reinforce.batch_size={BATCH}",
    "reinforce.group_size=4",
    "reinforce.extra_candidates=10",
    "reinforce.optim.lr=1e-3",
    "reinforce.checkpoint.every=2",
    "reinforce.log_rows=true",
    "rollout.actors=2",
    "rollout.batch_size=3",
]


def make_triplet(i: int) -> dict[str, str]:
    item = ITEMS[i % 20]
    colour, kind = item["title"].split()
    query = f"something {colour} {i // 20} like a {kind}"
    return {"query_id": f"q{i}", "query": query, "reasoning": item["title"]} | item


def train_model(folder: Path) -> None:
    """Write a model that has learnt the format and a little sense, by plain PyTorch."""
    triplets = [make_triplet(i) for i in range(60)]
    texts = [f" {row[name]}" for row in triplets for name in ("query", "reasoning", "title")]
    config = ModelConfig(hidden_size=64, intermediate_size=96, layers=2, heads=2, kv_heads=2)
    model = ReasoningEmbedder.from_config(config, train_tokenizer(texts, 400), seed=2)
    renderer, rows = model.renderer, []
    for i, triplet in enumerate(triplets):
        ids = renderer.query_ids(triplet["query"], triplet["reasoning"])
        start = len(renderer.query_prompt(triplet["query"]))
        rows.append({"query_ids": ids, "start": start, "item_ids": renderer.item_ids(triplet["title"]), "query_key": i})
        rows[-1] |= {"item_key": i % 20, "negative_ids": [], "negative_keys": []}
    known = KnownPositives(*(torch.tensor([row[name] for row in rows]).numpy() for name in ("query_key", "item_key")))
    batch, optimizer = collate(rows, known), torch.optim.AdamW(model.parameters(), lr=5e-3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small only lose by more, above all on a busy machine
    for _ in range(200):
        optimizer.zero_grad()
        accumulate_gradients(batch, ColdStartConfig(), model, lambda loss, last: loss.backward(), torch.device("cpu"))
        optimizer.step()
    torch.set_num_threads(threads)
    model.save(folder)


def write_data(run: Path) -> None:
    items = [item | {"price": 1.0} for item in ITEMS]
    write_parquet(pa.Table.from_pylist(items), run / "world/items.parquet")
    pairs = [make_triplet(i) for i in range(ROWS)]
    write_parquet(pa.Table.from_pylist(pairs, RL_PAIRS), run / "curated/rl_pairs.parquet")
    dev = [make_triplet(i) for i in range(ROWS, ROWS + 15)]
    write_parquet(pa.Table.from_pylist(dev, TRIPLETS), run / "curated/dev.parquet")


def run_settings(run: Path, model: Path, *more: str) -> list[str]:
    return [*SETTINGS, f"run_dir={run}", f"paths.cold_start={model}", *more]


def run_config(run: Path, model: Path, *more: str) -> Config:
    return load_config(None, run_settings(run, model, *more))


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_log(run, "reinforce") if "reward" in line]


def steps_done(run: Path) -> int:
    return len(steps_of(run)) if (run / "logs/reinforce.jsonl").exists() else 0


def consumed_rows(run: Path) -> Counter[int]:
    """Return how often each row was trained on, by its id."""
    return Counter(row for rank in (0, 1) for line in read_log(run, f"reinforce.rows-{rank}") for row in line["rows"])


def corpus_ids(run: Path) -> Counter[int]:
    rows = pq.read_table(run / "curated/rl_pairs.parquet").to_pylist()
    return Counter(identity("1", row["query"], row["item_id"], row["title"]) for row in rows)


def assert_same_rewards(run: Path, other: Path) -> None:
    """Compare step by step: seeds belong to rows and steps, not to actors, so samples and rewards are the same.

    A rounding difference may tip one sample of a step, which then earns another reward: at least three steps in four
    have to agree.
    """
    pairs = list(zip(steps_of(run), steps_of(other), strict=True))
    assert all(ours["step"] == theirs["step"] for ours, theirs in pairs)
    assert sum(abs(ours["reward"] - theirs["reward"]) < 1e-4 for ours, theirs in pairs) >= 0.75 * len(pairs)
