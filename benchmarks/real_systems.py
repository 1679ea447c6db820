"""The systems of the experiment on real shops: their rankings, kept on disk, and the scores that come of them."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from real_data import ShopTest
from reproduce_task import exact_search

from lrem.config import EvaluateConfig
from lrem.curation.rules import expand_query
from lrem.data.files import write_json
from lrem.data.vectors import group_means
from lrem.evaluation.fusion import rrf
from lrem.evaluation.metrics import DEPTH, Run, summarise
from lrem.evaluation.overrides import override, vocabulary
from lrem.evaluation.run_scorer import RunScorer
from lrem.modeling.model import RECORD, ReasoningEmbedder, fingerprint
from lrem.modeling.thinking import best_think_below, needs_thinking
from lrem.retrieval.bm25 import Bm25
from lrem.training.thoughts import write_thoughts

SAMPLES = 4  # thoughts whose embeddings `mean` averages, beside the greedy and the empty one
MEASURES = ("nDCG@10", "R@100", "hit_rate", "AP")
Search = Callable[[], list[list[tuple[str, float]]]]


class ShopSystems:
    """All systems on one shop's queries. A ranking is kept in `folder` under a hash of all that it depends on."""

    def __init__(self, test: ShopTest, folder: Path, seed: int) -> None:
        self.test, self.folder, self.seed = test, folder, seed
        self.texts = list(test.queries.values())
        self.runs: dict[str, Run] = {}
        self.scorer = self._scorer(MEASURES[0])
        self.thinks: dict[str, float] = {}  # system → share of queries that it thinks over

    def add_lexical(self) -> None:
        """Run BM25 over words, and over stems."""
        for name, stems in (("bm25", False), ("stems", True)):
            self._add(name, lambda stems=stems: self._bm25(stems).search(self.texts, DEPTH), self.texts)

    def add_sentence_transformer(self, name: str, folder: Path) -> None:
        """Run a sentence-transformers model."""

        def search() -> list[list[tuple[str, float]]]:
            from sentence_transformers import SentenceTransformer

            model = SentenceTransformer(str(folder))
            items, queries = (model.encode(x, normalize_embeddings=True) for x in (self.test.titles, self.texts))
            return exact_search(self.test.item_ids, items, queries, DEPTH)

        self._add(name, search, [fingerprint(folder), *self.texts])

    def add_direct(self, name: str, folder: Path) -> None:
        """Run a model that was trained without reasoning."""
        self._add_model(name, folder, [[None]] * len(self.texts))

    def tune_routing(self, name: str, folder: Path) -> float:
        """Return the `think_below` with the best nDCG@10 of a model that reasons, on these queries."""
        thoughts = self._thoughts(folder)
        never, always = f"{name}_never", f"{name}_always"
        self._add_model(never, folder, [[""]] * len(self.texts))
        self._add_model(always, folder, [[text] for text in thoughts["always"]])
        gains = self.scorer.differences(always, never, self.test.queries)
        return best_think_below(thoughts["empty_probabilities"], gains)

    def add_thinking(self, name: str, folder: Path, think_below: float, probes: bool) -> None:
        """Run a model that reasons: auto (under its plain name), never, always, mean, and oracle.

        mean: the mean embedding over the empty, the greedy and SAMPLES sampled thoughts. oracle: a strong teacher's
        thoughts; where it wrote none, the model's own.

        Args:
            think_below: auto reasons only if an empty thought is less probable than this.
            probes: also the overrides, and its words behind the query for BM25.
        """
        thoughts = self._thoughts(folder)
        always = thoughts["always"]
        thinks = [needs_thinking(p, think_below) for p in thoughts["empty_probabilities"]]
        auto = [text if think else "" for text, think in zip(always, thinks, strict=True)]
        oracle = [self.test.oracle.get(q, own) for q, own in zip(self.test.queries, always, strict=True)]
        variants: dict[str, list[list[str | None]]] = {
            name: [[text] for text in auto],
            f"{name}_never": [[""]] * len(always),
            f"{name}_always": [[text] for text in always],
            f"{name}_mean": [["", text, *more] for text, more in zip(always, self._samples(folder), strict=True)],
            "oracle" if probes else f"{name}_oracle": [[text] for text in oracle],
        }
        self.thinks[name] = float(np.mean(thinks))
        if probes:
            titles = vocabulary(self.test.titles)
            for kind in ("query", "random"):
                replaced = override(kind, self.texts, always, titles, self.seed)
                variants[f"override_{kind}"] = [[text] for text in replaced]
            for source, words in (("thoughts", always), ("oracle", oracle)):
                expanded = list(map(expand_query, self.texts, words))
                search = partial(self._bm25(stems=True).search, expanded, DEPTH)
                self._add(f"stems_with_{source}", search, expanded)
        for variant, reasonings in variants.items():
            self._add_model(variant, folder, reasonings)

    def add_fusion(self, name: str, *parts: str) -> None:
        """Fuse systems by reciprocal rank."""
        self._score(name, rrf([self.runs[part] for part in parts], DEPTH))

    def report(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return system → slice → measure → mean."""
        means = {name: summarise(scores, self.test.slices) for name, scores in self.scorer.scores.items()}
        return {
            name: {slice_name: {m: round(values[m], 4) for m in MEASURES} for slice_name, values in by_slice.items()}
            for name, by_slice in means.items()
        }

    def comparisons(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """Compare pairs of systems on nDCG@10 and on recall, paired by query, in every slice of some size."""
        rows = []
        for measure in MEASURES[:2]:
            scorer = self._scorer(measure)
            scorer.scores = self.scorer.scores
            rows += [row | {"data": self.test.name} for row in scorer.compare(pairs)]
        return [{key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()} for row in rows]

    def _scorer(self, primary: str) -> RunScorer:
        config = EvaluateConfig(primary=primary, relevant_from=self.test.relevant_from)
        scorer = RunScorer({}, self.test.qrels, config, self.seed)
        scorer.slices = self.test.slices
        return scorer

    def _bm25(self, stems: bool) -> Bm25:
        return Bm25(self.test.item_ids, self.test.titles, stems)

    def _add_model(self, name: str, folder: Path, thoughts: Sequence[Sequence[str | None]]) -> None:
        """Run a model with these thoughts of each query."""
        self._add(name, lambda: self._search(folder, thoughts), [fingerprint(folder), self.texts, thoughts])

    def _add(self, name: str, search: Search, inputs: Any) -> None:
        """Run a system, unless there is a ranking of the same catalogue from the same inputs."""
        file = f"{name}-{_digest([self.test.item_ids, inputs])}.json"
        self._score(name, self._kept(file, lambda: dict(zip(self.test.queries, search(), strict=True))))

    def _score(self, name: str, run: Run) -> None:
        self.runs[name] = run
        self.scorer.score(name, run)

    def _search(self, folder: Path, thoughts: Sequence[Sequence[str | None]]) -> list[list[tuple[str, float]]]:
        """Return each query's best items by the mean embedding, [Q, H] float32, over its thoughts."""
        model = _load(folder)
        texts = [text for text, several in zip(self.texts, thoughts, strict=True) for _ in several]
        queries = model.encode_queries(texts, [thought for several in thoughts for thought in several])
        means = group_means(queries, [len(several) for several in thoughts])
        return exact_search(self.test.item_ids, self._items(folder, model), means, DEPTH)

    def _items(self, folder: Path, model: ReasoningEmbedder) -> np.ndarray:
        file = self.folder / f"items-{_digest([fingerprint(folder), self.test.item_ids])}.npy"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            np.save(file, model.encode_items(self.test.titles))
        return np.asarray(np.load(file))

    def _thoughts(self, folder: Path) -> Mapping[str, Any]:
        """Return a model's greedy thought on every query (`always`), and the probability of none."""

        def write() -> dict[str, Any]:
            model = _load(folder)
            probabilities = model.empty_reasoning_probabilities(self.texts)
            return {"always": model.reason(self.texts), "empty_probabilities": probabilities}

        return dict(self._kept(f"thoughts-{_digest([fingerprint(folder), self.texts])}.json", write))

    def _samples(self, folder: Path) -> list[list[str]]:
        """Return SAMPLES sampled thoughts on every query."""

        def write() -> list[list[str]]:
            model = _load(folder)
            prompts = [model.renderer.thinking_prompt(text) for text in self.texts for _ in range(SAMPLES)]
            sampled = write_thoughts(model, prompts, self.seed)
            return [sampled[i : i + SAMPLES] for i in range(0, len(sampled), SAMPLES)]

        return list(self._kept(f"samples-{_digest([fingerprint(folder), self.texts, self.seed, SAMPLES])}.json", write))

    def _kept(self, name: str, write: Callable[[], Any]) -> Any:
        """Return a JSON value from `folder`, where it is written first if it is not there."""
        file = self.folder / name
        if not file.exists():
            write_json(write(), file)
        return json.loads(file.read_text(encoding="utf-8"))


def _load(folder: Path) -> ReasoningEmbedder:
    """Load a model; it computes in bfloat16 if its training did."""
    model = ReasoningEmbedder.load(folder).eval()
    model.autocast = json.loads((folder / RECORD).read_text(encoding="utf-8"))["autocast"]
    return model


def _digest(inputs: Any) -> str:
    """Return a short hash of JSON values."""
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:12]
