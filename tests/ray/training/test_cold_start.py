"""Stage 1 as a user runs it: one whole run with all that it writes; then killed, stopped, resumed and saved apart."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from lrem.config import load_config
from lrem.data.files import write_parquet
from lrem.data.known_positives import identity
from lrem.data.schema import ITEMS, TRIPLETS
from lrem.errors import DamagedCheckpoint, DataError, TrainingFailed
from lrem.modeling.model import RECORD, ReasoningEmbedder, fingerprint
from ray_apps.cluster.session import cluster
from ray_apps.rollouts.client import start_pool
from ray_apps.training import cold_start
from ray_apps.training.checkpoints import CURSOR, STATE, Checkpoints
from tests.ray.rollouts.test_pool import assert_same_policy

LREM = [sys.executable, "-m", "ray_apps.cli.main"]
ROWS, BATCH, EPOCHS = 101, 8, 2  # 101: no multiple of anything
PER_EPOCH = 7  # ceil(ceil(101 / 2) / 8)
STEPS = PER_EPOCH * EPOCHS
SETTINGS = [
    "model.vocab_size=400",
    "model.hidden_size=64",
    "model.intermediate_size=96",
    "model.layers=2",
    "model.heads=2",
    "model.kv_heads=2",
    f"cold_start.batch_size={BATCH}",
    f"cold_start.epochs={EPOCHS}",
    "cold_start.optim.lr=1e-3",
    "cold_start.checkpoint.every=3",
    "cold_start.log_rows=true",
]


def write_data(run: Path) -> None:
    kinds, colours = ("coat", "shirt", "hat", "scarf", "shoe"), ("red", "blue", "green", "black", "white", "grey")
    items = [{"item_id": f"p{i}", "title": f"{colours[i % 6]} {kinds[i % 5]} number {i}"} for i in range(60)]
    write_parquet(pa.Table.from_pylist(items, ITEMS), run / "world/items.parquet")
    rows = [
        {
            "query_id": f"q{i}",
            "query": f"something {colours[i % 6]} to wear {i % 11}",
            "reasoning": f"{kinds[i % 5]}, {colours[i % 6]} {kinds[i % 5]}",
            **items[i % 60],
        }
        for i in range(ROWS + 20)
    ]
    write_parquet(pa.Table.from_pylist(rows[:ROWS], TRIPLETS), run / "curated/triplets.parquet")
    write_parquet(pa.Table.from_pylist(rows[ROWS:], TRIPLETS), run / "dev.parquet")


def lines(run: Path, name: str = "cold_start") -> list[dict[str, Any]]:
    text = (run / f"logs/{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def curve(run: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["info_nce"], line["sft"]) for line in lines(run) if "info_nce" in line]


def consumed(run: Path, epoch: int) -> Counter[int]:
    rows: Counter[int] = Counter()
    for rank in (0, 1):
        for line in lines(run, f"cold_start.rows-{rank}"):
            rows.update(line["rows"] if line["epoch"] == epoch else [])
    return rows


def corpus_ids(run: Path) -> Counter[int]:
    import pyarrow.parquet as pq

    rows = pq.read_table(run / "curated/triplets.parquet").to_pylist()
    names = ("query", "reasoning", "item_id", "title")
    return Counter(identity("0", *(row[name] for name in names)) for row in rows)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from beginning to end, with a dev set: what the others are compared with."""
    run = tmp_path_factory.mktemp("whole")
    write_data(run)
    config = load_config(None, [*SETTINGS, f"run_dir={run}", f"paths.dev={run}/dev.parquet"])
    cold_start.run(config, config.cold_start, config.path("cold_start"))
    return run


def test_every_row_is_consumed_once_an_epoch(whole: Path) -> None:
    for epoch in range(EPOCHS):
        assert consumed(whole, epoch) == corpus_ids(whole)


def test_the_record_of_a_run(whole: Path) -> None:
    steps = [line for line in lines(whole) if "info_nce" in line]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    wanted = {"sft", "grad_norm", "grad_norm_sft", "grad_norm_info_nce", "lr", "tokens_per_s", "gradient_s"}
    assert all(wanted <= line.keys() for line in steps)
    assert steps[-1]["info_nce"] < steps[0]["info_nce"]
    measured = [line["step"] for line in lines(whole) if "dev_hit_rate" in line]
    assert measured == [3, 6, 9, 12, 14]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(whole / "logs/cold_start")).Reload()
    assert [event.step for event in board.Scalars("info_nce")] == list(range(1, STEPS + 1))
    assert board.Scalars("sft")[-1].value == pytest.approx(steps[-1]["sft"], rel=1e-5)


