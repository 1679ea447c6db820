"""The queries of an evaluation."""

from typing import NamedTuple

from lrem.evaluation.metrics import Run

Ranking = list[tuple[str, float]]  # (item_id, score), best first


class QuerySet(NamedTuple):
    """The queries, in order, and the number of items that each run holds per query."""

    ids: list[str]
    texts: list[str]
    depth: int

    def run(self, rankings: list[Ranking]) -> Run:
        """Return the rankings of the queries, in order, as a run."""
        return dict(zip(self.ids, rankings, strict=True))
