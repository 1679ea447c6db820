"""Stage 2 as a user runs it: a whole run with all that it writes; stale rollouts; then killed, stopped and resumed."""

import json
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lrem.config import ColdStartConfig, Config, ModelConfig, load_config
from lrem.data.files import write_parquet
from lrem.data.known_positives import KnownPositives, identity
from lrem.data.schema import RL_PAIRS, TRIPLETS
from lrem.errors import DataError, TrainingFailed
from lrem.modeling.model import RECORD, ReasoningEmbedder, fingerprint
from lrem.modeling.tokenizer import train_tokenizer
from lrem.training.cold_start_step import accumulate_gradients, collate
from lrem.training.rewards import RolloutOutcome
from ray_apps.cluster.session import cluster
from ray_apps.rollouts.engines import TransformersEngine
from ray_apps.training import reinforce
from ray_apps.training.checkpoints import CURSOR, STATE
from tests.ray.training.test_cold_start import LREM, train_workers, wait_until

KINDS, COLOURS = ("coat", "shirt", "hat", "scarf", "shoe"), ("red", "blue", "green", "black")
ITEMS = [{"item_id": f"p{i}", "title": f"{COLOURS[i % 4]} {KINDS[i // 4]}"} for i in range(20)]
ROWS, BATCH = 37, 4
STEPS = 5  # ceil(ceil(37 / 2) / 4)
SETTINGS = [
    "seed=1",
    f"reinforce.batch_size={BATCH}",
    "reinforce.group_size=4",
    "reinforce.extra_candidates=10",
    "reinforce.optim.lr=1e-3",
    "reinforce.checkpoint.every=2",
    "reinforce.log_rows=true",
    "rollout.actors=2",
    "rollout.batch_size=3",
]


def pair(i: int) -> dict[str, str]:
    item = ITEMS[i % 20]
    colour, kind = item["title"].split()
    return {
        "query_id": f"q{i}",
        "query": f"something {colour} {i // 20} like a {kind}",
        "reasoning": item["title"],
    } | item


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt the format and a little sense, by plain PyTorch."""
    pairs = [pair(i) for i in range(60)]
    texts = [f" {row[name]}" for row in pairs for name in ("query", "reasoning", "title")]
    config = ModelConfig(hidden_size=64, intermediate_size=96, layers=2, heads=2, kv_heads=2)
    model = ReasoningEmbedder.from_config(config, train_tokenizer(texts, 400), seed=2)
    renderer, rows = model.renderer, []
    for i, row in enumerate(pairs):
        ids = renderer.query(row["query"], row["reasoning"])
        start = len(renderer.query_prompt(row["query"]))
        rows.append({"query_ids": ids, "start": start, "item_ids": renderer.item(row["title"]), "query_key": i})
        rows[-1] |= {"item_key": i % 20, "negative_ids": [], "negative_keys": []}
    known = KnownPositives(*(torch.tensor([row[name] for row in rows]).numpy() for name in ("query_key", "item_key")))
    batch, optimizer = collate(rows, known), torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(200):
        optimizer.zero_grad()
        accumulate_gradients(batch, ColdStartConfig(), model, lambda loss, last: loss.backward(), torch.device("cpu"))
        optimizer.step()
    folder = tmp_path_factory.mktemp("taught") / "model"
    model.save(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    with cluster(load_config(None, [])):
        yield


def write_data(run: Path) -> None:
    payload = [item | {"price": 1.0} for item in ITEMS]
    write_parquet(pa.Table.from_pylist(payload), run / "world/items.parquet")
    write_parquet(pa.Table.from_pylist([pair(i) for i in range(ROWS)], RL_PAIRS), run / "curated/rl_pairs.parquet")
    dev = [pair(i) for i in range(ROWS, ROWS + 15)]
    write_parquet(pa.Table.from_pylist(dev, TRIPLETS), run / "curated/dev.parquet")


def configured(run: Path, taught: Path, *more: str) -> Config:
    return load_config(None, [*SETTINGS, f"run_dir={run}", f"paths.cold_start={taught}", *more])


def lines(run: Path, name: str = "reinforce") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"logs/{name}.jsonl").read_text().splitlines()]


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [line for line in lines(run) if "reward" in line]


def consumed(run: Path) -> Counter[int]:
    return Counter(row for rank in (0, 1) for line in lines(run, f"reinforce.rows-{rank}") for row in line["rows"])


def corpus_ids(run: Path) -> Counter[int]:
    rows = pq.read_table(run / "curated/rl_pairs.parquet").to_pylist()
    return Counter(identity("1", row["query"], row["item_id"], row["title"]) for row in rows)


@pytest.fixture(scope="module")
def whole(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch on two ranks and two vLLM actors, with a dev set."""
    run = tmp_path_factory.mktemp("whole")
    write_data(run)
    assert reinforce.run(configured(run, taught)) == {"rows": ROWS}
    return run


def test_every_query_is_trained_once(whole: Path) -> None:
    assert consumed(whole) == corpus_ids(whole)


