"""Stage 2 with faults: a run of 200 steps in which every 20 steps a random process is killed with SIGKILL.

Victims are rollout actors and training workers. The run must finish, and every query must be trained on exactly once
per epoch, by the row ids that each rank logs. Prints a table of faults and writes a JSON file. Exits with 1 if a query
was lost or repeated.

    python benchmarks/chaos_reinforce.py --out benchmarks/results/chaos_rl.json
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from lrem.data.known_positives import identity

LREM = [sys.executable, "-m", "ray_apps.cli.main"]
PATIENCE_S, SEED = 300, 3
VICTIMS = {"ray::EngineActor": "rollout actor", "ray::RayTrainWorker": "training worker"}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--steps", type=int, default=200)
    arguments.add_argument("--every", type=int, default=20, help="steps between kills")
    arguments.add_argument("--seed", type=int, default=0, help="seed of the choice of processes")
    arguments.add_argument("--out", type=Path, required=True)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), given)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=2) + "\n")
    show(report)
    if report["lost"] or report["twice"] or report["steps"] != given.steps:
        raise SystemExit(1)


def run(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Train a cold start on the tiny shop, reinforce it, kill processes meanwhile, and count the rows."""
    settings = ["--config", "configs/tiny.yaml", f"run_dir={folder}", f"seed={SEED}", "curate.rl_share=0.5"]
    for stage in ("world", "curate", "cold-start"):
        subprocess.run([*LREM, stage, *settings, "cold_start.epochs=60"], check=True, stdout=subprocess.DEVNULL)
    more = [f"reinforce.steps={given.steps}", "reinforce.log_rows=true", "reinforce.checkpoint.every=10"]
    more += ["reinforce.restarts=50", "rollout.restarts=50", "rollout.actors=2", "rollout.batch_size=4"]
    with (folder / "said").open("w") as said:
        process = subprocess.Popen([*LREM, "reinforce", *settings, *more], stdout=said, stderr=subprocess.STDOUT)
        try:
            faults, draw = [], random.Random(given.seed)
            for step in range(given.every, given.steps, given.every):
                wait_for(folder, process, step)
                faults.append({"step": step} | kill(process, draw))
                wait_for(folder, process, steps_done(folder) + 1, faults[-1])
            code = process.wait(timeout=PATIENCE_S)
        finally:
            process.terminate()  # like Ctrl-C: the run also stops its Ray
            process.wait(timeout=60)
    if code:
        raise SystemExit(f"lrem reinforce ended with {code}:\n{(folder / 'said').read_text()[-3000:]}")
    return {"faults": faults, "steps": steps_done(folder), **counts(folder)}


def wait_for(folder: Path, process: subprocess.Popen[bytes], step: int, fault: dict[str, Any] | None = None) -> None:
    """Wait until this many steps are logged; record for a fault the seconds, and how many steps the run repeats."""
    started, lowest = time.monotonic(), step - 1
    while (done := steps_done(folder)) < step:
        lowest = min(lowest, done)
        if process.poll() is not None:
            raise SystemExit(f"the run ended at step {done}:\n{(folder / 'said').read_text()[-3000:]}")
        if time.monotonic() - started > PATIENCE_S:
            raise SystemExit(
                f"step {step} was not reached within {PATIENCE_S} s:\n{(folder / 'said').read_text()[-3000:]}"
            )
        time.sleep(0.02)
    if fault is not None:
        fault |= {"seconds": round(time.monotonic() - started, 1), "steps_again": step - 1 - lowest}


def kill(process: subprocess.Popen[bytes], draw: random.Random) -> dict[str, str]:
    """Kill one rollout actor or training worker of this run with SIGKILL."""
    family = psutil.Process(process.pid).children(recursive=True)
    known = [(child, name) for child in family for name in VICTIMS if " ".join(child.cmdline()).startswith(name)]
    victim, name = draw.choice(sorted(known, key=lambda pair: (pair[1], pair[0].pid)))
    victim.send_signal(signal.SIGKILL)
    return {"killed": VICTIMS[name]}


def steps_done(folder: Path) -> int:
    """Return the number of logged steps."""
    file = folder / "logs/reinforce.jsonl"
    return file.read_text().count('"reward"') if file.exists() else 0


def counts(folder: Path) -> dict[str, Any]:
    """Count rows lost or repeated in each complete epoch, and average the reward at both ends of the run."""
    epochs: dict[int, Counter[int]] = {}
    for file in folder.glob("logs/reinforce.rows-*.jsonl"):
        for line in map(json.loads, file.read_text().splitlines()):
            epochs.setdefault(line["epoch"], Counter()).update(line["rows"])
    pairs = pq.read_table(folder / "curated/rl_pairs.parquet").to_pylist()
    rows = {identity(str(SEED), row["query"], row["item_id"], row["title"]) for row in pairs}
    whole = [epochs[epoch] for epoch in sorted(epochs)[:-1]]
    lost = sum(len(rows - epoch.keys()) for epoch in whole)
    twice = sum(count - 1 for epoch in epochs.values() for count in epoch.values())
    rewards = [json.loads(line).get("reward") for line in (folder / "logs/reinforce.jsonl").read_text().splitlines()]
    known = [reward for reward in rewards if reward is not None]
    ends = {"reward_first_20": sum(known[:20]) / 20, "reward_last_20": sum(known[-20:]) / 20}
    return {"epochs": len(epochs), "queries": len(rows), "lost": lost, "twice": twice} | ends


def show(report: dict[str, Any]) -> None:
    """Print the table of faults."""
    print(f"{'at step':>7}  {'killed':<16} {'next step after':>15}  {'steps done again':>16}")
    for fault in report["faults"]:
        seconds = f"{fault['seconds']} s"
        print(f"{fault['step']:>7}  {fault['killed']:<16} {seconds:>15}  {fault['steps_again']:>16}")
    print(", ".join(f"{name} {value}" for name, value in report.items() if name != "faults"))


if __name__ == "__main__":
    main()
