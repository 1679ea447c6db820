"""From runs to the numbers of a report: scores by slice, intervals, paired tests, unjudged shares, a gallery."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lrem.config import EvaluateConfig
from lrem.evaluation.metrics import Qrels, Run, Scores, per_query, slices_of, summarise, unjudged_share
from lrem.evaluation.significance import compare, holm, interval

Queries = Mapping[str, Mapping[str, Any]]  # query_id → its row
TOP = 10  # items shown in the gallery, and cut-off of the unjudged share
MIN_QUERIES = 5  # a smaller slice gets no interval and no test


class RunScorer:
    """Scores each run once, against the same queries and judgements, and keeps the scores by name of the run."""

    def __init__(self, queries: Queries, qrels: Qrels, config: EvaluateConfig, seed: int) -> None:
        self.queries, self.qrels, self.config, self.seed = queries, qrels, config, seed
        self.slices = slices_of(queries)
        self.scores: dict[str, Scores] = {}  # name of the run → scores per query

    def score(self, name: str, run: Run) -> dict[str, dict[str, float]]:
        """Return slice → measure → mean, and keep the scores per query under `name`."""
        config = self.config
        self.scores[name] = per_query(run, self.qrels, config.k, config.precision_k, config.relevant_from)
        return summarise(self.scores[name], self.slices)

    def intervals(self, name: str) -> dict[str, dict[str, list[float]]]:
        """Return slice → primary measure → [low, high], the 95 % interval, for slices of at least `MIN_QUERIES`."""
        primary, scores = self.config.primary, self.scores[name]
        return {
            slice_name: {primary: [round(end, 4) for end in interval([scores[q][primary] for q in ids], self.seed)]}
            for slice_name, ids in self._testable_slices().items()
        }

    def differences(self, a: str, b: str, query_ids: Iterable[str]) -> list[float]:
        """Return run a's primary measure minus run b's, for each query."""
        primary = self.config.primary
        return [self.scores[a][q][primary] - self.scores[b][q][primary] for q in query_ids]

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """Test each pair of runs on the primary measure, paired by query, in each slice of at least `MIN_QUERIES`.

        Holm's correction runs over the pairs within a slice, because each slice asks a question of its own.
        """
        primary, rows = self.config.primary, []
        for a, b in pairs:
            for slice_name, ids in self._testable_slices().items():
                scores_a, scores_b = ({q: self.scores[name][q][primary] for q in ids} for name in (a, b))
                comparison = compare(scores_a, scores_b, self.seed)
                rows.append({"a": a, "b": b, "slice": slice_name, "measure": primary, **comparison._asdict()})
        for slice_name in {row["slice"] for row in rows}:
            family = [row for row in rows if row["slice"] == slice_name]
            for i, p in holm({str(i): row["p"] for i, row in enumerate(family)}).items():
                family[int(i)]["p_holm"] = p
        return rows

    def unjudged(self, run: Run) -> dict[str, float]:
        """Return the share of unjudged items among the top 10, keyed by the cut-off."""
        return {str(TOP): round(unjudged_share(run, self.qrels, TOP), 4)}

    def gallery(
        self,
        without: str,
        with_reasoning: str,
        runs: Mapping[str, Run],
        reasonings: Mapping[str, str],
        titles: Mapping[str, str],
    ) -> list[dict[str, Any]]:
        """Choose the queries to show side by side, and return their items without and with reasoning.

        A third of them gain most from reasoning, a third lose most, and the rest are the first of each category.

        Args:
            without, with_reasoning: names of the two runs. reasonings: query_id → reasoning; queries without one are
                not shown.
        """
        primary, size = self.config.primary, self.config.gallery
        scores, baseline = self.scores[with_reasoning], self.scores[without]
        gain = {q: scores[q][primary] - baseline[q][primary] for q in self.queries if reasonings.get(q)}
        order = sorted(gain, key=lambda q: (-gain[q], q))
        first = {self.queries[q].get("category") or "": q for q in reversed([q for q in self.queries if q in gain])}
        chosen = dict.fromkeys([*order[: size // 3], *order[::-1][: size // 3], *sorted(first.values())])
        return [
            {
                "query_id": q,
                "query": self.queries[q]["query"],
                "category": self.queries[q].get("category") or "",
                "reasoning": reasonings[q],
                "gain": round(gain[q], 4),
                "without": self._top_items(q, runs[without], titles),
                "with": self._top_items(q, runs[with_reasoning], titles),
            }
            for q in list(chosen)[:size]
        ]

    def _top_items(self, query_id: str, run: Run, titles: Mapping[str, str]) -> list[dict[str, Any]]:
        grades = self.qrels[query_id]
        top = [item for item, _ in list(run.get(query_id, ()))[:TOP]]
        return [{"item_id": item, "title": titles.get(item, ""), "grade": grades.get(item)} for item in top]

    def _testable_slices(self) -> dict[str, list[str]]:
        return {name: list(ids) for name, ids in self.slices.items() if len(ids) >= MIN_QUERIES}


def measure_labels(k: int, precision_k: int) -> dict[str, str]:
    """Return measure name → the label to show.

    >>> measure_labels(30, 10)["hit_rate"], measure_labels(30, 10)["RR@10"]
    ('HitRate@30', 'MRR@10')
    """
    return {
        "hit_rate": f"HitRate@{k}",
        "precision": f"Precision@{precision_k}",
        "nDCG@10": "nDCG@10",
        "RR@10": "MRR@10",
        "R@100": "Recall@100",
        "P@100": "Precision@100",
        "AP": "MAP",
        "Success@1": "Success@1",
        "Success@10": "Success@10",
    }