def test_the_best_checkpoint_becomes_the_model(whole: Path) -> None:
    measured = {line["step"]: line["dev_hit_rate"] for line in lines(whole) if "dev_hit_rate" in line}
    record = json.loads((whole / "cold_start" / RECORD).read_text())
    assert record["dev"]["hit_rate"] == max(measured.values())
    assert measured[record["steps"]] == record["dev"]["hit_rate"]
    kept = sorted((whole / "checkpoints/cold_start").iterdir())
    assert [path.name for path in kept if path.name != "previous"] == [f"step-{record['steps']:08}"]
    assert not (kept[0] / STATE).exists()
    assert fingerprint(kept[0]) == fingerprint(whole / "cold_start")


def test_the_folder_loads_everywhere(whole: Path) -> None:
    folder = whole / "cold_start"
    model, plain = ReasoningEmbedder.load(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert all((a == b).all() for a, b in zip(model.lm.parameters(), plain.parameters(), strict=True))
    titles = ["red coat number 1", "  blue   hat ", "<emb> green scarf", "white " * 200]
    expected = model.encode_items(titles)
    script = (
        "import sys, numpy as np; from sentence_transformers import SentenceTransformer;"
        "np.save(sys.argv[2], SentenceTransformer(sys.argv[1], device='cpu').encode(sys.argv[3:]))"
    )
    out = whole / "vectors.npy"
    subprocess.run([sys.executable, "-c", script, folder, out, *titles], check=True, timeout=300)
    assert np.abs(np.load(out) - expected).max() < 1e-5


def test_a_finished_run_has_nothing_to_resume(whole: Path) -> None:
    config = load_config(None, [*SETTINGS, f"run_dir={whole}"])
    with pytest.raises(DataError, match="no unfinished run to resume"):
        cold_start.run(config, config.cold_start, config.path("cold_start"), resume=True)


def test_a_new_run_puts_the_old_checkpoints_aside(tmp_path: Path) -> None:
    for name in ("step-00000007", "previous/step-00000003"):
        (tmp_path / name).mkdir(parents=True)
    Checkpoints(tmp_path, keep=1).begin({})
    assert [path.name for path in tmp_path.iterdir()] == ["previous"]
    assert [path.name for path in (tmp_path / "previous").iterdir()] == ["step-00000007"]


def test_a_checkpoint_without_its_records_is_damaged(tmp_path: Path) -> None:
    state = tmp_path / "step-00000007" / STATE
    state.mkdir(parents=True)
    (state / CURSOR).write_text('{"step": 7, "ru')
    checkpoints = Checkpoints(tmp_path, keep=1)
    for ask in (lambda: checkpoints.begin({}), checkpoints.spent):
        with pytest.raises(DamagedCheckpoint, match=f"{tmp_path}/step-00000007/state cannot be read .*to start over"):
            ask()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (["paths.dev={run}/lost.parquet"], DataError, "has no positive: none of its items is in .*items.parquet"),
        (["cold_start.trackers=[wandb]"], DataError, "wandb is not installed: pip install wandb"),
        (["cold_start.matryoshka=[64]"], DataError, "each has to be below the embedding's 64"),
        pytest.param(
            ["cold_start.optim.lr=1e30", "cold_start.optim.clip=0", "cold_start.restarts=0"],
            TrainingFailed,
            "not finite",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bad_input_ends_in_a_clear_error(
    tmp_path: Path, settings: list[str], error: type[Exception], message: str
) -> None:
    write_data(tmp_path)
    lost = [{"query_id": "q", "query": "a", "reasoning": "", "item_id": "gone", "title": "b"}]
    write_parquet(pa.Table.from_pylist(lost, TRIPLETS), tmp_path / "lost.parquet")
    config = load_config(None, [*SETTINGS, f"run_dir={tmp_path}", *(s.format(run=tmp_path) for s in settings)])
    with pytest.raises(error, match=message):
        cold_start.run(config, config.cold_start, config.path("cold_start"))
    assert not config.path("cold_start").exists()


def start(run: Path, *settings: str, resume: bool = False) -> subprocess.Popen[str]:
    words = ["cold-start", *SETTINGS, f"run_dir={run}", *settings] + ["--resume"] * resume
    return subprocess.Popen([*LREM, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], what: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.002)


def steps_done(run: Path) -> int:
    file = run / "logs/cold_start.jsonl"
    return file.read_text().count('"info_nce"') if file.exists() else 0


def train_workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # gone, or killed and not yet reaped
            if (child.cmdline() or [""])[0].startswith("ray::RayTrainWorker"):
                found.append(child)
    return found


def workers_up(process: subprocess.Popen[str], but: Sequence[psutil.Process] = ()) -> list[psutil.Process]:
    """Both ranks' processes, before they train: a whole run takes less than a second, and to look for them as long."""
    found: list[psutil.Process] = []

    def both() -> bool:
        found[:] = [worker for worker in train_workers(process) if worker not in but]
        return len(found) == 2

    wait_until(both, process, "two training workers")
    return found


def stop_at_step_5(run: Path, process: subprocess.Popen[str]) -> None:
    """SIGTERM to a run that is still under way: its ranks are held, or they would be done before it is heard."""
    workers = workers_up(process)
    wait_until(lambda: steps_done(run) >= 5, process, "step 5")
    for worker in workers:
        worker.suspend()
    process.send_signal(signal.SIGTERM)
    assert steps_done(run) < STEPS


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_nothing_is_lost(whole: Path, tmp_path: Path) -> None:
    """kill -9 of a rank mid-epoch, twice: the run ends well, every row was consumed once, the curve is the same."""
    write_data(tmp_path)
    with start(tmp_path) as process:
        workers: list[psutil.Process] = []
        for after in (5, 10):
            workers = workers_up(process, workers)
            wait_until(lambda after=after: steps_done(tmp_path) >= after, process, f"step {after}")  # type: ignore[misc]
            workers[-1].send_signal(signal.SIGKILL)
            assert steps_done(tmp_path) < STEPS
        said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    for epoch in range(EPOCHS):
        assert consumed(tmp_path, epoch) == corpus_ids(tmp_path)
    same_curve(tmp_path, whole)


# Another order of sums: logits reach 1 / τ = 33, where fp32 has steps of 4e-6, and a loss is a difference of such.
ROUNDING = 4e-6


def same_curve(run: Path, other: Path, rounding: float = 1e-12) -> None:
    assert [step for step, *_ in curve(run)] == list(range(1, STEPS + 1))
    for mine, theirs in zip(curve(run), curve(other), strict=True):
        assert mine[1:] == pytest.approx(theirs[1:], rel=1e-5, abs=rounding), mine[0]


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_stop_and_resume_is_the_uninterrupted_run(whole: Path, tmp_path: Path, zero_stage: int) -> None:
    write_data(tmp_path)
    zero = [f"cold_start.optim.zero_stage={zero_stage}", "cold_start.checkpoint.keep=9"]
    with start(tmp_path, *zero) as process:
        stop_at_step_5(tmp_path, process)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    newest = sorted((tmp_path / "checkpoints/cold_start").glob(f"step-*/{STATE}/{CURSOR}"))[-1].parent.parent
    AutoModelForCausalLM.from_pretrained(newest)
    for process, message in (
        (start(tmp_path, *zero), "belongs to an unfinished run: go on with --resume, or delete"),
        (start(tmp_path, *zero, "cold_start.batch_size=9", resume=True), "batch_size was 8, is 9"),
        (start(tmp_path, *zero, "model.hidden_size=32", "model.heads=1", "model.kv_heads=1", resume=True), "model was"),
    ):
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 1, said
        assert message in " ".join(said.split())
    record = json.loads((newest / RECORD).read_text())
    (newest / RECORD).write_text(json.dumps(record | {"seconds": 10_000.0}))
    with start(tmp_path, *zero, resume=True) as process:
        said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    last = max((tmp_path / "checkpoints/cold_start").glob("step-*"))
    assert json.loads((last / RECORD).read_text())["seconds"] > 10_000  # of both parts together
    same_curve(tmp_path, whole, ROUNDING if zero_stage == 3 else 1e-12)  # `whole` is ZeRO-2's
    for epoch in range(EPOCHS):
        assert consumed(tmp_path, epoch) == corpus_ids(tmp_path)


@pytest.mark.slow
def test_resume_goes_on_with_the_random_numbers(tmp_path: Path) -> None:
    """With dropout in the adapters: stopped and resumed gives the curve of the run that was not stopped."""
    dropout = ["cold_start.lora.rank=4", "cold_start.lora.dropout=0.3", "cold_start.optim.lr=1e-2"]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for run in (straight, broken):
        write_data(run)
    with start(straight, *dropout) as process:
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    with start(broken, *dropout) as process:
        stop_at_step_5(broken, process)
        process.communicate(timeout=120)
    with start(broken, *dropout, resume=True) as process:
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    same_curve(broken, straight)


@pytest.mark.slow
def test_a_kill_during_a_save_leaves_no_folder_that_loads(tmp_path: Path) -> None:
    """Everything is killed while a checkpoint is being written; what is visible is whole, and --resume goes on."""
    write_data(tmp_path)
    checkpoints = tmp_path / "checkpoints/cold_start"
    with start(tmp_path, "cold_start.checkpoint.every=1") as process:
        wait_until(lambda: steps_done(tmp_path) >= 4, process, "step 4")
        family = psutil.Process(process.pid).children(recursive=True)  # now: it takes longer than a save
        writers = train_workers(process)
        wait_until(lambda: any(checkpoints.glob(".step-*/config.json")), process, "a save")
        for child in [*writers, *family]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
        process.communicate(timeout=60)
    assert list(checkpoints.glob(".step-*")), "the kill came after the save"
    for folder in checkpoints.glob("step-*"):
        AutoModelForCausalLM.from_pretrained(folder)
    assert not (tmp_path / "cold_start").exists()
    with start(tmp_path, "cold_start.checkpoint.every=1", resume=True) as process:
        said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert consumed(tmp_path, 1) == corpus_ids(tmp_path)
    assert not list(checkpoints.glob(".*"))


CACHED = ["cold_start.chunk_tokens=64", "cold_start.graph_tokens=64"]
LORA = ["cold_start.lora.rank=4", "cold_start.lora.alpha=8", "cold_start.optim.lr=1e-2"]
VARIANTS = {
    "lora": LORA,
    "bf16": ["cold_start.optim.bf16=true", "cold_start.optim.zero_stage=1"],
    "checkpointing": ["cold_start.gradient_checkpointing=true", *CACHED],
    "matryoshka": ["cold_start.matryoshka=[32, 16]", "cold_start.thought_dropout=0.2"],
    "zero-3": ["cold_start.optim.zero_stage=3", *CACHED],
    "lora-zero-3": [*LORA, "cold_start.optim.zero_stage=3"],
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_train_and_load(whole: Path, tmp_path: Path, variant: str) -> None:
    write_data(tmp_path)
    config = load_config(None, [*SETTINGS, f"run_dir={tmp_path}", *VARIANTS[variant]])
    folder = config.path("cold_start")
    with cluster(config):
        cold_start.run(config, config.cold_start, folder)
        if variant == "zero-3":  # what ZeRO gathered is what vLLM loads
            pool = start_pool(folder, config)
            [engine] = ray.get(pool.actors.remote(), timeout=60)
            assert_same_policy(engine, ReasoningEmbedder.load(folder))
    values = curve(tmp_path)
    assert values[-1][1] < values[0][1]
    assert values[-1][2] < values[0][2]
    model = ReasoningEmbedder.load(folder)
    start_model = cold_start.initial_model(config, config.cold_start)
    titles = ["red coat number 1", "blue hat number 7"]
    assert np.abs(model.encode_items(titles) - start_model.encode_items(titles)).max() > 1e-3
    if variant == "bf16":
        assert {p.dtype for p in AutoModelForCausalLM.from_pretrained(folder).parameters()} == {torch.bfloat16}
    if variant.startswith("lora"):
        import peft

        wrapped = peft.PeftModel.from_pretrained(start_model.lm, str(folder / "adapter"))
        start_model.lm = wrapped.merge_and_unload()
        assert np.abs(model.encode_items(titles) - start_model.encode_items(titles)).max() < 1e-5
    if variant == "matryoshka":
        assert model.template.matryoshka == (32, 16)
        assert json.loads((folder / "config.json").read_text())["matryoshka_dimensions"] == [32, 16, 64]
    if variant in ("checkpointing", "zero-3"):  # the same numbers by another way
        same_curve(tmp_path, whole, ROUNDING)
