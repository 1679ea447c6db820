"""The first step of curation: retrieve each query as it stands, and measure how hard it is."""

import pyarrow as pa

from lrem.curation.curation_run import DIFFICULTY_SCHEMA, CurationRun, CurationStep
from lrem.curation.difficulty import histogram, is_hard, measure_difficulty, reference_titles
from lrem.data.counters import Counters


class Finder(CurationStep):
    """Retrieves the query alone and decides whether it is hard."""

    def __init__(self, run: CurationRun) -> None:
        super().__init__(run)
        self.retriever = run.retriever.open(run.config.path("items"))

    def __call__(self, part: pa.Table) -> tuple[pa.Table, Counters]:
        """INPUT_SCHEMA → DIFFICULTY_SCHEMA, and histograms of the difficulty measures."""
        rows, limits, top_k = part.to_pylist(), self.settings.difficulty, self.settings.top_k
        relevant = self.relevant_items([row["query_id"] for row in rows])
        rankings = self.retriever.search([row["query"] for row in rows], top_k)
        measured = []
        for row, ranking in zip(rows, rankings, strict=True):
            known_items = relevant.get(row["query_id"], set())
            row["first"] = [item for item, _ in ranking]
            titles = reference_titles(ranking, known_items, self.titles)
            difficulty = measure_difficulty(row["query"], ranking, known_items, titles, top_k)
            row["recall"] = difficulty.recall
            row["hard"] = is_hard(difficulty, limits.recall_below, limits.margin_below, limits.overlap_below)
            measured.append(difficulty)
        counts: Counters = {"queries": len(rows), "hard": sum(row["hard"] for row in rows)}
        counts |= {name: histogram([getattr(m, name) for m in measured]) for name in ("recall", "margin", "overlap")}
        return pa.Table.from_pylist(rows, DIFFICULTY_SCHEMA), counts
