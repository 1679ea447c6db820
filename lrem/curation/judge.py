"""The third step of curation: decide which candidates are relevant to the original query."""

import math
import zlib
from collections.abc import Collection
from typing import Any

import pyarrow as pa

from lrem.config import CurateConfig
from lrem.curation.answer_store import AnswerStore
from lrem.curation.chat_requests import judge_request
from lrem.curation.cross_encoder import CrossEncoderJudge
from lrem.curation.curation_run import VERDICT_SCHEMA, CurationRun, CurationStep
from lrem.curation.split_assignment import JUDGE_FAILED, KEPT, KEPT_WITHOUT_REASONING, NOTHING_RELEVANT
from lrem.curation.verdicts import parse_verdict
from lrem.data.counters import Counters


def max_own_judged(settings: CurateConfig) -> int:
    """Return how many of the items that a query retrieves on its own a judge's model sees."""
    return round(settings.judged_per_query * settings.own_share)


def judged_items(row: dict[str, Any], settings: CurateConfig) -> list[str]:
    """Return the items of a row of REASONING_SCHEMA that a judge's model sees: the candidates, then the query's own."""
    if row["outcome"] not in (KEPT, KEPT_WITHOUT_REASONING):
        return []
    return [*row["candidates"][: settings.judged_per_query], *row["own"][: max_own_judged(settings)]]


class Judge(CurationStep):
    """Judges the candidates by known grades, a cross-encoder, or the answers of a language model."""

    def __init__(self, run: CurationRun) -> None:
        super().__init__(run)
        self.answers = AnswerStore(run.answers_file) if self.settings.judge == "llm" else None
        self.cross_encoder: CrossEncoderJudge | None = None
        if self.settings.judge == "cross_encoder":
            self.cross_encoder = CrossEncoderJudge(str(self.settings.cross_encoder))

    def __call__(self, part: pa.Table) -> tuple[pa.Table, Counters]:
        """REASONING_SCHEMA → VERDICT_SCHEMA, and counters.

        `agreement` counts verdicts by known relevance: [accepted relevant, accepted not, rejected relevant, rejected
        not].
        """
        rows = part.to_pylist()
        query_ids = [row["query_id"] for row in rows]
        judgements, known_items = self.judgements.get(query_ids), self.relevant_items(query_ids)
        counts: Counters = {"agreement": [0, 0, 0, 0], "judged": 0, "unjudged": 0}
        for row in rows:
            grades = dict(judgements.get(row["query_id"], []))
            row["outcome"], accepted = self._decide(row, grades, counts)
            row["items"] = self._sample(row, accepted)
            row["relevant"] = sorted(known_items.get(row["query_id"], set()).union(accepted))
            counts[f"outcome {row['outcome']}"] = counts.get(f"outcome {row['outcome']}", 0) + 1
        return pa.Table.from_pylist(rows, VERDICT_SCHEMA), counts

    def _decide(self, row: dict[str, Any], grades: dict[str, int], counts: Counters) -> tuple[str, set[str]]:
        """Return the outcome of a query and the accepted items, of which one at least is a candidate."""
        candidates, min_grade = row["candidates"], self.settings.relevant_from
        if row["outcome"] not in (KEPT, KEPT_WITHOUT_REASONING):
            return row["outcome"], {*candidates, *row["own"]}  # known to be relevant, or none
        if self.settings.judge == "known":
            verdicts = {item: grades.get(item, 0) >= min_grade for item in [*candidates, *row["own"]]}
        else:
            items = judged_items(row, self.settings)
            verdicts = self._verdicts(row["query"], items)
            counts["judged"] += len(verdicts)
            counts["unjudged"] += len(items) - len(verdicts)
            for item, accepted in verdicts.items():
                if item in grades:
                    counts["agreement"][2 * (not accepted) + (grades[item] < min_grade)] += 1
        if candidates and verdicts.keys().isdisjoint(candidates):
            return JUDGE_FAILED, set()
        relevant = {item for item, accepted in verdicts.items() if accepted}
        return (NOTHING_RELEVANT, set()) if relevant.isdisjoint(candidates) else (row["outcome"], relevant)

    def _verdicts(self, query: str, items: list[str]) -> dict[str, bool]:
        """Return item → whether the judge accepts it; items without a readable answer are left out."""
        if self.cross_encoder is not None:
            scores = self.cross_encoder.scores(query, [self.titles[item] for item in items])
            return {item: score >= self.settings.accept for item, score in zip(items, scores, strict=True)}
        assert self.answers is not None
        keys = {item: judge_request(self.settings, query, self.titles[item]).key for item in items}
        answers = self.answers.get(list(keys.values()))
        min_grade = math.ceil(3 * self.settings.accept)
        verdicts = {item: parse_verdict(answers.get(key), min_grade) for item, key in keys.items()}
        return {item: verdict for item, verdict in verdicts.items() if verdict is not None}

    def _sample(self, row: dict[str, Any], accepted: Collection[str]) -> list[str]:
        """Return items_per_query accepted items, with a share of own_share of the query's own.

        They are drawn pseudo-randomly from the whole lists: the top is often one kind of product.
        """
        query_id, count = row["query_id"], self.settings.items_per_query
        draw = zlib.crc32(query_id.encode()) / 2**32  # rounds the share up or down, right on average
        own = self._shuffle(query_id, row["own"], accepted)[: int(count * self.settings.own_share + draw)]
        return self._shuffle(query_id, row["candidates"], accepted)[: count - len(own)] + own

    def _shuffle(self, query_id: str, items: list[str], accepted: Collection[str]) -> list[str]:
        chosen = [item for item in items if item in accepted]
        return sorted(chosen, key=lambda item: zlib.crc32(f"{query_id} {item}".encode()))
