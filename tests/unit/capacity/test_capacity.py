"""The model of docs/capacity.md: its bytes beside a really built index, how it grows, what it refuses and prints."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lrem.capacity.footprint import Item, held, rebuilt, saved, store, structure, trained_on
from lrem.capacity.model import FAMILIES, Layout, Needs, Refused, best, lay_out, models, monthly
from lrem.capacity.search_cost import Asked, Constants, checked, constants, expected_recall, search_ms
from lrem.errors import DataError
from lrem.index import Collection
from lrem.index.ann import COMPRESS_FROM, choose
from lrem.index.bulk_load import Batch, fill
from lrem.index.collection import ANN, ITEMS
from ray_apps.cli.capacity_plan import number, plan

faiss.omp_set_num_threads(1)  # as a shard does

DIM, COUNT, FEW = 64, 20_000, 100
SPILLED = (1000, 1100, 2048)  # numbers of vectors whose rows fill a page, need a page more, and two
MISSED = {"count": 1e4, "share": 0.01, "slope": 0.01}
KNOWN = Constants.model_validate(  # round numbers, to be reckoned with by hand
    {
        "machine": "a made-up machine",
        "command": "a test",
        "process_bytes": 1e8,
        "call_us": 100,
        "hit_us": 10,
        "scan_ns": 0.1,
        "visits": [0, 300],
        "hop_ns": 50,
        "hop_number_ns": 0.25,
        "code_ns": {"Flat": 0.2, "SQ8": 0.2, "PQ": 1},
        "fetch_us": 2,
        "fetch_number_ns": 1,
        "cold_us": 100,
        "misses": dict.fromkeys(("HNSW", "IVF,Flat", "IVF,SQ8", "IVF,PQ"), MISSED),
        "model": "a small model",
        "embedder_qps": 100,
        "reasoner_tokens": 1000,
        "reasoner_cores": 2,
    }
)
LIVE = """
import ctypes, gc, sys
from pathlib import Path
from lrem.index import Collection

