"""The demo: every stage in order on a generated world, the report, and three queries over HTTP."""

import json
import signal
import sys
import time
from typing import Any

from rich.markup import escape
from rich.table import Table

from lrem.config import Config
from lrem.data.files import write_json
from lrem.evaluation.report import plot, print_tables
from lrem.modeling.model import RECORD
from ray_apps.cluster.progress import console
from ray_apps.cluster.session import cluster
from ray_apps.cluster.versions import versions
from ray_apps.pipeline import run_stage
from ray_apps.serving import deploy
from ray_apps.serving.client import search

ORDER = ("world", "curate", "cold-start", "direct", "reinforce", "embed", "index", "evaluate")


def run(config: Config) -> None:
    """Run all stages, write the report, and search over HTTP; in a terminal the service stays up until Ctrl-C.

    The report is written once the systems are scored, and again with the answers over HTTP.
    """
    deploy.require_free(config.serve.host, config.serve.port)  # fail before the training, not after it
    with cluster(config):
        results = {name: run_stage(name, config) for name in ORDER}
        report = assemble_report(config, results)
        write_json(report, config.run_dir / "report.json")
        plot(report, config.run_dir / "report.png")
        started = time.monotonic()
        address = deploy.start(_with_examples(config, results["evaluate"]["examples"]))
        try:
            report["seconds"]["serve"] = round(time.monotonic() - started, 1)
            report["examples"] = [_search_example(example, address) for example in results["evaluate"]["examples"]]
            write_json(report, config.run_dir / "report.json")
            print_tables(console, report)
            total = sum(report["seconds"].values())
            console.print(f"{config.run_dir / 'report.json'}, report.png; {total:.0f} s in all", highlight=False)
            if sys.stdin.isatty() and sys.stdout.isatty():
                console.print(f"the search page is at {address} (Ctrl-C stops it)", highlight=False)
                signal.pause()
        finally:
            deploy.stop_if_owner()


def _with_examples(config: Config, examples: list[dict[str, Any]]) -> Config:
    """Return the configuration with the examples' queries, which the search page suggests."""
    queries = [example["query"] for example in examples]
    return config.model_copy(update={"serve": config.serve.model_copy(update={"examples": queries})})


def assemble_report(config: Config, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the report of a finished run: scores, times, versions and counts."""
    evaluation = results["evaluate"]
    records = {
        name: json.loads((config.path(name) / RECORD).read_text(encoding="utf-8"))
        for name in ("cold_start", "direct", "model")
    }
    counts = {
        name: {key: value for key, value in results[name].items() if key != "seconds"} for name in ("world", "curate")
    }
    return {
        "seed": config.seed,
        "k": evaluation["k"],
        "versions": versions(),
        "seconds": {name: result["seconds"] for name, result in results.items()},
        "systems": evaluation["systems"],
        "overrides": evaluation["overrides"],
        "routing": evaluation["routing"],
        "counts": counts
        | {"training": records, "weight_syncs": records["model"]["weight_syncs"]}
        | {"evaluation": evaluation["counts"]},
    }


def _search_example(example: dict[str, Any], address: str) -> dict[str, Any]:
    """Search one hard query over HTTP and print its items beside the direct system's; ✓ marks a relevant item."""
    answer = search(address, example["query"], len(example["direct"]), "always")["results"][0]
    items = [{"item_id": item["item_id"], "title": item["payload"]["title"]} for item in answer["items"]]
    table = Table("direct embedding", "LREM", title=escape(f"{example['query']}  →  {answer['reasoning']}"))
    relevant = set(example["relevant"])
    for pair in zip(example["direct"], items, strict=True):
        table.add_row(*(escape(f"{'✓' if item['item_id'] in relevant else ' '} {item['title']}") for item in pair))
    console.print(table)
    return {
        "query": example["query"],
        "category": example["category"],
        "reasoning": answer["reasoning"],
        "direct": example["direct"],
        "lrem": items,
    }
