"""The dashboard shows every value that the trainers log, and nothing that they do not log."""

import ast
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from lrem.config import ColdStartConfig, ModelConfig
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.tokenizer import train_tokenizer
from lrem.training.cold_start_step import accumulate_gradients as cold_start
from lrem.training.gradient_observer import GradNormObserver
from lrem.training.grpo_step import accumulate_gradients as reinforce
from lrem.training.rewards import BUILT_IN
from ray_apps.training.dev_set import METRICS
from tests.deploy.dashboard import PANELS, ROOT, selectors
from tests.unit.training.cold_start_batch import make_batch
from tests.unit.training.grpo_batch import TEMPERATURE, TITLES, make_candidates, make_grpo_batch, make_settings

NOT_SHOWN = {"epoch", "actor_restarts", "samples_per_s", "reward_s"}  # other metrics show them, or they are in train_s


@pytest.fixture(scope="module")
def logged() -> set[str]:
    """The names of all values that the trainers log.

    A real step of each stage on a tiny model gives most of them. The others need DeepSpeed and engines, so their names
    are read from the trainers' sources.
    """
    tokenizer = train_tokenizer([f" {title}" for title in TITLES], 300)
    shape = ModelConfig(hidden_size=32, intermediate_size=48, layers=1, heads=2, kv_heads=2)
    model, cpu = ReasoningEmbedder.from_config(shape, tokenizer, seed=0), torch.device("cpu")
    observer, rows = GradNormObserver(), make_batch(model, without_thought=True)
    names = {*cold_start(rows, ColdStartConfig(), model, lambda loss, _: loss.backward(), cpu, observer)}
    names |= {*observer.norms(cpu)}
    rl = make_settings("kl", rewards=dict.fromkeys(BUILT_IN, 1.0))
    forward: Callable[..., Any] = lambda sequences: model(sequences, TEMPERATURE)  # noqa: E731
    batch = make_grpo_batch(model, [0, 1, 2])
    step = reinforce(batch, rl, 9, 12, forward, lambda loss, _: loss.backward(), cpu, make_candidates(model), forward)
    trainers = added("ColdStartTrainer", "step", "_speed") | added("ReinforceTrainer", "step", "update")
    return names | {*step.values} | trainers | dev_values()


def methods(owner: str, *names: str) -> Iterator[ast.AST]:
    """Yield the nodes of methods of a class, or of functions of a module, in ray_apps/training."""
    for path in sorted(ROOT.glob("ray_apps/training/*.py")):
        tree = ast.parse(path.read_text())
        scopes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner]
        for scope in [tree] if path.stem == owner else scopes:
            for function in scope.body:
                if isinstance(function, ast.FunctionDef) and function.name in names:
                    yield from ast.walk(function)


def texts(nodes: list[ast.expr | None]) -> set[str]:
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def added(trainer: str, *names: str) -> set[str]:
    """Return the keys of dicts, the keys that are assigned to, and the names of phases, which are in tuples."""
    keys: set[str] = set()
    for node in methods(trainer, *names):
        if isinstance(node, ast.Dict):
            keys |= texts(node.keys)
        if isinstance(node, ast.Assign):
            keys |= texts([target.slice for target in node.targets if isinstance(target, ast.Subscript)])
        if isinstance(node, ast.Tuple):
            keys |= texts([*node.elts])
    assert keys, f"{trainer} has no {names}"
    return keys


def dev_values() -> set[str]:
    """Return the names of the measures on the dev set, with the model's own thoughts and with empty ones."""
    return {f"dev_{name}{suffix}" for name in METRICS.values() for suffix in ("", "_empty")}


def test_panels_name_what_the_trainers_log(logged: set[str]) -> None:
    shown: dict[str, set[str]] = {}
    for panel in PANELS:
        for selector in (use for t in panel["targets"] for use in selectors(t["expr"]) if use.metric == "training"):
            asked = [(operator, value) for label, operator, value in selector.matchers if label == "name"]
            found = {name for name in logged if all(bool(re.fullmatch(v, name)) != ("!" in o) for o, v in asked)}
            plain = {name for o, v in asked if "!" not in o and re.fullmatch(r"[\w|]+", v) for name in v.split("|")}
            assert plain <= logged, f"{panel['title']}: nothing logs {plain - logged}"
            assert found, (panel["title"], asked)
            shown.setdefault(panel["title"], set()).update(found)
    assert shown["Reward and its parts"] == {"reward", *(f"reward_{name}" for name in BUILT_IN)}
    assert logged - set().union(*shown.values()) == NOT_SHOWN, "put them on a panel, or into NOT_SHOWN"
