"""One rollout pool for many models in turn: loading new weights takes a moment, starting engines half a minute."""

from pathlib import Path
from typing import Any

from ray import ObjectRef
from ray.actor import ActorHandle

from lrem.config import Config
from lrem.data.known_positives import identity
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.template import FILE as TEMPLATE
from ray_apps.rollouts.client import await_pool, start_pool, stop_pool
from ray_apps.rollouts.weight_sync import WeightSync


class SharedReasoner:
    """A rollout pool that takes the weights of one model after another.

    It restarts for a model with another tokenizer or template.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.pool: ActorHandle | None = None
        self.text_format = ""  # tokenizer and template that the pool was started with
        self.version = 0

    def reason(self, folder: Path, queries: list[str]) -> dict[str, list[str]]:
        """Return one reasoning per query for each mode: `greedy`, and `sampled` at temperature 1."""
        self._load(folder)
        seeds = [identity(str(self.config.seed), query) % 2**31 for query in queries]
        modes = {"greedy": (0.0, None), "sampled": (1.0, seeds)}
        return {
            mode: list(self._await(self.pool.reason.remote(queries, *sampling), "reasonings"))
            for mode, sampling in modes.items()
        }

    def stop(self) -> None:
        """Stop the pool, if it runs."""
        if self.pool is not None:
            stop_pool(self.pool)
            self.pool, self.text_format = None, ""

    def _load(self, folder: Path) -> None:
        """Send a model's weights to the engines, and check that they compute what the model computes."""
        text_format = "".join((folder / name).read_text(encoding="utf-8") for name in ("tokenizer.json", TEMPLATE))
        if text_format != self.text_format:
            self.stop()
            self.pool, self.text_format, self.version = start_pool(folder, self.config), text_format, 0
        model = ReasoningEmbedder.load(folder).eval().requires_grad_(False)
        temperature = self.config.rollout.temperature
        sync = WeightSync(self.pool, self.config, model.renderer, lambda batch: model(batch, temperature).log_probs)
        self.version += 1
        sync.push(model.lm.state_dict(), self.version)

    def _await(self, reference: ObjectRef, what: str) -> Any:
        return await_pool(self.pool, reference, self.config, what)
