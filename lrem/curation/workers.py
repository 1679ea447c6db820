"""The work of curation on one part of the queries: find, teach, judge. Each is made once and called often.

Finder    query                       → what the retriever finds alone, and how hard that makes it
Teacher   + a thought, if there is one → keywords by the rules, and the difference set
Judge     + verdicts                   → the items that are kept, and what became of the query
"""

import math
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from lrem.config import Config
from lrem.curation import contrast
from lrem.curation.answers import Answers
from lrem.curation.cross_encoder import CrossEncoderJudge
from lrem.curation.difficulty import histogram, is_hard, measure, telling_titles
from lrem.curation.judging import accepts
from lrem.curation.lookup import Lookup
from lrem.curation.prompts import parse_keywords
from lrem.curation.questions import extraction, judgement, reasoning
from lrem.curation.rules import Rules, brand_name, difference, expand, sift
from lrem.curation.split_assignment import EASY, EMPTY, FAILED, IRRELEVANT, KEPT, UNDECIDED, UNTAUGHT
from lrem.data.counters import Counts
from lrem.data.schema import read_items
from lrem.errors import DataError
from lrem.retrieval.retrievers import kind_of, open_retriever

TEXT, TEXTS = pa.string(), pa.list_(pa.string())
# draw places a query's group in the split; alone: it has no near-duplicate
QUERY = [("query_id", TEXT), ("query", TEXT), ("category", TEXT), ("draw", pa.float64()), ("alone", pa.bool_())]
FOUND = [("first", TEXTS), ("recall", pa.float64()), ("hard", pa.bool_())]
TAUGHT = [("hard", pa.bool_()), ("reasoning", TEXT), ("outcome", TEXT), ("candidates", TEXTS)]
INPUT = pa.schema(QUERY)
FINDINGS = pa.schema(QUERY + FOUND)
THOUGHTS = pa.schema(QUERY + TAUGHT)
DECIDED = pa.schema([*QUERY, ("hard", pa.bool_()), ("reasoning", TEXT), ("outcome", TEXT), ("items", TEXTS)])

DEFAULT_BUDGET = 16  # tokens of a reasoning (paper), where model.budget does not say


class Desk(NamedTuple):
    """Where the parts and what they need lie, and the settings."""

    config: Config
    folder: Path  # of this run's parts
    snapshot: str  # of the retriever's vectors, if it is a model

    @property
    def known(self) -> Path:
        """Judgements by query: item, grade."""
        return self.folder / "known.sqlite"

    @property
    def told(self) -> Path:
        """The reasonings of paths.teacher."""
        return self.folder / "told.sqlite"

    @property
    def answers(self) -> Path:
        """What language models answered; kept from run to run."""
        return self.folder.parent / "answers.sqlite"


class _Worker:
    def __init__(self, desk: Desk) -> None:
        self.desk, self.settings = desk, desk.config.curate
        items = read_items(desk.config.path("items"))
        self.titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
        self.known = Lookup(desk.known)

    def relevant(self, ids: list[str]) -> dict[str, set[str]]:
        """Query id → its relevant items that the catalogue has."""
        found, least = self.known.of(ids), self.settings.relevant_from
        return {q: {item for item, g in rows if g >= least and item in self.titles} for q, rows in found.items()}


