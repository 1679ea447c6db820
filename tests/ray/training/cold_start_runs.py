"""Small runs of stage 1 on two ranks: their data and settings, and what their logs say."""

import signal
import subprocess
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lrem.data.files import write_parquet
from lrem.data.known_positives import identity
from lrem.data.schema import ITEMS, TRIPLETS
from tests.ray.training.helpers import read_log, start_lrem, wait_for_workers, wait_until

ROWS, BATCH, EPOCHS = 101, 8, 2  # 101: not a multiple of anything
STEPS_PER_EPOCH = 7  # ceil(ceil(101 / 2) / 8)
STEPS = STEPS_PER_EPOCH * EPOCHS
SETTINGS = [
    "ray.num_cpus=4",
    "model.vocab_size=400",
    "model.hidden_size=64",
    "model.intermediate_size=96",
    "model.layers=2",
    "model.heads=2",
    "model.kv_heads=2",
    f"cold_start.batch_size={BATCH}",
    f"cold_start.epochs={EPOCHS}",
    "cold_start.rows_per_query=null",  # every row in every epoch, so that consumed rows can be counted
    "cold_start.optim.lr=1e-3",
    "cold_start.checkpoint.every=3",
    "cold_start.log_rows=true",
    "cold_start.thoughts={teacher: 0.5, own: 0.25, empty: 0.15, corrupted: 0.1, refresh: 4}",
]
# Sums in another order: logits reach 1 / τ = 33, where fp32 has steps of 4e-6, and a loss is a difference of logits.
ROUNDING = 4e-6


def write_data(run: Path) -> None:
    kinds, colours = ("coat", "shirt", "hat", "scarf", "shoe"), ("red", "blue", "green", "black", "white", "grey")
    items = [{"item_id": f"p{i}", "title": f"{colours[i % 6]} {kinds[i % 5]} number {i}"} for i in range(60)]
    write_parquet(pa.Table.from_pylist(items, ITEMS), run / "world/items.parquet")
    rows = [
        {
            "query_id": f"q{i}",
            "query": f"something {colours[i % 6]} to wear {i % 11}",
            "reasoning": f"{kinds[i % 5]}, {colours[i % 6]} {kinds[i % 5]}",
            **items[i % 60],
        }
        for i in range(ROWS + 20)
    ]
    write_parquet(pa.Table.from_pylist(rows[:ROWS], TRIPLETS), run / "curated/triplets.parquet")
    write_parquet(pa.Table.from_pylist(rows[ROWS:], TRIPLETS), run / "dev.parquet")


def start_run(run: Path, *settings: str, resume: bool = False) -> subprocess.Popen[str]:
    return start_lrem("cold-start", *SETTINGS, f"run_dir={run}", *settings, resume=resume)


def steps_done(run: Path) -> int:
    file = run / "logs/cold_start.jsonl"
    return file.read_text().count('"info_nce"') if file.exists() else 0


def stop_at_step_5(run: Path, process: subprocess.Popen[str]) -> None:
    """Send SIGTERM to a run in progress; its ranks are suspended, or they would finish before the signal arrives."""
    workers = wait_for_workers(process)
    wait_until(lambda: steps_done(run) >= 5, process, "step 5")
    for worker in workers:
        worker.suspend()
    process.send_signal(signal.SIGTERM)
    assert steps_done(run) < STEPS


def loss_curve(run: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["info_nce"], line["sft"]) for line in read_log(run, "cold_start") if "info_nce" in line]


def assert_same_curve(run: Path, other: Path, rounding: float = 1e-12) -> None:
    assert [step for step, *_ in loss_curve(run)] == list(range(1, STEPS + 1))
    for ours, theirs in zip(loss_curve(run), loss_curve(other), strict=True):
        assert ours[1:] == pytest.approx(theirs[1:], rel=1e-5, abs=rounding), ours[0]


def consumed_rows(run: Path, epoch: int) -> Counter[int]:
    """Return how often each row was trained on in an epoch, by its id."""
    rows: Counter[int] = Counter()
    for rank in (0, 1):
        for line in read_log(run, f"cold_start.rows-{rank}"):
            rows.update(line["rows"] if line["epoch"] == epoch else [])
    return rows


def corpus_ids(run: Path) -> Counter[int]:
    rows = pq.read_table(run / "curated/triplets.parquet").to_pylist()
    names = ("query", "reasoning", "item_id", "title")
    return Counter(identity("0", *(row[name] for name in names)) for row in rows)
