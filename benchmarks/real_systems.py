"""The systems of the experiment on real shops: their rankings, kept on disk, and the scores that come of them."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from real_data import ShopTest
from reproduce_task import exact_search

from lrem.curation.rules import expand_query
from lrem.data.files import write_json
from lrem.data.vectors import group_means
from lrem.evaluation.fusion import rrf
from lrem.evaluation.metrics import DEPTH, Run, per_query
from lrem.evaluation.overrides import override, vocabulary
from lrem.evaluation.run_scorer import MIN_QUERIES
from lrem.evaluation.significance import compare
from lrem.modeling.model import ReasoningEmbedder, fingerprint
from lrem.modeling.thinking import generate_reasonings, needs_thinking
from lrem.retrieval.bm25 import Bm25

SAMPLES = 4  # thoughts whose embeddings `mean` averages
BATCH = 32
MEASURES = ("nDCG@10", "R@100", "hit_rate", "AP")


class ShopSystems:
    """All systems on one shop's queries. A system that has been run is read from `folder`, not run again."""

    def __init__(self, test: ShopTest, folder: Path, seed: int, think_below: float) -> None:
        self.test, self.folder, self.seed, self.think_below = test, folder, seed, think_below
        self.texts = list(test.queries.values())
        self.runs: dict[str, Run] = {}
        self.scores: dict[str, dict[str, dict[str, float]]] = {}  # system → query_id → measure → value
        self.thinks: dict[str, float] = {}  # system → share of queries that it thinks over

    def add_lexical(self) -> None:
        """Run BM25 over words, and over stems."""
        for name, stems in (("bm25", False), ("stems", True)):
            self._add(name, lambda stems=stems: self._bm25(stems).search(self.texts, DEPTH))

    def add_sentence_transformer(self, name: str, folder: Path) -> None:
        """Run a sentence-transformers model."""

        def search() -> list[list[tuple[str, float]]]:
            from sentence_transformers import SentenceTransformer

            model = SentenceTransformer(str(folder))
            items, queries = (model.encode(x, normalize_embeddings=True) for x in (self.test.titles, self.texts))
            return exact_search(self.test.item_ids, items, queries, DEPTH)

        self._add(name, search)

    def add_direct(self, name: str, folder: Path) -> None:
        """Run a model that was trained without reasoning."""
        self._add(name, lambda: self._search(folder, [[None]] * len(self.texts)), folder)

    def add_thinking(self, name: str, folder: Path, probes: bool) -> None:
        """Run a model that reasons: never, auto (under its plain name), always, and with the oracle's thoughts.

        Where the oracle wrote none, its own takes the place.

        Args:
            probes: also the mean of several thoughts, the overrides, and its words behind the query for BM25.
        """
        thoughts = self._thoughts(folder)
        always = thoughts["always"]
        thinks = [needs_thinking(p, self.think_below) for p in thoughts["empty_probabilities"]]
        auto = [text if think else "" for text, think in zip(always, thinks, strict=True)]
        oracle = [self.test.oracle.get(q, own) for q, own in zip(self.test.queries, always, strict=True)]
        variants: dict[str, list[list[str]]] = {
            name: [[text] for text in auto],
            f"{name}_never": [[""]] * len(always),
            f"{name}_always": [[text] for text in always],
            "oracle" if probes else f"{name}_oracle": [[text] for text in oracle],
        }
        self.thinks[name] = float(np.mean(thinks))
        if probes:
            titles = vocabulary(self.test.titles)
            variants[f"{name}_mean"] = [
                ["", text, *more] for text, more in zip(always, thoughts["samples"], strict=True)
            ]
            for kind in ("query", "random"):
                replaced = override(kind, self.texts, always, titles, self.seed)
                variants[f"override_{kind}"] = [[text] for text in replaced]
            self._add("stems_with_thoughts", lambda: self._bm25(True).search(self._with(always), DEPTH), folder)
            self._add("stems_with_oracle", lambda: self._bm25(True).search(self._with(oracle), DEPTH), folder)
        for variant, reasonings in variants.items():
            self._add(variant, lambda reasonings=reasonings: self._search(folder, reasonings), folder)

    def add_fusion(self, name: str, *parts: str) -> None:
        """Fuse systems by reciprocal rank."""
        self.runs[name] = rrf([self.runs[part] for part in parts], DEPTH)
        self._score(name)

    def report(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return system → slice → measure → mean."""
        return {
            name: {
                slice_name: {m: round(float(np.mean([scores[q][m] for q in ids])), 4) for m in MEASURES}
                for slice_name, ids in self.test.slices.items()
            }
            for name, scores in self.scores.items()
        }

    def comparisons(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """Compare pairs of systems on nDCG@10 and recall, paired by query, in every slice of some size."""
        rows = []
        for a, b in pairs:
            for slice_name, ids in self.test.slices.items():
                if len(ids) < MIN_QUERIES:
                    continue
                for measure in MEASURES[:2]:
                    one, other = ({q: self.scores[name][q][measure] for q in ids} for name in (a, b))
                    result = compare(one, other, self.seed)._asdict()
                    where = {"a": a, "b": b, "data": self.test.name, "slice": slice_name, "measure": measure}
                    rows.append(where | {key: round(value, 4) for key, value in result.items()})
        return rows

    def _bm25(self, stems: bool) -> Bm25:
        return Bm25(self.test.item_ids, self.test.titles, stems)

    def _with(self, thoughts: Sequence[str]) -> list[str]:
        return list(map(expand_query, self.texts, thoughts))

    def _add(self, name: str, search: Callable[[], list[list[tuple[str, float]]]], model: Path | None = None) -> None:
        file = self.folder / f"{name}{f'-{fingerprint(model)}' if model else ''}.json"
        if not file.exists():
            write_json(dict(zip(self.test.queries, search(), strict=True)), file)
        self.runs[name] = json.loads(file.read_text(encoding="utf-8"))
        self._score(name)

    def _score(self, name: str) -> None:
        self.scores[name] = per_query(self.runs[name], self.test.qrels, 30, 10, self.test.relevant_from)

    def _search(self, folder: Path, thoughts: Sequence[Sequence[str | None]]) -> list[list[tuple[str, float]]]:
        """Search with the mean embedding over each query's thoughts."""
        model = ReasoningEmbedder.load(folder).eval()
        texts = [text for text, several in zip(self.texts, thoughts, strict=True) for _ in several]
        queries = model.encode_queries(texts, [thought for several in thoughts for thought in several])
        means = group_means(queries, [len(several) for several in thoughts])
        return exact_search(self.test.item_ids, self._items(folder, model), means, DEPTH)

    def _items(self, folder: Path, model: ReasoningEmbedder) -> np.ndarray:
        file = self.folder / f"items-{fingerprint(folder)}.npy"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            np.save(file, model.encode_items(self.test.titles))
        return np.asarray(np.load(file))

    def _thoughts(self, folder: Path) -> Mapping[str, Any]:
        """Return a model's greedy thought on every query, SAMPLES sampled ones, and the probability of none."""
        file = self.folder / f"thoughts-{fingerprint(folder)}.json"
        if not file.exists():
            model = ReasoningEmbedder.load(folder).eval()
            prompts = [model.renderer.thinking_prompt(text) for text in self.texts for _ in range(SAMPLES)]
            sampled: list[str] = []
            for start in range(0, len(prompts), BATCH):
                part = prompts[start : start + BATCH]
                sampled += generate_reasonings(model.lm, model.renderer, part, self.seed + start)
            thoughts = {
                "always": model.reason(self.texts),
                "samples": [sampled[i : i + SAMPLES] for i in range(0, len(sampled), SAMPLES)],
                "empty_probabilities": model.empty_reasoning_probabilities(self.texts),
            }
            write_json(thoughts, file)
        return dict(json.loads(file.read_text(encoding="utf-8")))