class Heap(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Heap

def live():
    gc.collect()
    sys._debugmallocstats()
    heap = libc.mallinfo2()
    return heap.uordblks + heap.hblkhd

before = live()
collection = Collection(Path(sys.argv[1]), factory=sys.argv[2])
collection.search(collection.store.sample(1), 10)
print(live() - before, collection.segment.ann.factory, len(collection))
"""


def payload(row: int) -> dict[str, Any]:
    return {
        "title": f"item {row:08d} of a made-up catalogue",
        "price": row % 997 + 0.5,
        "brand": f"brand {row % 50:02d}",
    }


def item(dim: int) -> Item:
    sample = payload(0)
    return Item(dim, len(json.dumps(sample)), texts=1, text=len(sample["title"]), fields=2, item_id=9)


def filled(folder: Path, count: int, dim: int) -> Path:
    random = np.random.default_rng(0)

    def batches() -> Iterator[Batch]:
        for first in range(0, count, 5000):
            rows = range(first, min(count, first + 5000))
            vectors = random.normal(size=(len(rows), dim)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            yield Batch([f"p{row:08d}" for row in rows], [payload(row) for row in rows], vectors)

    fill(folder, batches(), "model", dim, "Flat")
    return folder


def live(folder: Path, factory: str) -> int:
    """Bytes alive in a fresh process that opened the collection, as both of its allocators count them.

    Resident memory also has what they keep of what was freed: megabytes, too much beside so few vectors. That is
    measured by benchmarks/capacity.py at a million.
    """
    done = subprocess.run(
        [sys.executable, "-c", LIVE, str(folder), factory],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    size, built, _ = done.stdout.split()
    assert built == factory
    before, after = (
        int(one.replace(",", "")) for one in re.findall(r"bytes in allocated blocks\s+=\s+([\d,]+)", done.stderr)
    )
    return int(size) + after - before


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("many") / "items", COUNT, DIM)


@pytest.fixture(scope="module")
def empty_bytes(tmp_path_factory: pytest.TempPathFactory) -> float:
    """What a collection of next to nothing holds: SQLite's cache, Python's objects."""
    folder = filled(tmp_path_factory.mktemp("few") / "items", FEW, DIM)
    parts = held(structure("Flat", FEW, DIM), FEW, item(DIM))
    return live(folder, "Flat") - (parts.total - parts.holes)


@pytest.mark.parametrize("family", ["Flat", "HNSW32", "IVF64,Flat", "IVF64,SQ8", "IVF64,PQ4"])
def test_memory_and_files_of_a_built_index(catalogue: Path, empty_bytes: float, tmp_path: Path, family: str) -> None:
    what = structure(family, COUNT, DIM)
    folder = tmp_path / "items"
    folder.mkdir()
    shutil.copy(catalogue / ITEMS, folder / ITEMS)
    collection = Collection(folder, factory=what.factory)
    collection.save()
    collection.close()
    parts = held(what, COUNT, item(DIM))
    assert live(folder, what.factory) - empty_bytes == pytest.approx(parts.total - parts.holes, rel=0.05)
    files = sum(file.stat().st_size for file in (folder / ANN).iterdir())
    assert files == pytest.approx(saved(what, COUNT, item(DIM)), rel=0.02)


@pytest.mark.parametrize("dim", SPILLED)
def test_the_store_on_disk(tmp_path: Path, dim: int) -> None:
    folder = filled(tmp_path / "items", 2000, dim)
    assert (folder / ITEMS).stat().st_size == pytest.approx(store(2000, item(dim)), rel=0.03)


def test_the_store_on_disk_where_many_rows_share_a_page(catalogue: Path) -> None:
    assert (catalogue / ITEMS).stat().st_size == pytest.approx(store(COUNT, item(DIM)), rel=0.03)


@pytest.mark.parametrize("count", [COMPRESS_FROM, 5_000_000, 76_000_000])
@pytest.mark.parametrize("dim", [2, 255, 256, 2048])
def test_the_usual_structure_is_the_index_own(count: int, dim: int) -> None:
    assert structure("IVF,PQ", count, dim).factory == choose(count, dim)[0]


def test_search_by_hand() -> None:
    flat, graph = structure("Flat", 10**6, 100), structure("HNSW32", 2**20, 100)
    assert search_ms(flat, 10**6, Asked(100), KNOWN) == pytest.approx(0.2 + 10)
    assert search_ms(graph, 2**20, Asked(100), KNOWN) == pytest.approx(0.2 + 20 * 300 * 75e-6)
    codes = structure("IVF4096,SQ8", 10**6, 100)
    wanted = 0.2 + (4096 * 100 * 0.1 + 10**6 / 32 * 100 * 0.2) / 1e6 + 100 * 2.1e-3
    assert search_ms(codes, 10**6, Asked(100), KNOWN) == pytest.approx(wanted)
    assert search_ms(codes, 10**6, Asked(100, store_cached=0.5), KNOWN) == pytest.approx(wanted + 110 * 0.05)
    assert expected_recall(codes, 10**6, KNOWN) == pytest.approx(0.97)


def test_a_layout_by_hand() -> None:
    """A machine takes what it can of shards, each with its replicas, room for a rebuild of each, and the store once."""
    wanted = Needs(items=10**6, dim=100, qps=50, memory=4 * 2**30, search_ms=6)
    found = lay_out("Flat", wanted, KNOWN)
    assert isinstance(found, Layout)
    assert found.shards == 2  # one would take 10.2 ms
    assert found.ms == pytest.approx(5.2)
    assert found.replicas == 2  # 50 × 5.2 ms = 0.26 of one, and one to spare
    sizes = Item(100, wanted.payload, wanted.texts, wanted.text, wanted.fields)
    flat = structure("Flat", 500_000, 100)
    own = 1e8 + held(flat, 500_000, sizes).total + rebuilt(flat, 500_000, sizes)
    each = 2 * own + store(500_000, sizes)
    assert found.together == int(0.9 * 4 * 2**30 // each)
    assert found.memory == pytest.approx(found.together * each)
    assert found.machines == -(-2 // found.together)


sizes = st.integers(10**5, 10**8)
rates = st.floats(1, 2000)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None)
@given(items=sizes, more=st.floats(1, 20), qps=rates, faster=st.floats(1, 20), dim=st.sampled_from([64, 384, 2048]))
def test_more_never_needs_less(family: str, items: int, more: float, qps: float, faster: float, dim: int) -> None:
    def laid(items: int, qps: float) -> Layout | Refused:
        return lay_out(family, Needs(items=items, dim=dim, qps=qps, memory=256 * 2**30, search_ms=500), KNOWN)

    less, busier, larger = laid(items, qps), laid(items, qps * faster), laid(int(items * more), qps)
    if isinstance(less, Refused):
        return
    for other in (busier, larger):
        assert isinstance(other, Refused) or other.machines >= less.machines


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=50, deadline=None)
@given(count=st.integers(30_000, 10**8), more=st.integers(0, 10**8), dim=st.sampled_from([64, 384, 2048]))
def test_larger_shards_hold_more_take_longer_and_miss_more(family: str, count: int, more: int, dim: int) -> None:
    one, other = structure(family, count, dim), structure(family, count + more, dim)
    sizes = Item(dim)
    for size in (lambda *of: held(*of).total, rebuilt, store_of, saved):
        assert size(other, count + more, sizes) >= size(one, count, sizes)
    assert search_ms(other, count + more, Asked(dim), KNOWN) >= search_ms(one, count, Asked(dim), KNOWN)
    assert expected_recall(other, count + more, KNOWN) <= expected_recall(one, count, KNOWN)


def store_of(_: Any, count: int, sizes: Item) -> float:
    return store(count, sizes)


@settings(max_examples=50, deadline=None)
@given(qps=rates, faster=st.floats(1, 20), think=st.floats(0, 1), cached=st.floats(0, 0.9))
def test_more_queries_never_need_fewer_models(qps: float, faster: float, think: float, cached: float) -> None:
    def of(**other: Any) -> Any:
        asked = {"items": 10, "dim": 8, "qps": qps, "think": think, "cached": cached, "reasoner_gpus": 0.5}
        return models(Needs(**(asked | other)), KNOWN)

    less = of()
    for more in (of(qps=qps * faster), of(think=1.0), of(cached=0.0)):
        assert more.tokens >= less.tokens * (1 - 1e-9)
        assert all(a >= b for a, b in zip(more[:4], less[:4], strict=True))


def test_models_and_money_by_hand() -> None:
    wanted = Needs(items=10, dim=8, qps=120, think=0.5, tokens=19, reasoner_gpus=0.5, gpu_price=2, machine_price=1)
    found = models(wanted, KNOWN)
    assert found.embedders == 3  # 120 of 60 each, and one
    assert found.tokens == 120 * (0.5 * 19 + 0.5)
    assert found.reasoners == 3  # 1200 of 600 each, and one
    assert (found.gpus, found.machines) == (2, 1)
    assert monthly(wanted, 4, found.gpus) == 730 * (4 + 2 * 2)
    assert monthly(Needs(items=10, dim=8, qps=1), 4, 1) is None


def shown(file: Path | None, **options: Any) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(plan(options, file))
    return captured.get()


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    file = tmp_path / "constants.json"
    file.write_text(KNOWN.model_dump_json())
    return file


def test_what_is_printed(made_up: Path) -> None:
    options = {"items": "5M", "dim": "256", "qps": "100", "memory": "64GiB", "machine_price": "1.5", "k": None}
    text = shown(made_up, **options)
    wanted = Needs(items=5_000_000, dim=256, qps=100, memory=64 * 2**30, machine_price=1.5)
    assert "5,000,000 items × 256 numbers, 100 queries/s, k = 10" in text
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    side = models(wanted, KNOWN)
    for family in ("HNSW32", "IVF,PQ"):
        one = lay_out(family, wanted, KNOWN)
        assert isinstance(one, Layout)
        row, held_row = [row for row in rows if row[0] == one.what.factory]
        cost = monthly(wanted, one.machines + side.machines, side.gpus)
        assert row[1:3] == [f"{one.shards} × {one.replicas}", str(one.machines)]
        assert row[-1] == f"{cost:,.0f}"
        assert held_row[1] == f"{one.parts.vectors / one.items:,.0f}"
    tried = [lay_out(family, wanted, KNOWN) for family in FAMILIES]
    chosen = best([one for one in tried if isinstance(one, Layout)], 0.95)
    assert chosen is not None
    assert chosen.machines == min(one.machines for one in tried if isinstance(one, Layout) and one.recall >= 0.95)
    assert f"serve.shards={chosen.shards} serve.shard.replicas={chosen.replicas}" in text
    assert "a made-up machine, a test" in text
    assert "embedder-qps and reasoner-tokens are those of a small model" in text


def test_nothing_finds_enough(made_up: Path) -> None:
    text = shown(made_up, items="5M", dim="256", qps="1", recall="0.99", structures=("HNSW32", "IVF,PQ"))
    assert "none is expected to find 0.99: " in text
    assert text.count("!") == 2


def test_the_projects_own_constants_print_a_plan() -> None:
    known = constants()
    assert known.command.startswith("python benchmarks/capacity.py")
    assert set(known.misses) == {"HNSW", "IVF,Flat", "IVF,SQ8", "IVF,PQ"}
    assert "HNSW32" in shown(None, items="76e6", dim="2048", qps="500")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": 0}, "items: Input should be greater than or equal to 1"),
        ({"qps": "-5"}, "qps: Input should be greater than 0"),
        ({"recall": 1.5}, "recall: Input should be less than or equal to 1"),
        ({"items": "a lot"}, "'a lot' is no number: write it as 76e6"),
        ({"items": "1.5"}, "items: Input should be a valid integer"),
        ({"memory": 1000}, "take larger machines"),
        ({"search_ms": 0.01}, "allow more"),
        ({"structures": ("LSH",)}, "structure 'LSH': Flat, HNSW32"),
        ({"structures": ("IVF,PQ7",)}, "256 numbers cannot be cut into 7 parts"),
        ({"structures": ("HNSW1",)}, "2 links at least"),
        ({"load": float("nan")}, "load: Input should be"),
        ({"shards": 3}, "shards: Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], message: str, made_up: Path) -> None:
    with pytest.raises(DataError) as caught:
        plan({"items": 10**6, "dim": 256, "qps": 10} | options, made_up)
    assert message in str(caught.value)


def test_structures_that_cannot_be_are_named_beside_the_others(made_up: Path) -> None:
    need = trained_on(structure("IVF,PQ", 5000, 256), 256)
    text = shown(made_up, items=5000, dim=256, qps=1)
    assert f"IVF,PQ: shards of 5,000 items are too few to train it, {need:,} are needed" in text
    assert "index.factory" not in text  # exact search, as the collection chooses by itself


def test_constants_that_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "constants.json"
    with pytest.raises(DataError, match="benchmarks/capacity.py --constants"):
        constants(file)
    file.write_text(json.dumps({"machine": "mine"}))
    with pytest.raises(DataError, match="command: Field required"):
        constants(file)
    lacking = KNOWN.model_copy(update={"reasoner_tokens": None})
    with pytest.raises(DataError, match="no rate of the reasoner"):
        models(checked(Needs, {"items": 10, "dim": 8, "qps": 1}), lacking)


@pytest.mark.parametrize("text", ["", "k", "1e", "64 XiB", "--3", "nan", "1.2.3"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(DataError, match="is no number"):
        number(text)


def test_the_model_still_fits_what_was_measured_at_a_million(monkeypatch: pytest.MonkeyPatch) -> None:
    """The present formulas beside the measurements of `make bench-capacity`: what it said of them must still hold."""
    root = Path(__file__).parents[3] / "benchmarks"
    monkeypatch.syspath_prepend(str(root))
    benchmark = importlib.import_module("capacity")
    report = json.loads((root / "results/capacity.json").read_text())
    rows = [row for row in report["results"] if row["items"] == 1_000_000]
    assert {row["family"] for row in rows} == set(FAMILIES)
    for row in rows:
        assert benchmark.reckoned(row, report)["memory"]["ratio"] == pytest.approx(1, abs=0.1), row["family"]
