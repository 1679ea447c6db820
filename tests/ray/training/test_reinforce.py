"""Stage 2 as a user runs it: a whole run and all that it writes; stale rollouts; bad input; a corrupted engine."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from lrem.config import load_config
from lrem.data.files import write_parquet
from lrem.data.schema import RL_PAIRS
from lrem.errors import DataError, TrainingFailed
from lrem.modeling.model import RECORD, ReasoningEmbedder, fingerprint
from lrem.training.rewards import RolloutOutcome
from ray_apps.cluster.session import cluster
from ray_apps.rollouts.engines import TransformersEngine
from ray_apps.training import reinforce
from ray_apps.training.checkpoints import STATE
from tests.ray.training.helpers import read_log
from tests.ray.training.reinforce_runs import (
    BATCH,
    ITEMS,
    ROWS,
    SETTINGS,
    STEPS,
    consumed_rows,
    corpus_ids,
    run_config,
    steps_of,
    write_data,
)


@pytest.fixture(scope="module", autouse=True)
def local_cluster() -> Iterator[None]:
    with cluster(load_config(None, SETTINGS)):
        yield


@pytest.fixture(scope="module")
def finished_run(cold_start_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch on two ranks and two vLLM actors, with a dev set."""
    run = tmp_path_factory.mktemp("finished_run")
    write_data(run)
    assert reinforce.run(run_config(run, cold_start_model)) == {"rows": ROWS}
    return run


def test_every_query_is_trained_once(finished_run: Path) -> None:
    assert consumed_rows(finished_run) == corpus_ids(finished_run)


def test_logs_of_a_run(finished_run: Path) -> None:
    steps = steps_of(finished_run)
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    required = {"reward_format", "reward_length", "reward_accuracy", "rank_p10", "rank_p50", "rank_p90", "format_rate"}
    required |= {"reasoning_length", "entropy", "policy", "info_nce", "grad_norm", "lr", "varied_groups", "candidates"}
    required |= {"rollout_s", "reward_s", "train_s", "sync_s", "samples_per_s", "actor_restarts"}
    for step in steps:
        assert required <= step.keys()
        assert abs(step["mismatch_kl"]) < 1e-6  # the sampler is the policy of this step: every sync worked
        assert (step["clip_fraction"], step["staleness"]) == (0, 0)
        assert step["rank_p10"] <= step["rank_p50"] <= step["rank_p90"] <= step["candidates"]
        parts = 0.5 * step["reward_format"] + 0.2 * step["reward_length"] + step["reward_accuracy"]
        assert step["reward"] == pytest.approx(parts, abs=1e-5)
    assert max(step["format_rate"] for step in steps) > 0.3
    assert max(step["varied_groups"] for step in steps) > 0
    assert [line["step"] for line in read_log(finished_run, "reinforce") if "dev_hit_rate" in line] == [0, 2, 4, 5]


def test_samples_are_logged_for_people_to_read(finished_run: Path) -> None:
    samples = [sample for rank in (0, 1) for sample in read_log(finished_run, f"reinforce.rollouts-{rank}")]
    assert len(samples) == 2 * STEPS * 2 * 4  # ranks × steps × groups × G
    for sample in samples:
        assert sample["query"].startswith("something")
        assert {"reasoning", "reward", "format", "length", "accuracy", "rank", "item_id"} <= sample.keys()
        assert sample["version"] == sample["step"] - 1
    assert any(sample["format"] == 1 and sample["reasoning"] for sample in samples)


def test_the_best_checkpoint_becomes_the_model(finished_run: Path, cold_start_model: Path) -> None:
    log = read_log(finished_run, "reinforce")
    hit_rates = {line["step"]: line["dev_hit_rate"] for line in log if "dev_hit_rate" in line}
    record = json.loads((finished_run / "model" / RECORD).read_text())
    assert record["objective"] == "reinforce"
    assert record["dev"]["hit_rate"] == max(hit_rates.values()) == hit_rates[record["steps"]]
    assert record["weight_syncs"] == record["steps"] + 1  # the first gives the pool the cold start
    template = ReasoningEmbedder.load(cold_start_model).template
    assert ReasoningEmbedder.load(finished_run / "model").template == template
    assert record["steps"] == 0 or fingerprint(finished_run / "model") != fingerprint(cold_start_model)
    assert not list((finished_run / "checkpoints/reinforce").glob(f"*/{STATE}"))
    with pytest.raises(DataError, match="checkpoints/reinforce .*--resume"):
        reinforce.run(run_config(finished_run, cold_start_model), resume=True)


