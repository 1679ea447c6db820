"""The capacity model beside measurements and by hand, and what `lrem plan` prints."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from lrem.capacity.model import STRUCTURES, Requirements, divide, item_bytes, lay_out, model_replicas
from lrem.errors import DataError
from ray_apps.cli.plan import report

MEASURED = Path(__file__).parents[3] / "benchmarks/results/capacity.json"
MILLION = {"items": 10**6, "dim": 64, "qps": 10}


@pytest.mark.parametrize("name", STRUCTURES)
def test_memory_of_a_million_items_is_within_10_percent_of_the_measured(name: str) -> None:
    report = json.loads(MEASURED.read_text())
    [row] = [row for row in report["results"] if (row["family"], row["items"]) == (name, 10**6)]
    needs = Requirements(**MILLION, payload=123)  # as JSON, of an item of the benchmark
    assert 10**6 * item_bytes(name, needs) == pytest.approx(row["open"]["memory"], rel=0.1)
    assert divide(name, 1, needs).ms == pytest.approx(row["open"]["ms"], rel=0.1)


def test_a_layout_by_hand() -> None:
    """Two shards keep the search below 10 ms; 180 queries/s × 6.54 ms keep two replicas 60 % busy, and one is spare."""
    layout = lay_out("Flat", Requirements(**MILLION | {"qps": 180}, payload=100, memory=2.5, search_ms=10))
    assert (layout.item_bytes, layout.shards, layout.replicas, layout.problem) == (256 + 9 + 230, 2, 3, "")
    assert layout.ms == pytest.approx(0.0158 + 500_000 * 64 * 0.2036e-6)
    assert layout.machines == 2  # each holds one shard: 3 × (123 + 2.2 × 248) MB of replicas + 203 MB of items.sqlite


@pytest.mark.parametrize("name", STRUCTURES)
def test_more_items_or_queries_never_need_fewer_machines(name: str) -> None:
    fixed = {"dim": 64, "memory": 1024, "search_ms": 2000, "cores": 256}
    layouts = [[lay_out(name, Requirements(items=n, qps=q, **fixed)) for q in (1, 50, 900)] for n in (1e6, 2e7, 3e8)]
    assert not any(layout.problem for row in layouts for layout in row)
    machines = np.array([[layout.machines for layout in row] for row in layouts])
    assert machines.max() > 1
    assert min(np.diff(machines, axis=0).min(), np.diff(machines, axis=1).min()) >= 0


def test_models_by_hand() -> None:
    """60 queries/s at 60 % load: 1 embedder; 60 × (0.5 × 19 + 0.5) = 600 tokens/s: 1 reasoner; one spare of each."""
    rates = {"embedder_qps": 100, "reasoner_tokens": 1000, "reasoner_gpus": 0.5, "tokens": 19, "think": 0.5}
    assert model_replicas(Requirements(**MILLION | {"qps": 60} | rates)) == (2, 2, 1, 1)


def test_report_recommends_the_fewest_machines_with_sufficient_recall() -> None:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(report({"items": 5e6, "dim": 256, "qps": 100, "machine_price": 1, "recall": 0.999}))
    text = capture.get()
    [row] = [line for line in text.splitlines() if "HNSW32" in line]
    assert [cell.strip() for cell in row.split("│")[4:6]] == ["1", "2"]  # shards and replicas
    assert "1,460" in row  # two machines, one of them for the models
    assert "0.996 !" in text  # HNSW32
    assert "recommended: IVF8192,SQ8 on 1 machines" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qps": -5, "load": float("nan")}, "--load nan"),
        ({"memory": 0.001}, "use larger machines"),
        ({"search_ms": 0.01}, "raise --search-ms"),
        ({"items": 50, "structure": ["IVF,PQ"]}, "9,984 items per shard, not 50"),
        ({"structure": ["LSH"]}, "'LSH'"),
    ],
)
def test_invalid_options_and_impossible_plans_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError) as caught:
        report({"items": 10**6, "dim": 256, "qps": 10} | options)
    assert message in str(caught.value)