def test_the_record_of_a_run(whole: Path) -> None:
    steps = steps_of(whole)
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    wanted = {"reward_format", "reward_length", "reward_accuracy", "rank_p10", "rank_p50", "rank_p90", "format_rate"}
    wanted |= {"reasoning_length", "entropy", "policy", "info_nce", "grad_norm", "lr", "varied_groups", "candidates"}
    wanted |= {"rollout_s", "reward_s", "train_s", "sync_s", "samples_per_s", "actor_restarts"}
    for step in steps:
        assert wanted <= step.keys()
        assert abs(step["mismatch_kl"]) < 1e-6  # the sampler is the policy of this step: every sync took
        assert (step["clip_fraction"], step["staleness"]) == (0, 0)
        assert step["rank_p10"] <= step["rank_p50"] <= step["rank_p90"] <= step["candidates"]
        parts = 0.5 * step["reward_format"] + 0.2 * step["reward_length"] + step["reward_accuracy"]
        assert step["reward"] == pytest.approx(parts, abs=1e-5)
    assert max(step["format_rate"] for step in steps) > 0.3
    assert max(step["varied_groups"] for step in steps) > 0
    assert [line["step"] for line in lines(whole) if "dev_hit_rate" in line] == [2, 4, 5]


def test_samples_are_for_people_to_read(whole: Path) -> None:
    samples = [sample for rank in (0, 1) for sample in lines(whole, f"reinforce.rollouts-{rank}")]
    assert len(samples) == 2 * STEPS * 2 * 4  # ranks × steps × groups × G
    for sample in samples:
        assert sample["query"].startswith("something")
        assert {"reasoning", "reward", "format", "length", "accuracy", "rank", "item_id"} <= sample.keys()
        assert sample["version"] == sample["step"] - 1
    assert any(sample["format"] == 1 and sample["reasoning"] for sample in samples)


def test_the_best_checkpoint_becomes_the_model(whole: Path, taught: Path) -> None:
    measured = {line["step"]: line["dev_hit_rate"] for line in lines(whole) if "dev_hit_rate" in line}
    record = json.loads((whole / "model" / RECORD).read_text())
    assert record["objective"] == "reinforce"
    assert record["dev"]["hit_rate"] == max(measured.values()) == measured[record["steps"]]
    assert record["weight_syncs"] == record["steps"] + 1  # the first gives the pool the start
    assert ReasoningEmbedder.load(whole / "model").template == ReasoningEmbedder.load(taught).template
    assert fingerprint(whole / "model") != fingerprint(taught)
    assert not list((whole / "checkpoints/reinforce").glob(f"*/{STATE}"))
    with pytest.raises(DataError, match="no unfinished run to resume"):
        reinforce.run(configured(whole, taught), resume=True)


@pytest.mark.slow
def test_rollouts_one_step_behind(taught: Path, tmp_path: Path) -> None:
    """Sampled while the step before trains: one version old, corrected, and every query still trained once.

    Ranked among the batch's own items and the nearest of the catalogue.
    """
    write_data(tmp_path)
    more = ["reinforce.staleness=1", "reinforce.correction=token", "reinforce.kl_weight=0.01"]
    more += ["reinforce.extra_candidates=0", "reinforce.hard_candidates=3", "reinforce.refresh=2"]
    reinforce.run(
        configured(tmp_path, taught, *more, "reinforce.rewards.own={tests.ray.training.test_reinforce:brevity: 0.1}")
    )
    steps = steps_of(tmp_path)
    assert [step["staleness"] for step in steps] == [0, 1, 1, 1, 1]
    assert steps[0]["mismatch_kl"] < 1e-6 < max(step["mismatch_kl"] for step in steps)
    assert steps[0]["kl"] < 1e-6 < steps[-1]["kl"]
    assert 0 < steps[-1]["reward_tests.test_reinforce:brevity"] <= 1
    assert all(2 * BATCH < step["candidates"] <= len(ITEMS) for step in steps)  # the batch alone has at most 2 · BATCH
    assert consumed(tmp_path) == corpus_ids(tmp_path)


def brevity(outcome: RolloutOutcome) -> torch.Tensor:
    """A reward of one's own."""
    return 1 / (1 + outcome.lengths.float())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["reinforce.rewards.own={no.such:reward: 1.0}"], "reward 'no.such:reward' cannot be imported"),
        (["reinforce.batch_size=1", "reinforce.workers=1", "reinforce.extra_candidates=0"], "a rank among one item"),
        (["reinforce.workers=38"], "37 RL pairs for 38 workers: raise curate.rl_share"),
        (["paths.cold_start={run}/nothing"], "nothing holds no .*safetensors: train a model"),
        (["paths.rl_pairs={run}/strange.parquet"], "query 'q', item 'gone': the item is not in .*items.parquet"),
        (["paths.rl_pairs={run}/blank.parquet"], "query 'q', item 'p1': the query is empty"),
    ],
)
def test_bad_input_ends_in_a_clear_error(taught: Path, tmp_path: Path, settings: list[str], message: str) -> None:
    write_data(tmp_path)
    for name, row in {
        "strange": {"query": "a", "item_id": "gone"},
        "blank": {"query": " ", "item_id": "p1"},
    }.items():
        table = pa.Table.from_pylist([{"query_id": "q", "title": "b"} | row] * 3, RL_PAIRS)
        write_parquet(table, tmp_path / f"{name}.parquet")
    config = configured(tmp_path, taught, *(setting.replace("{run}", str(tmp_path)) for setting in settings))
    with pytest.raises((DataError, FileNotFoundError), match=message):
        reinforce.run(config)
    assert not config.path("model").exists()


