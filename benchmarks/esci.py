"""A catalogue alone against real queries: bootstrap, cold start, RL and evaluation on Amazon's ESCI, within minutes.

    python benchmarks/esci.py --data FOLDER

FOLDER holds items.parquet (item_id, title), queries.parquet (query_id, query, esci_source) and qrels.parquet (query_id,
item_id, esci_label) of the Shopping Queries data set (Apache-2.0). Training sees neither its queries nor its
judgements. The gains of nDCG are 3, 2, 1, 0 for exact, substitute, complement and irrelevant; for Recall an item is
relevant from grade --relevant-from.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from rich.console import Console

from lrem.config import load_config
from lrem.data.files import write_json
from lrem.evaluation.report import print_tables
from ray_apps.cluster.session import cluster
from ray_apps.pipeline import run_stage

CONFIG = Path(__file__).parent.parent / "configs" / "catalogue.yaml"
STAGES = ("import", "bootstrap", "cold-start", "reinforce", "embed", "index", "evaluate")  # --stages also takes direct
GRADES = "{E: 3, S: 2, C: 1, I: 0}"  # as in published baselines on this sample
PROBES = ("overrides", "routing", "lengths", "fusion")
SETTINGS = ("seed", "model", "bootstrap", "curate", "cold_start", "reinforce", "evaluate")  # no local paths
REPORTED = ("measures", "primary", "systems", "intervals", "comparisons", "unjudged", *PROBES, "cost")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data set")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--folder", type=Path, default=Path("runs/esci"), help="where the run is kept")
    parser.add_argument("--sentence-transformers", nargs="*", default=[], help="model folders to compare with")
    parser.add_argument("--relevant-from", type=int, default=3, help="3: exact matches only")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=[*STAGES, "direct"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/esci.json"))
    parser.add_argument("overrides", nargs="*", help="settings to change")
    options = parser.parse_args()
    missing = [name for name in ("items", "queries", "qrels") if not (options.data / f"{name}.parquet").exists()]
    if missing:
        sys.exit(f"skipped: {options.data} has no {missing[0]}.parquet; pass the folder of the ESCI sample as --data")
    overrides = [
        f"run_dir={options.folder}",
        f"sources.catalogue={options.data / 'items.parquet'}",
        f"sources.queries={options.data / 'queries.parquet'}",
        f"sources.judgements={options.data / 'qrels.parquet'}",
        "sources.columns={grade: esci_label, queries/category: esci_source}",
        f"sources.grades={GRADES}",
        f"evaluate.relevant_from={options.relevant_from}",
        f"evaluate.sentence_transformers={json.dumps(options.sentence_transformers)}",
        *options.overrides,
    ]
    config = load_config(options.config, overrides)
    started = time.monotonic()
    with cluster(config):
        results = {name: run_stage(name, config) for name in options.stages}
    minutes = round((time.monotonic() - started) / 60, 1)
    if "evaluate" not in results:
        return
    report = results["evaluate"]
    print_tables(Console(width=160), report)
    run = {
        "minutes": minutes,
        "cores": os.cpu_count(),
        "seconds": {name: result["seconds"] for name, result in results.items()},
        "curation": results.get("bootstrap", {}),
        "commit": report["commit"],
        "settings": {name: report["settings"][name] for name in SETTINGS},
        "versions": report["versions"],
    }
    write_json({name: report[name] for name in REPORTED} | run, options.out)
    print(f"{minutes} minutes; {options.out}, {config.run_dir / 'evaluation.html'}")


if __name__ == "__main__":
    main()
