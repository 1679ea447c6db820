"""The runs of one evaluation."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import ray
from ray.actor import ActorHandle

from lrem.config import Config
from lrem.evaluation.fusion import rrf
from lrem.evaluation.metrics import Run
from lrem.evaluation.overrides import OVERRIDES, override, vocabulary
from lrem.evaluation.system_run import SystemRun
from ray_apps.evaluation import baselines, reasoning_systems
from ray_apps.evaluation.http_system import service_run
from ray_apps.evaluation.query_set import QuerySet
from ray_apps.evaluation.reasoning_systems import Reasonings

MODES = ("never", "auto", "always")


class EvaluationRun:
    """Runs the systems and LREM's probes, and collects their runs by name."""

    def __init__(self, config: Config, queries: QuerySet, items: pa.Table, oracle: dict[str, str]) -> None:
        self.config, self.queries, self.items = config, queries, items
        self.oracle = oracle  # query_id → oracle reasoning
        self.bm25 = baselines.open_bm25(items, stems=True)
        self.systems: dict[str, SystemRun] = {}  # the systems to compare
        self.overrides: dict[str, SystemRun] = {}
        self.routing: dict[str, SystemRun] = {}
        self.lengths: dict[str, SystemRun] = {}
        self.fusion: dict[str, SystemRun] = {}
        self.reasonings: dict[str, str] = {}  # query_id → LREM's reasoning in mode `always`
        self.reasoning_s: float | None = None  # seconds that these took, if known
        self.empty_probabilities: dict[str, float] = {}  # query_id → probability of no reasoning, if known

    def add_external(self, runs: dict[str, Run]) -> None:
        """Add runs that other programs wrote."""
        self.systems |= {name: SystemRun(run) for name, run in runs.items()}

    def add_baselines(self, sentence_transformers: dict[str, str]) -> None:
        """Run the systems that need no model of ours. sentence_transformers: name → folder."""
        self.systems["bm25"] = baselines.bm25_run(baselines.open_bm25(self.items), self.queries)
        self.systems["bm25_stems"] = baselines.bm25_run(self.bm25, self.queries)
        if self.config.evaluate.llm.model:
            self.systems["prompt"] = baselines.prompt_expansion_run(self.config, self.bm25, self.queries)
        for name, folder in sentence_transformers.items():
            self.systems[name] = baselines.sentence_transformer_run(self.config, name, folder, self.queries)

    def add_model(self, name: str, folder: Path) -> None:
        """Run one of our models; LREM with all of its probes."""
        config, queries = self.config, self.queries
        searcher = reasoning_systems.start_searcher(config, name, folder, queries.depth)
        try:
            if name == "direct":
                self.systems[name] = self._search(searcher, [None] * len(queries.texts))
                return
            samples = max(config.evaluate.fusion, default=0) if name == "lrem" else 0
            reasonings = reasoning_systems.generate_reasonings(config, folder, searcher, queries.texts, samples)
            self.systems[name] = self._search(searcher, reasonings.auto, reasonings.auto_s)
            if name == "lrem":
                self.reasonings = dict(zip(queries.ids, reasonings.always, strict=True))
                self.reasoning_s = reasonings.always_s
                self.empty_probabilities = dict(zip(queries.ids, reasonings.empty_probabilities, strict=True))
                self._override(searcher, reasonings)
                self._vary(searcher, reasonings)
        finally:
            ray.kill(searcher)

    def add_service(self, url: str) -> None:
        """Run a service in each of its modes; `auto` is what the other systems are compared with."""
        for mode in MODES:
            self.routing[mode], self.reasonings = service_run(self.config, url, self.queries, mode)
        self.systems["lrem"] = self.routing["auto"]

    def add_combinations(self) -> None:
        """Combine LREM and BM25: LREM's reasoning as query expansion, and reciprocal rank fusion of the two."""
        if "lrem" not in self.systems:
            return
        keywords = [self.reasonings[query_id] for query_id in self.queries.ids]
        self.systems["rewrite"] = baselines.bm25_run(self.bm25, self.queries, keywords, self.reasoning_s)
        pair = [self.systems[name] for name in ("bm25_stems", "lrem")]
        fused = rrf([system.run for system in pair], self.queries.depth)
        self.systems["rrf"] = SystemRun(fused, sum(system.seconds or 0 for system in pair), pair[1].reasoned)

    def _override(self, searcher: ActorHandle, reasonings: Reasonings) -> None:
        """Run the paper's override of the reasoning, and compare the modes never, auto and always."""
        config, queries, own = self.config, self.queries, reasonings.always
        words = vocabulary(self.items["title"].to_pylist())
        for kind in OVERRIDES:
            replaced = override(kind, queries.texts, own, words, config.seed)
            reasoning_s = reasonings.always_s if kind == "own" else 0.0
            self.overrides[kind] = self._search(searcher, replaced, reasoning_s)
        if self.oracle:
            replaced = [self.oracle.get(query_id, text) for query_id, text in zip(queries.ids, own, strict=True)]
            self.overrides["gold"] = self._search(searcher, replaced)
        self.routing = {
            "never": self.overrides["empty"],
            "auto": self.systems["lrem"],
            "always": self.overrides["own"],
        }

    def _vary(self, searcher: ActorHandle, reasonings: Reasonings) -> None:
        """Vary the length of the reasoning, and the number of sampled reasonings whose embeddings are averaged."""
        for tokens in self.config.evaluate.lengths:
            truncated = reasoning_systems.truncate(self.config, searcher, reasonings.always, tokens)
            self.lengths[str(tokens)] = self._search(searcher, truncated)
        for count in self.config.evaluate.fusion:
            self.fusion[str(count)] = self._search(searcher, [samples[:count] for samples in reasonings.sampled])

    def _search(
        self, searcher: ActorHandle, reasonings: Sequence[str | list[str] | None], reasoning_s: float = 0.0
    ) -> SystemRun:
        return reasoning_systems.model_run(self.config, searcher, self.queries, reasonings, reasoning_s)
