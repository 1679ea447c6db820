"""The paper's comparison on the demo world: one program from a seed to the tables of docs/results.md.

Learning rate and temperature of the direct baseline and of the cold start are chosen by equal searches on a world with
another seed, that is with other products, brands and held-out combinations. Then the systems of each seed are trained
by the same stages as `lrem demo`, and scored on queries that are not in training: *interpolation* (a fact with a new
constraint, in a new wording) and *composition* (a two-step fact whose steps training shows only separately).

The work is divided into tasks: two searches, then one task per seed, and the length sweep. Each task is a process with
its own Ray, and --parallel of them run at once: starting a stage keeps one core busy for half a minute, which another
task's training can use. Finished work is kept under --folder and not repeated, and an interrupted training resumes
from its newest checkpoint. A folder belongs to one configuration and one version of the code; others are refused.
Meant for CPUs: two tasks would compete for the same GPU.
"""

import argparse
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from reproduce_systems import (
    GRID,
    REINFORCED,
    SEARCHED,
    GridPoint,
    best,
    build_report,
    grid_points,
    search,
    sweep_lengths,
    train_systems,
)
from reproduce_task import ReproductionTask
from seed_statistics import write_page

from lrem.config import load_config, to_yaml
from lrem.data.files import write_json
from lrem.evaluation.overrides import OVERRIDES
from ray_apps.cluster.session import cluster
from ray_apps.cluster.versions import versions

CONFIG = Path("configs/reproduce.yaml")
TUNING_SEED = 100
LENGTHS = (4, 8, 16, 32)  # tokens of reasoning; a model is trained for each
TASK_TIMEOUT_S = 4 * 3600
TIME_FILE = "spent.json"  # seconds of all calls together


def main() -> None:
    """Run all tasks, or one with --task, and write the report and the page."""
    args = _parse_arguments()
    provenance = check_folder(args.folder, args.config)
    tasks = _tasks(args)
    if args.task:
        run_task(args.task, tasks, args.lengths)
        return
    names = list(tasks)
    for batch in (names[: len(SEARCHED)], names[len(SEARCHED) :]):
        run_in_processes(batch, args)
    seconds = json.loads((args.folder / TIME_FILE).read_text(encoding="utf-8"))
    report = build_report(_tasks(args), args.lengths)  # read again, now that the scores are there
    report |= {"minutes": round(seconds / 60, 1), "cores": os.cpu_count(), "parallel": args.parallel}
    report |= {"code": provenance["code"], "versions": versions()}
    write_json(report, args.out)
    write_page(report, args.page)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS, help="budgets to sweep; none: no sweep")
    parser.add_argument("--folder", type=Path, default=Path("runs/reproduce"), help="where the runs are kept")
    parser.add_argument("--parallel", type=int, default=2, help="tasks at once; each needs one core and 6 GB")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/claim.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--task", help="run only this task, in this process: search-direct, seed-0, lengths-0, …")
    args = parser.parse_args()
    if TUNING_SEED in args.seeds:
        parser.error(f"seed {TUNING_SEED} is reserved for the search of hyperparameters: choose other seeds")
    return args


def _tasks(args: argparse.Namespace) -> dict[str, ReproductionTask]:
    """Return the tasks by name: the searches first, because the others need their results."""
    seeds = {f"search-{stage}": TUNING_SEED for stage in SEARCHED} | {f"seed-{seed}": seed for seed in args.seeds}
    if args.lengths:
        seeds[f"lengths-{args.seeds[0]}"] = args.seeds[0]
    return {name: ReproductionTask(args.folder / name, args.config, seed) for name, seed in seeds.items()}


def run_in_processes(names: list[str], args: argparse.Namespace) -> None:
    """Run tasks, each in a process of its own, and add the time that they took to the folder's total.

    Raises:
        SystemExit: a task failed; the printed line names its log.
    """
    options = ["--config", args.config, "--folder", args.folder, "--seeds", *args.seeds, "--lengths", *args.lengths]

    def run(name: str) -> None:
        log = args.folder / f"{name}.log"
        print(f"{name}: follow it in {log}", flush=True)
        with log.open("a") as out:
            command = [sys.executable, __file__, *map(str, options), "--task", name]
            try:
                code = subprocess.run(command, stdout=out, stderr=out, timeout=TASK_TIMEOUT_S).returncode
                reason = f"exit code {code}"
            except subprocess.TimeoutExpired:
                code, reason = 1, f"not finished after {TASK_TIMEOUT_S / 3600:.0f} hours"
        if code:
            if code == -signal.SIGKILL:
                reason = "signal 9, possibly out of memory: try --parallel 1"
            print(f"{name} failed ({reason}): see the end of {log}, then run this command again to resume", flush=True)
            raise SystemExit(1)

    started, file = time.monotonic(), args.folder / TIME_FILE
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else 0
    try:
        with ThreadPoolExecutor(args.parallel) as pool:
            list(pool.map(run, names))
    finally:
        write_json(before + time.monotonic() - started, file)


def run_task(name: str, tasks: dict[str, ReproductionTask], lengths: list[int]) -> None:
    """Run one task in a Ray of its own.

    Raises:
        SystemExit: another process is running the task.
    """
    task = tasks[name]
    task.folder.mkdir(parents=True, exist_ok=True)
    with (task.folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"another process is working in {task.folder}: wait for it, or end it") from None
        with cluster(task.base):
            task.create_data()
            if name.startswith("search-"):
                search(task, name.removeprefix("search-"))
            elif name.startswith("lengths-"):
                sweep_lengths(task, best_point(tasks, "cold-start"), lengths)
            else:
                train_systems(task, best_point(tasks, "direct"), best_point(tasks, "cold-start"))
            task.reasoner.stop()


def best_point(tasks: dict[str, ReproductionTask], stage: str) -> GridPoint:
    """Return the best point of a finished search."""
    return best(grid_points(tasks[f"search-{stage}"], stage))


def check_folder(folder: Path, config: Path) -> dict[str, Any]:
    """Return the provenance of a folder's runs (configuration, constants, code), and record it in a new folder.

    Raises:
        SystemExit: the folder holds runs of another configuration or other code.
    """
    constants = [TUNING_SEED, GRID, REINFORCED, OVERRIDES]
    sources = sorted(path for package in ("lrem", "ray_apps") for path in Path(package).rglob("*.py"))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    provenance = {"config": to_yaml(load_config(config, [])), "constants": repr(constants), "code": code}
    file = folder / "made_by.json"
    if not file.exists():
        write_json(provenance, file)
    if json.loads(file.read_text(encoding="utf-8")) != provenance:
        raise SystemExit(f"{folder} holds runs of another configuration or code: delete it, or choose another --folder")
    return provenance


if __name__ == "__main__":
    main()
