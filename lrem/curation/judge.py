"""The third step of curation: decide which candidates are relevant to the original query."""

import math
import zlib
from typing import Any

import pyarrow as pa

from lrem.curation.answer_store import AnswerStore
from lrem.curation.chat_requests import judge_request
from lrem.curation.cross_encoder import CrossEncoderJudge
from lrem.curation.curation_run import VERDICT_SCHEMA, CurationRun, CurationStep
from lrem.curation.split_assignment import JUDGE_FAILED, KEPT, KEPT_WITHOUT_REASONING, NOTHING_RELEVANT
from lrem.curation.verdicts import parse_verdict
from lrem.data.counters import Counters


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
        judgements = self.judgements.get([row["query_id"] for row in rows])
        counts: Counters = {"agreement": [0, 0, 0, 0], "judged": 0, "unjudged": 0}
        for row in rows:
            grades = dict(judgements.get(row["query_id"], []))
            row["outcome"], relevant = self._decide(row, grades, counts)
            row["items"] = self._sample(row["query_id"], relevant)
            counts[f"outcome {row['outcome']}"] = counts.get(f"outcome {row['outcome']}", 0) + 1
        return pa.Table.from_pylist(rows, VERDICT_SCHEMA), counts

    def _decide(self, row: dict[str, Any], grades: dict[str, int], counts: Counters) -> tuple[str, list[str]]:
        if row["outcome"] not in (KEPT, KEPT_WITHOUT_REASONING):
            return row["outcome"], row["candidates"]
        min_grade = self.settings.relevant_from
        if self.settings.judge == "known":
            relevant = [item for item in row["candidates"] if grades.get(item, 0) >= min_grade]
            return (row["outcome"], relevant) if relevant else (NOTHING_RELEVANT, [])
        candidates = row["candidates"][: self.settings.judged_per_query]
        verdicts = self._verdicts(row["query"], candidates)
        counts["judged"] += len(verdicts)
        counts["unjudged"] += len(candidates) - len(verdicts)
        for item, accepted in verdicts.items():
            if item in grades:
                counts["agreement"][2 * (not accepted) + (grades[item] < min_grade)] += 1
        relevant = [item for item in candidates if verdicts.get(item)]
        if candidates and not verdicts:
            return JUDGE_FAILED, []
        return (row["outcome"], relevant) if relevant else (NOTHING_RELEVANT, [])

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

    def _sample(self, query_id: str, items: list[str]) -> list[str]:
        """Return items_per_query items, pseudo-randomly from the whole list: the top is often one kind of product."""
        order = sorted(items, key=lambda item: zlib.crc32(f"{query_id} {item}".encode()))
        return order[: self.settings.items_per_query]