class Finder(_Worker):
    """What the retriever finds for the query alone, and whether that is bad."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        spec, items = self.settings.retriever, desk.config.path("items")
        model = str(desk.config.path("model")) if kind_of(spec) == "snapshot" else spec
        self.retriever = open_retriever(model, items, desk.snapshot)

    def __call__(self, part: pa.Table) -> tuple[pa.Table, Counts]:
        """INPUT → FINDINGS, and the histograms of what makes a query hard."""
        rows, limits = part.to_pylist(), self.settings.difficulty
        relevant = self.relevant([row["query_id"] for row in rows])
        measured = []
        for row, ranking in zip(
            rows, self.retriever.search([r["query"] for r in rows], self.settings.top_k), strict=True
        ):
            wanted = relevant.get(row["query_id"], set())
            row["first"] = [item for item, _ in ranking]
            titles = telling_titles(ranking, wanted, self.titles)
            found = measure(row["query"], ranking, wanted, titles, self.settings.top_k)
            row["recall"] = found.recall
            row["hard"] = is_hard(found, limits.recall_below, limits.margin_below, limits.overlap_below)
            measured.append(found)
        counts: Counts = {"queries": len(rows), "hard": sum(row["hard"] for row in rows)}
        counts |= {name: histogram([getattr(m, name) for m in measured]) for name in ("recall", "margin", "overlap")}
        return pa.Table.from_pylist(rows, FINDINGS), counts


class Teacher(Finder):
    """Keywords that passed the rules, and what only they make reachable."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self.answers = Answers(desk.answers) if self.settings.teacher == "llm" else None
        self.told = Lookup(desk.told) if self.settings.teacher == "file" else None
        self.catalogue = contrast.background(self.titles.values()) if self.settings.teacher == "catalogue" else None
        items, column = read_items(desk.config.path("items")), self.settings.brand_column
        named = items[column].to_pylist() if column in items.column_names else []
        brands = frozenset(name for brand in named if brand and (name := brand_name(str(brand))))
        banned = frozenset(brand_name(phrase) for phrase in self.settings.banned)
        budget = desk.config.model.budget or DEFAULT_BUDGET
        self.rules = Rules(banned, brands, budget, token_counter(desk.config.model.source))

    def __call__(self, part: pa.Table) -> tuple[pa.Table, Counts]:
        """FINDINGS → THOUGHTS, and how many phrases each rule dropped."""
        rows, counts = part.to_pylist(), Counter[str]({"phrases": 0})
        self._think(rows)
        counts["failed"] = sum(row["failed"] for row in rows)
        for row in rows:
            row["said"] = row["reasoning"] or ""
            row["reasoning"], dropped = sift(row["said"], row["query"], self.rules)
            counts["phrases"] += sum(bool(phrase.strip()) for phrase in row["said"].split(","))
            counts.update({f"dropped: {rule}": n for rule, n in dropped.items()})
        relevant = self.relevant([row["query_id"] for row in rows])
        asked = [row for row in rows if row["taught"] and row["reasoning"]]
        second = self.retriever.search([expand(row["query"], row["reasoning"]) for row in asked], self.settings.top_k)
        reached = {row["query_id"]: [item for item, _ in found] for row, found in zip(asked, second, strict=True)}
        for row in rows:
            wanted = relevant.get(row["query_id"], set())
            row["outcome"], row["candidates"] = self._reach(row, wanted, reached.get(row["query_id"], []))
        return pa.Table.from_pylist(rows, THOUGHTS), counts

    def _think(self, rows: list[dict[str, Any]]) -> None:
        """Sets `reasoning`, as the teacher wrote it, `taught`, and `failed` where a language model did not answer."""
        for row in rows:
            row |= {"reasoning": "", "taught": not row["hard"], "failed": False}
        hard = [row for row in rows if row["hard"]]
        ids = [row["query_id"] for row in hard]
        if self.told is not None:
            said = self.told.of(ids)
            for row in hard:
                if row["query_id"] in said:
                    row |= {"reasoning": said[row["query_id"]][0][0], "taught": True}
        elif self.catalogue is not None:
            relevant = self.relevant(ids)
            for row in hard:
                self._contrast(row, relevant.get(row["query_id"], set()), self.catalogue)
        else:
            self._read_answers(hard)

    def _contrast(self, row: dict[str, Any], wanted: set[str], catalogue: contrast.Background) -> None:
        others = [self.titles[item] for item in row["first"] if item not in wanted]
        titles = [self.titles[item] for item in sorted(wanted)]
        words = contrast.keywords(row["query"], titles, others, catalogue) if titles else []
        row |= {"reasoning": ", ".join(words), "taught": bool(words)}

    def _read_answers(self, rows: list[dict[str, Any]]) -> None:
        assert self.answers is not None
        first = {row["query_id"]: reasoning(self.settings, row["query"], row["category"]) for row in rows}
        thoughts = self.answers.get([question.key for question in first.values()])
        for row in rows:
            row["failed"] = True
            thought = thoughts.get(first[row["query_id"]].key)
            if thought is None:
                continue
            key = extraction(self.settings, row["query"], thought).key
            try:
                row["reasoning"] = parse_keywords(self.answers.get([key])[key])
            except (KeyError, ValueError):  # no answer, or none that can be read
                continue
            row |= {"taught": True, "failed": False}

    def _reach(self, row: dict[str, Any], wanted: set[str], second: list[str]) -> tuple[str, list[str]]:
        """What may become of the query, and the items to judge."""
        if row["failed"]:
            return FAILED, []
        asked_in_vain = row["hard"] and self.settings.teacher != "file" and not row["reasoning"]
        if not row["taught"] or asked_in_vain:
            lacking = sorted(wanted.difference(row["first"])) if self.settings.keep_untaught else []
            if lacking:
                return UNTAUGHT, lacking
            return ("nothing left by the rules" if row["said"] else "no teacher"), []
        if not row["reasoning"]:
            return (EASY, row["first"]) if self.settings.keep_easy else ("no reasoning", [])
        found = difference(row["first"], second)
        return (KEPT, found) if found else (EMPTY, [])