@pytest.mark.slow
def test_rollouts_one_step_behind(cold_start_model: Path, tmp_path: Path) -> None:
    """Rollouts sampled during the step before: one version old, corrected, and every query still trained once.

    Items are ranked among the batch's own and the nearest of the catalogue; one reward is the user's.
    """
    write_data(tmp_path)
    settings = ["reinforce.staleness=1", "reinforce.correction=token", "reinforce.kl_weight=0.01"]
    settings += ["reinforce.extra_candidates=0", "reinforce.hard_candidates=3", "reinforce.refresh=2"]
    settings += [f"reinforce.rewards.own={{{BREVITY}: 0.1}}"]
    reinforce.run(run_config(tmp_path, cold_start_model, *settings))
    steps = steps_of(tmp_path)
    assert [step["staleness"] for step in steps] == [0, 1, 1, 1, 1]
    assert steps[0]["mismatch_kl"] < 1e-6 < max(step["mismatch_kl"] for step in steps)
    assert steps[0]["kl"] < 1e-6 < steps[-1]["kl"]
    assert 0 < steps[-1][f"reward_{BREVITY}"] <= 1
    assert all(2 * BATCH < step["candidates"] <= len(ITEMS) for step in steps)  # the batch alone has at most 2 · BATCH
    assert consumed_rows(tmp_path) == corpus_ids(tmp_path)


BREVITY = "tests.ray.training.test_reinforce:brevity"


def brevity(outcome: RolloutOutcome) -> torch.Tensor:
    """Return a user's own reward."""
    return 1 / (1 + outcome.lengths.float())


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        (["reinforce.rewards.own={no.such:reward: 1.0}"], "'no.such:reward'"),
        (["reinforce.batch_size=1", "reinforce.workers=1", "reinforce.extra_candidates=0"], "reinforce.batch_size"),
        (["reinforce.workers=38"], "37 RL pairs for 38 workers"),
        (["paths.cold_start={run}/nothing"], "nothing .*safetensors"),
        (["paths.rl_pairs={run}/strange.parquet"], "strange.parquet: query 'q', item 'gone'.*items.parquet"),
        (["paths.rl_pairs={run}/blank.parquet"], "blank.parquet: query 'q', item 'p1': .*empty"),
    ],
)
def test_bad_input_is_refused(cold_start_model: Path, tmp_path: Path, settings: list[str], fact: str) -> None:
    write_data(tmp_path)
    for name, row in {
        "strange": {"query": "a", "item_id": "gone"},
        "blank": {"query": " ", "item_id": "p1"},
    }.items():
        table = pa.Table.from_pylist([{"query_id": "q", "title": "b"} | row] * 3, RL_PAIRS)
        write_parquet(table, tmp_path / f"{name}.parquet")
    config = run_config(tmp_path, cold_start_model, *(setting.replace("{run}", str(tmp_path)) for setting in settings))
    with pytest.raises((DataError, FileNotFoundError), match=fact):
        reinforce.run(config)
    assert not config.path("model").exists()


class Corrupting(TransformersEngine):
    """A real engine that loads version 2 wrongly: one tensor is not what was sent."""

    def load(self, weights: Any) -> None:
        super().load(weights)
        if self.version == 1:  # the version before
            with torch.no_grad():
                self.model.lm.model.layers[0].mlp.up_proj.weight *= 3


@pytest.mark.slow
def test_an_engine_that_samples_another_policy_ends_the_run(cold_start_model: Path, tmp_path: Path) -> None:
    write_data(tmp_path)
    engine = f"rollout.engine={__name__}:Corrupting"
    with pytest.raises(TrainingFailed, match="rollout actor .*version 2"):
        reinforce.run(run_config(tmp_path, cold_start_model, engine, "reinforce.restarts=0"))
    assert len(steps_of(tmp_path)) == 1
    assert not (tmp_path / "model").exists()
