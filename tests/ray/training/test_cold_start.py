"""Stage 1 as a user runs it: one whole run and all that it writes; bad input."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from lrem.config import load_config
from lrem.data.files import write_parquet
from lrem.data.known_positives import identity
from lrem.data.schema import TRIPLETS
from lrem.errors import DataError, TrainingFailed
from lrem.modeling.model import RECORD, ReasoningEmbedder, fingerprint
from lrem.training.schedule import cosine_with_warmup
from ray_apps.training import cold_start
from ray_apps.training.checkpoints import STATE
from ray_apps.training.dev_set import METRICS
from tests.ray.training.cold_start_runs import EPOCHS, SETTINGS, STEPS, consumed_rows, corpus_ids, start_run, write_data
from tests.ray.training.helpers import finish, read_log


def test_every_row_is_consumed_once_per_epoch(reference_run: Path) -> None:
    for epoch in range(EPOCHS):
        assert consumed_rows(reference_run, epoch) == corpus_ids(reference_run)


@pytest.mark.slow
def test_every_query_is_trained_on_once_per_epoch(tmp_path: Path) -> None:
    """66 queries, of which 35 have two rows: an epoch takes one row of each, the second epoch the other one."""
    write_data(tmp_path)
    process = start_run(tmp_path, "cold_start.rows_per_query=1")
    finish(process)
    rows = pq.read_table(tmp_path / "curated/triplets.parquet").to_pylist()
    names = ("query", "reasoning", "item_id", "title")
    query_of = {identity("0", *(row[name] for name in names)): row["query"] for row in rows}
    epochs = [consumed_rows(tmp_path, epoch) for epoch in range(EPOCHS)]
    for consumed in epochs:
        assert Counter(query_of[row] for row in consumed.elements()) == dict.fromkeys(query_of.values(), 1)
    assert set(epochs[0] | epochs[1]) == set(query_of)


def test_logs_of_a_run(reference_run: Path) -> None:
    log = read_log(reference_run, "cold_start")
    steps = [line for line in log if "info_nce" in line]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    required = {
        "sft",
        "info_nce_empty",
        "thoughts_s",
        "grad_norm",
        "grad_norm_sft",
        "grad_norm_info_nce",
        "lr",
        "tokens_per_s",
        "gradient_s",
    }
    assert all(required <= line.keys() for line in steps)
    assert steps[-1]["info_nce"] < steps[0]["info_nce"]
    assert [step["lr"] for step in steps] == pytest.approx(
        [1e-3 * cosine_with_warmup(i, 1, STEPS) for i in range(STEPS)]
    )
    assert steps[0]["lr"] == 1e-3  # the first step trains
    dev = [line for line in log if "dev_hit_rate" in line]
    assert [line["step"] for line in dev] == [0, 3, 6, 9, 12, 14]
    measures = {f"dev_{name}{suffix}" for name in METRICS.values() for suffix in ("", "_empty")}
    assert all(measures <= line.keys() for line in dev)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(reference_run / "logs/cold_start")).Reload()
    assert [event.step for event in board.Scalars("info_nce")] == list(range(1, STEPS + 1))
    assert board.Scalars("sft")[-1].value == pytest.approx(steps[-1]["sft"], rel=1e-5)


def test_the_best_checkpoint_becomes_the_model(reference_run: Path) -> None:
    log = read_log(reference_run, "cold_start")
    hit_rates = {line["step"]: line["dev_hit_rate"] for line in log if "dev_hit_rate" in line}
    record = json.loads((reference_run / "cold_start" / RECORD).read_text())
    assert record["dev"]["hit_rate"] == max(hit_rates.values())
    assert hit_rates[record["steps"]] == record["dev"]["hit_rate"]
    kept = sorted((reference_run / "checkpoints/cold_start").iterdir())
    assert [path.name for path in kept if path.name != "previous"] == [f"step-{record['steps']:08}"]
    assert not (kept[0] / STATE).exists()
    assert fingerprint(kept[0]) == fingerprint(reference_run / "cold_start")


def test_the_dev_set_is_measured_with_own_thoughts(reference_run: Path) -> None:
    """The exported model, with its own greedy thoughts, has the HitRate that its checkpoint recorded."""
    model = ReasoningEmbedder.load(reference_run / "cold_start")
    rows = pq.read_table(reference_run / "dev.parquet").to_pylist()
    items = pq.read_table(reference_run / "world/items.parquet").to_pylist()
    relevant: dict[str, set[str]] = {}
    for row in rows:
        relevant.setdefault(row["query"], set()).add(row["item_id"])
    queries, vectors = [*relevant], model.encode_items([item["title"] for item in items])
    hit_rates = []
    for reasonings in (model.reason(queries), [""] * len(queries)):
        order = np.argsort(-model.encode_queries(queries, reasonings) @ vectors.T, axis=1)[:, :10]
        found = [{items[i]["item_id"] for i in row} for row in order]
        hits = [len(top & wanted) / len(wanted) for top, wanted in zip(found, relevant.values(), strict=True)]
        hit_rates.append(np.mean(hits))
    record = json.loads((reference_run / "cold_start" / RECORD).read_text())["dev"]
    assert [record["hit_rate"], record["hit_rate_empty"]] == pytest.approx(hit_rates)


@pytest.mark.slow
def test_the_start_is_exported_if_nothing_beats_it(reference_run: Path, tmp_path: Path) -> None:
    """Continue from a trained model with a learning rate that ruins it."""
    write_data(tmp_path)
    ruin = [f"model.source={reference_run / 'cold_start'}", "cold_start.optim.lr=1", "cold_start.epochs=1"]
    config = load_config(None, [*SETTINGS, f"run_dir={tmp_path}", f"paths.dev={tmp_path}/dev.parquet", *ruin])
    cold_start.run(config, config.cold_start, config.path("cold_start"))
    record = json.loads((tmp_path / "cold_start" / RECORD).read_text())
    assert (record["steps"], record["epochs"]) == (0, 0)
    start, exported = (ReasoningEmbedder.load(run / "cold_start") for run in (reference_run, tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(start.lm.parameters(), exported.lm.parameters(), strict=True))


def test_the_model_folder_loads_everywhere(reference_run: Path) -> None:
    folder = reference_run / "cold_start"
    model, plain = ReasoningEmbedder.load(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert all((a == b).all() for a, b in zip(model.lm.parameters(), plain.parameters(), strict=True))
    titles = ["red coat number 1", "  blue   hat ", "<emb> green scarf", "white " * 200]
    expected = model.encode_items(titles)
    script = (
        "import sys, numpy as np; from sentence_transformers import SentenceTransformer;"
        "np.save(sys.argv[2], SentenceTransformer(sys.argv[1], device='cpu').encode(sys.argv[3:]))"
    )
    out = reference_run / "vectors.npy"
    subprocess.run([sys.executable, "-c", script, folder, out, *titles], check=True, timeout=300)
    assert np.abs(np.load(out) - expected).max() < 1e-5


def test_a_finished_run_cannot_be_resumed(reference_run: Path) -> None:
    config = load_config(None, [*SETTINGS, f"run_dir={reference_run}"])
    with pytest.raises(DataError, match="checkpoints/cold_start .*--resume"):
        cold_start.run(config, config.cold_start, config.path("cold_start"), resume=True)


@pytest.mark.parametrize(
    ("settings", "error", "fact"),
    [
        (["paths.dev={run}/lost.parquet"], DataError, "lost.parquet.*query 'a'.*items.parquet"),
        (["cold_start.trackers=[wandb]"], DataError, "wandb"),
        (["cold_start.matryoshka=[64]"], DataError, "64"),
        pytest.param(
            ["cold_start.optim.lr=1e30", "cold_start.optim.clip=0", "cold_start.restarts=0"],
            TrainingFailed,
            "not finite",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bad_input_is_refused(tmp_path: Path, settings: list[str], error: type[Exception], fact: str) -> None:
    write_data(tmp_path)
    lost = [{"query_id": "q", "query": "a", "reasoning": "", "item_id": "gone", "title": "b"}]
    write_parquet(pa.Table.from_pylist(lost, TRIPLETS), tmp_path / "lost.parquet")
    config = load_config(None, [*SETTINGS, f"run_dir={tmp_path}", *(s.format(run=tmp_path) for s in settings)])
    with pytest.raises(error, match=fact):
        cold_start.run(config, config.cold_start, config.path("cold_start"))
    assert not config.path("cold_start").exists()