def token_counter(source: str | None) -> Callable[[str], int]:
    """How many tokens a reasoning has within a sequence: by the tokenizer of a model, else words and commas.

    Raises:
        DataError: the tokenizer cannot be loaded.
    """
    if source is None:
        return Rules().count
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise DataError(f"model.source: the tokenizer of {source} cannot be loaded ({error})") from error
    return lambda text: len(tokenizer.encode(f" {text}", add_special_tokens=False))  # as the template writes it


class Judge(_Worker):
    """Which of the candidates are relevant to the original query."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self.answers = Answers(desk.answers) if self.settings.judge == "llm" else None
        self.cross_encoder: CrossEncoderJudge | None = None
        if self.settings.judge == "cross_encoder":
            self.cross_encoder = CrossEncoderJudge(str(self.settings.cross_encoder))

    def __call__(self, part: pa.Table) -> tuple[pa.Table, Counts]:
        """THOUGHTS → DECIDED; the counters hold outcomes, and verdicts beside known grades as [yes yes, yes no, …]."""
        rows = part.to_pylist()
        known = self.known.of([row["query_id"] for row in rows])
        counts: Counts = {"agreement": [0, 0, 0, 0], "judged": 0, "unjudged": 0}
        for row in rows:
            grades = dict(known.get(row["query_id"], []))
            row["outcome"], kept = self._decide(row, grades, counts)
            row["items"] = self._spread(row["query_id"], kept)
            counts[f"outcome {row['outcome']}"] = counts.get(f"outcome {row['outcome']}", 0) + 1
        return pa.Table.from_pylist(rows, DECIDED), counts

    def _decide(self, row: dict[str, Any], grades: dict[str, int], counts: Counts) -> tuple[str, list[str]]:
        if row["outcome"] not in (KEPT, EASY):
            return row["outcome"], row["candidates"]
        if self.settings.judge == "known":
            kept = [item for item in row["candidates"] if grades.get(item, 0) >= self.settings.relevant_from]
            return (row["outcome"], kept) if kept else (IRRELEVANT, [])
        candidates = row["candidates"][: self.settings.judged_per_query]
        verdicts = self._verdicts(row["query"], candidates)
        counts["judged"] += len(verdicts)
        counts["unjudged"] += len(candidates) - len(verdicts)
        for item, verdict in verdicts.items():
            if item in grades:
                counts["agreement"][2 * (not verdict) + (grades[item] < self.settings.relevant_from)] += 1
        kept = [item for item in candidates if verdicts.get(item)]
        if candidates and not verdicts:
            return UNDECIDED, []
        return (row["outcome"], kept) if kept else (IRRELEVANT, [])

    def _verdicts(self, query: str, items: list[str]) -> dict[str, bool]:
        """Item → whether it counts; items without a readable answer are left out."""
        if self.cross_encoder is not None:
            scores = self.cross_encoder.scores(query, [self.titles[item] for item in items])
            return {item: score >= self.settings.accept for item, score in zip(items, scores, strict=True)}
        assert self.answers is not None
        asked = {item: judgement(self.settings, query, self.titles[item]).key for item in items}
        said = self.answers.get(list(asked.values()))
        found = {item: accepts(said.get(key), math.ceil(3 * self.settings.accept)) for item, key in asked.items()}
        return {item: verdict for item, verdict in found.items() if verdict is not None}

    def _spread(self, query_id: str, items: list[str]) -> list[str]:
        """items_per_query of them, from the whole list: the top alone would repeat one kind of product."""
        return sorted(items, key=lambda item: zlib.crc32(f"{query_id} {item}".encode()))[
            : self.settings.items_per_query
        ]
