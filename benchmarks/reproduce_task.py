"""One task of the reproduction: a seed's data, the systems trained on it, and their scores per query, in one folder."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
from seed_statistics import Means, QueryScores, group_means
from shared_reasoner import SharedReasoner

from lrem.config import Config, load_config
from lrem.data.files import write_json
from lrem.data.schema import read_items
from lrem.evaluation.metrics import Qrels, Run, per_query
from lrem.evaluation.overrides import OVERRIDES, override, vocabulary
from lrem.modeling.model import RECORD, ReasoningEmbedder
from lrem.modeling.template import COMPACT
from lrem.retrieval.bm25 import Bm25
from ray_apps.evaluation.inputs import Queries, test_set
from ray_apps.pipeline import run_stage
from ray_apps.training.checkpoints import Checkpoints

SHARED_FILES = ("items", "queries", "qrels", "teacher", "triplets", "rl_pairs")
ORACLE = "perfect"  # key, beside the overrides, of the reasoning by a teacher who knows every fact

Ranking = list[tuple[str, float]]  # (item_id, score), best first


class ReproductionTask:
    """A task's folder. Data, trained models and scores that are already there are not created again."""

    def __init__(self, folder: Path, config_file: Path, seed: int) -> None:
        self.folder, self.config_file, self.seed = folder, config_file, seed
        self.base = self.config("world")
        self.reasoner = SharedReasoner(self.base)
        self.scores: dict[str, dict[str, QueryScores]] = self._read_json("scores.json")  # system → mode → scores
        self.trainings: dict[str, dict[str, float]] = self._read_json("trainings.json")

    def _read_json(self, name: str) -> dict[str, Any]:
        file = self.folder / name
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def config(self, name: str, overrides: Iterable[str] = (), cold_start: Path | None = None) -> Config:
        """Return a system's configuration: a run_dir of its own, and the data that all systems share."""
        shared = [f"paths.{key}={self.folder / 'data' / key}.parquet" for key in SHARED_FILES]
        model = [f"paths.cold_start={cold_start}"] if cold_start else []
        settings = [f"seed={self.seed}", f"run_dir={self.folder / name}", *shared, *model, *overrides]
        return load_config(self.config_file, settings)

    @cached_property
    def test(self) -> tuple[Queries, Qrels]:
        """The test queries and their judgements."""
        test = test_set(self.base)
        return test.queries, test.qrels

    @property
    def budget(self) -> int:
        """Tokens of reasoning that the configuration allows."""
        return self.base.model.budget or COMPACT.budget

    @property
    def oracle_file(self) -> Path:
        """The last file that the stage `world` writes."""
        return self.base.path("items").with_name("gold.parquet")

    @cached_property
    def oracle(self) -> dict[str, str]:
        """query_id → oracle reasoning, which shows how much better reasoning could gain."""
        rows = pq.read_table(self.oracle_file).to_pylist()
        return {row["query_id"]: row["reasoning"] for row in rows}

    def create_data(self) -> None:
        """Create products and queries, and curate them."""
        for stage, last_file in (("world", self.oracle_file), ("curate", self.base.path("rl_pairs"))):
            if not last_file.exists():
                run_stage(stage, self.base)

    def train(self, name: str, stage: str, config: Config) -> Path:
        """Run a training stage unless its model exists, record its duration without start-up; returns the folder."""
        key = stage.replace("-", "_")
        folder = config.path("model" if key == "reinforce" else key)
        if not folder.exists():
            checkpoint = Checkpoints(config.run_dir / "checkpoints" / key, keep=1).newest()
            run_stage(stage, config, resume=checkpoint is not None)
        record, settings = json.loads((folder / RECORD).read_text(encoding="utf-8")), getattr(config, key)
        visits = record["steps"] * settings.batch_size * settings.workers  # of a query with an item
        self.trainings[name] = {"seconds": record["seconds"], "steps": record["steps"], "visits": visits}
        write_json(self.trainings, self.folder / "trainings.json")
        return folder

    def score(self, name: str, folder: Path, reasons: bool = True, with_overrides: bool = False) -> None:
        """Search the catalogue with each test query and score the results, unless that was done before.

        Args:
            reasons: whether the system reasons; then it is scored with greedy and with sampled reasoning.
            with_overrides: whether to score the overrides of the greedy reasoning too.
        """
        if name in self.scores:
            return
        queries, _ = self.test
        items = read_items(self.base.path("items"))
        texts, titles = [row["query"] for row in queries.values()], items["title"].to_pylist()
        modes: dict[str, Any] = {"greedy": [None] * len(texts)}
        if reasons:
            modes = self.reasoner.reason(folder, texts)
            write_json(dict(zip(queries, modes["greedy"], strict=True)), self.folder / name / "reasonings.json")
        if with_overrides:
            modes |= self._overrides(texts, modes["greedy"], titles)
        model = ReasoningEmbedder.load(folder).eval()
        ids, vectors = items["item_id"].to_pylist(), model.encode_items(titles)
        rankings = {
            mode: exact_search(ids, vectors, model.encode_queries(texts, reasonings), self._depth)
            for mode, reasonings in modes.items()
        }
        self._keep(name, {mode: self._scores(dict(zip(queries, hits, strict=True))) for mode, hits in rankings.items()})

    def score_bm25(self) -> None:
        """Score the lexical baseline."""
        queries, _ = self.test
        items = read_items(self.base.path("items"))
        bm25 = Bm25(items["item_id"].to_pylist(), items["title"].to_pylist())
        hits = bm25.search([row["query"] for row in queries.values()], self._depth)
        self._keep("BM25", {"greedy": self._scores(dict(zip(queries, hits, strict=True)))})

    def means(self, name: str, mode: str = "greedy") -> Means:
        """Return the mean scores of a system by group of queries, see `seed_statistics.group_means`."""
        queries, _ = self.test
        return group_means(self.scores[name][mode], queries)

    def _overrides(self, texts: list[str], reasonings: list[str], titles: list[str]) -> dict[str, list[str]]:
        words = vocabulary(titles)
        overrides = {kind: override(kind, texts, reasonings, words, self.seed) for kind in OVERRIDES}
        return overrides | {ORACLE: [self.oracle[query_id] for query_id in self.test[0]]}

    @property
    def _depth(self) -> int:
        return max(self.base.evaluate.k, self.base.evaluate.precision_k)

    def _scores(self, run: Run) -> QueryScores:
        """Return query_id → (HitRate, Precision)."""
        _, qrels = self.test
        scores = per_query(run, qrels, self.base.evaluate.k, self.base.evaluate.precision_k)
        return {query_id: (values["hit_rate"], values["precision"]) for query_id, values in scores.items()}

    def _keep(self, name: str, scores: Mapping[str, QueryScores]) -> None:
        self.scores[name] = dict(scores)
        write_json(self.scores, self.folder / "scores.json")


def exact_search(ids: Sequence[str], vectors: np.ndarray, queries: np.ndarray, k: int) -> list[Ranking]:
    """Return the k best (item_id, cosine) of each query by exact search. vectors: [N, H], queries: [Q, H] float32."""
    scores, rows = faiss.knn(queries, vectors, min(k, len(ids)), metric=faiss.METRIC_INNER_PRODUCT)
    return [
        [(ids[row], float(score)) for row, score in zip(*line, strict=True)] for line in zip(rows, scores, strict=True)
    ]
