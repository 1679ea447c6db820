"""From runs to a report: scores by slice, intervals, paired tests, unjudged shares, a gallery. Pure.

Knows runs, judgements and queries; does not know how a run came about, nor how a report is drawn.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lrem.config import EvaluateConfig
from lrem.evaluation.metrics import Qrels, Run, Scores, per_query, slices_of, summarise, unjudged
from lrem.evaluation.significance import compare, holm, interval

Queries = Mapping[str, Mapping[str, Any]]  # query_id → its row
TOP = 10  # items of the gallery, and of the unjudged share
LEAST = 5  # queries that a slice needs for an interval or a test


class Outcome(NamedTuple):
    """What a system found, the seconds that all queries took together, and the share of queries it thought over.

    Seconds are None where they would not tell what a query costs.
    """

    run: Run
    seconds: float | None = None
    thinks: float | None = None

    def cost(self) -> dict[str, float]:
        """Milliseconds of one query, all of them asked at once, and the share that was thought over; what is known."""
        spent = {} if self.seconds is None else {"ms_per_query": round(1000 * self.seconds / max(1, len(self.run)), 2)}
        return spent if self.thinks is None else spent | {"thinks": self.thinks}


class Assembly:
    """Scores every run once, against the same queries and judgements."""

    def __init__(self, queries: Queries, qrels: Qrels, config: EvaluateConfig, seed: int) -> None:
        self.queries, self.qrels, self.config, self.seed = queries, qrels, config, seed
        self.slices = slices_of(queries)
        self.scored: dict[str, Scores] = {}

    def score(self, name: str, run: Run) -> dict[str, dict[str, float]]:
        """Slice → measure → mean; the values of each query are kept under `name`."""
        config = self.config
        self.scored[name] = per_query(run, self.qrels, config.k, config.precision_k, config.relevant_from)
        return summarise(self.scored[name], self.slices)

    def intervals(self, name: str) -> dict[str, dict[str, list[float]]]:
        """Slice → the primary measure → [low, high], 95 %, of slices that are not tiny."""
        primary, scores = self.config.primary, self.scored[name]
        return {
            place: {primary: [round(end, 4) for end in interval([scores[q][primary] for q in ids], self.seed)]}
            for place, ids in self._tested().items()
        }

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """Paired tests of the primary measure for each pair of systems and slice.

        Holm's correction is over the pairs of a slice: each slice is a question of its own.
        """
        primary, rows = self.config.primary, []
        for a, b in pairs:
            for place, ids in self._tested().items():
                ours, theirs = ({q: self.scored[name][q][primary] for q in ids} for name in (a, b))
                found = compare(ours, theirs, self.seed)
                rows.append({"a": a, "b": b, "slice": place, "measure": primary, **found._asdict()})
        for place in {row["slice"] for row in rows}:
            family = [row for row in rows if row["slice"] == place]
            for i, p in holm({str(i): row["p"] for i, row in enumerate(family)}).items():
                family[int(i)]["p_holm"] = p
        return rows

    def unjudged(self, run: Run) -> dict[str, float]:
        """The share of the top 10 that nobody has judged."""
        return {str(TOP): round(unjudged(run, self.qrels, TOP), 4)}

    def gallery(
        self,
        without: str,
        with_it: str,
        runs: Mapping[str, Run],
        thoughts: Mapping[str, str],
        titles: Mapping[str, str],
    ) -> list[dict[str, Any]]:
        """Queries with a thought: a third where it gains most, a third where it loses most, then firsts of categories.

        Args:
            without, with_it: names of the two runs. thoughts: query_id → reasoning.
        """
        primary, size = self.config.primary, self.config.gallery
        ours, theirs = self.scored[with_it], self.scored[without]
        gain = {q: ours[q][primary] - theirs[q][primary] for q in self.queries if thoughts.get(q)}
        order = sorted(gain, key=lambda q: (-gain[q], q))
        first = {self.queries[q].get("category") or "": q for q in reversed([q for q in self.queries if q in gain])}
        chosen = dict.fromkeys([*order[: size // 3], *order[::-1][: size // 3], *sorted(first.values())])
        return [
            {
                "query_id": q,
                "query": self.queries[q]["query"],
                "category": self.queries[q].get("category") or "",
                "reasoning": thoughts[q],
                "gain": round(gain[q], 4),
                "without": self._items(q, runs[without], titles),
                "with": self._items(q, runs[with_it], titles),
            }
            for q in list(chosen)[:size]
        ]

    def _items(self, query_id: str, run: Run, titles: Mapping[str, str]) -> list[dict[str, Any]]:
        grades = self.qrels[query_id]
        top = [item for item, _ in list(run.get(query_id, ()))[:TOP]]
        return [{"item_id": item, "title": titles.get(item, ""), "grade": grades.get(item)} for item in top]

    def _tested(self) -> dict[str, list[str]]:
        return {name: list(ids) for name, ids in self.slices.items() if len(ids) >= LEAST}


def labels(k: int, precision_k: int) -> dict[str, str]:
    """Measures by name, as people call them.

    >>> labels(30, 10)["hit_rate"], labels(30, 10)["RR@10"]
    ('HitRate@30', 'MRR@10')
    """
    told = {
        "hit_rate": f"HitRate@{k}",
        "precision": f"Precision@{precision_k}",
        "nDCG@10": "nDCG@10",
        "RR@10": "MRR@10",
    }
    told |= {"R@100": "Recall@100", "P@100": "Precision@100", "AP": "MAP"}
    return told | {name: name for name in ("Success@1", "Success@10")}