class Corrupting(TransformersEngine):
    """A real engine whose loader goes wrong at version 2: one tensor is not what was sent."""

    def load(self, weights: Any) -> None:
        super().load(weights)
        if self.version == 1:  # the version before
            with torch.no_grad():
                self.model.lm.model.layers[0].mlp.up_proj.weight *= 3


@pytest.mark.slow
def test_an_engine_that_samples_another_policy_ends_the_run(taught: Path, tmp_path: Path) -> None:
    write_data(tmp_path)
    engine = f"rollout.engine={__name__}:Corrupting"
    with pytest.raises(TrainingFailed, match="rollout actor . samples another policy than version 2: of the probe's"):
        reinforce.run(configured(tmp_path, taught, engine, "reinforce.restarts=0"))
    assert len(steps_of(tmp_path)) == 1
    assert not (tmp_path / "model").exists()


def start(run: Path, taught: Path, *more: str, resume: bool = False) -> subprocess.Popen[str]:
    words = ["reinforce", *SETTINGS, f"run_dir={run}", f"paths.cold_start={taught}", *more] + ["--resume"] * resume
    return subprocess.Popen([*LREM, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def steps_done(run: Path) -> int:
    return len(steps_of(run)) if (run / "logs/reinforce.jsonl").exists() else 0


def rewards_of(run: Path) -> list[tuple[int, float]]:
    return [(step["step"], step["reward"]) for step in steps_of(run)]


LONG = ["reinforce.steps=20"]  # four epochs


@pytest.fixture(scope="module")
def straight(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happens to."""
    run = tmp_path_factory.mktemp("straight")
    write_data(run)
    reinforce.run(configured(run, taught, *LONG))
    return run


@pytest.mark.slow
def test_killed_workers_and_actors_are_replaced(straight: Path, taught: Path, tmp_path: Path) -> None:
    """kill -9 of a training worker, then of a rollout actor: each query once an epoch, the rewards of `straight`."""
    write_data(tmp_path)
    with start(tmp_path, taught, *LONG) as process:
        wait_until(lambda: steps_done(tmp_path) >= 5, process, "step 5")
        train_workers(process)[-1].send_signal(signal.SIGKILL)
        wait_until(lambda: steps_done(tmp_path) < 5 or steps_done(tmp_path) >= 9, process, "the restart")
        wait_until(lambda: steps_done(tmp_path) >= 9, process, "step 9")
        family = psutil.Process(process.pid).children(recursive=True)
        victims = [child for child in family if (child.cmdline() or [""])[0].startswith("ray::EngineActor")]
        assert len(victims) == 2
        victims[0].send_signal(signal.SIGKILL)
        said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert consumed(tmp_path) == Counter(dict.fromkeys(corpus_ids(tmp_path), 4))
    assert steps_of(tmp_path)[-1]["actor_restarts"] == 1
    same_rewards(tmp_path, straight)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_stop_and_resume(straight: Path, taught: Path, tmp_path: Path, zero_stage: int) -> None:
    write_data(tmp_path)
    more = [*LONG, f"reinforce.optim.zero_stage={zero_stage}"]
    with start(tmp_path, taught, *more) as process:
        wait_until(lambda: steps_done(tmp_path) >= 7, process, "step 7")
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert list((tmp_path / "checkpoints/reinforce").glob(f"step-*/{STATE}/{CURSOR}"))
    assert steps_done(tmp_path) < 20  # some are left to go on with
    with start(tmp_path, taught, *more, "reinforce.group_size=5", resume=True) as process:
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 1, said
    assert "group_size was 4, is 5" in " ".join(said.split())
    with start(tmp_path, taught, *more, resume=True) as process:
        said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert consumed(tmp_path) == Counter(dict.fromkeys(corpus_ids(tmp_path), 4))
    same_rewards(tmp_path, straight)


def same_rewards(run: Path, other: Path) -> None:
    """Step by step the same samples, and so the same rewards: seeds belong to rows and steps, not to actors.

    A rounding may tip one sample of a step, which then earns something else: most steps agree, all are near.
    """
    pairs = list(zip(rewards_of(run), rewards_of(other), strict=True))
    assert all(mine[0] == theirs[0] for mine, theirs in pairs)
    assert sum(abs(mine[1] - theirs[1]) < 1e-4 for mine, theirs in pairs) >= 0.75 * len(pairs)
