"""The second step of curation: reasonings for hard queries, filtered by the rules, and what they make reachable."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from lrem.config.model import pretrained_source
from lrem.curation import contrast
from lrem.curation.answer_parsing import parse_keywords
from lrem.curation.answer_store import AnswerStore
from lrem.curation.chat_requests import extraction_request, reasoning_request
from lrem.curation.curation_run import REASONING_SCHEMA, CurationRun
from lrem.curation.finder import Finder
from lrem.curation.helpfulness import words_help
from lrem.curation.keyword_order import StemIndex, order_keywords
from lrem.curation.query_lookup import QueryLookup
from lrem.curation.rules import KeywordRules, difference_set, expand_query, filter_keywords, normalize_brand
from lrem.curation.split_assignment import (
    EMPTY_DIFFERENCE,
    KEPT,
    KEPT_UNHELPED,
    KEPT_WITHOUT_REASONING,
    KEPT_WITHOUT_TEACHER,
    NO_KEYWORDS_LEFT,
    NO_REASONING,
    NO_TEACHER,
    TEACHER_FAILED,
)
from lrem.data.counters import Counters
from lrem.data.keywords import split_phrases
from lrem.data.schema import read_items
from lrem.errors import DataError

DEFAULT_BUDGET = 16  # tokens in a reasoning (paper), if model.budget is not set


class _Decision(NamedTuple):
    """The outcome of a query, subject to the judge's verdict, and the items to judge, as in REASONING_SCHEMA."""

    outcome: str
    candidates: Sequence[str] = ()
    own: Sequence[str] = ()


class Teacher(Finder):
    """Turns a teacher's reasoning into keywords that pass the rules, and into the difference set."""

    def __init__(self, run: CurationRun) -> None:
        super().__init__(run)
        teacher = self.settings.teacher
        self.answers = AnswerStore(run.answers_file) if teacher == "llm" else None
        self.reasonings = QueryLookup(run.reasonings_file) if teacher == "file" else None
        self.catalogue = contrast.phrase_frequencies(self.titles.values()) if teacher == "catalogue" else None
        ordered = self.settings.order_keywords and teacher != "catalogue"  # whose keywords are in order
        self.stems = StemIndex(self.titles.values()) if ordered else None
        items, column = read_items(run.config.path("items"), check_limits=False), self.settings.brand_column
        cells = items[column].to_pylist() if column in items.column_names else []
        brands = frozenset(name for brand in cells if brand and (name := normalize_brand(str(brand))))
        banned = frozenset(normalize_brand(phrase) for phrase in self.settings.banned)
        budget = run.config.model.budget or DEFAULT_BUDGET
        self.rules = KeywordRules(banned, brands, budget, token_counter(run.config.model.source))

    def __call__(self, part: pa.Table) -> tuple[pa.Table, Counters]:
        """DIFFICULTY_SCHEMA → REASONING_SCHEMA, and counters.

        `phrases` counts those written, `dropped: …` those that each rule dropped, `compared` the reasonings of queries
        with known relevant items, and `helpful` those that rank these higher.
        """
        rows = part.to_pylist()
        counts = Counter[str]({"phrases": 0, "compared": 0, "helpful": 0})
        self._reason(rows)
        counts["failed"] = sum(row["failed"] for row in rows)
        relevant = self.relevant_items([row["query_id"] for row in rows])
        for row in rows:
            self._filter(row, relevant.get(row["query_id"], set()), counts)
        expanded = [row for row in rows if row["taught"] and row["reasoning"]]
        texts = [expand_query(row["query"], row["reasoning"]) for row in expanded]
        rankings = self.retriever.search(texts, self.settings.top_k)
        second = {
            row["query_id"]: [item for item, _ in ranking] for row, ranking in zip(expanded, rankings, strict=True)
        }
        for row in rows:
            known_items, retrieved = relevant.get(row["query_id"], set()), second.get(row["query_id"], [])
            decision = self._decide(row, known_items, retrieved)
            if row["query_id"] in second and known_items:
                helps = words_help(row["first"], retrieved, known_items)
                counts.update(compared=1, helpful=int(helps))
                if self.settings.only_helpful and not helps:
                    row["reasoning"], decision = "", self._without_words(known_items)
            row |= decision._asdict()
        return pa.Table.from_pylist(rows, REASONING_SCHEMA), counts

    def _filter(self, row: dict[str, Any], relevant: set[str], counts: Counter[str]) -> None:
        """Apply the rules to a reasoning, in its canonical order, and count what they drop."""
        row["unfiltered"] = row["reasoning"] or ""
        order: Callable[..., list[str]] = list
        if self.stems is not None:
            titles = [self.titles[item] for item in sorted(relevant)]
            order = partial(order_keywords, relevant=titles, catalogue=self.stems)
        row["reasoning"], dropped = filter_keywords(row["unfiltered"], row["query"], self.rules, order)
        counts["phrases"] += len(split_phrases(row["unfiltered"]))
        counts.update({f"dropped: {rule}": n for rule, n in dropped.items()})

    def _reason(self, rows: list[dict[str, Any]]) -> None:
        """Set `reasoning` (unfiltered), `taught`, and `failed` (a language model gave no usable answer)."""
        for row in rows:
            row |= {"reasoning": "", "taught": not row["hard"], "failed": False}
        hard = [row for row in rows if row["hard"]]
        ids = [row["query_id"] for row in hard]
        if self.reasonings is not None:
            reasonings = self.reasonings.get(ids)
            for row in hard:
                if row["query_id"] in reasonings:
                    row |= {"reasoning": reasonings[row["query_id"]][0][0], "taught": True}
        elif self.catalogue is not None:
            relevant = self.relevant_items(ids)
            for row in hard:
                self._contrast(row, relevant.get(row["query_id"], set()), self.catalogue)
        else:
            self._read_answers(hard)

    def _contrast(self, row: dict[str, Any], relevant: set[str], catalogue: contrast.PhraseFrequencies) -> None:
        others = [self.titles[item] for item in row["first"] if item not in relevant]
        titles = [self.titles[item] for item in sorted(relevant)]
        keywords = contrast.keywords(row["query"], titles, others, catalogue) if titles else []
        row |= {"reasoning": ", ".join(keywords), "taught": bool(keywords)}

    def _read_answers(self, rows: list[dict[str, Any]]) -> None:
        assert self.answers is not None
        requests = {row["query_id"]: reasoning_request(self.settings, row["query"], row["category"]) for row in rows}
        reasonings = self.answers.get([request.key for request in requests.values()])
        for row in rows:
            row["failed"] = True
            reasoning = reasonings.get(requests[row["query_id"]].key)
            if reasoning is None:
                continue
            key = extraction_request(self.settings, row["query"], reasoning).key
            try:
                row["reasoning"] = parse_keywords(self.answers.get([key])[key])
            except (KeyError, ValueError):  # no answer, or one without keywords
                continue
            row |= {"taught": True, "failed": False}

    def _without_words(self, relevant: set[str]) -> _Decision:
        """Decide on a query whose words do not help: it is trained with an empty reasoning, on any relevant item."""
        return _Decision(KEPT_UNHELPED, sorted(relevant)) if self.settings.keep_easy else _Decision(NO_REASONING)

    def _decide(self, row: dict[str, Any], relevant: set[str], second: list[str]) -> _Decision:
        """Decide on a query by what its reasoning retrieves."""
        if row["failed"]:
            return _Decision(TEACHER_FAILED)
        own = row["first"] if self.settings.own_share else []
        nothing_usable = row["hard"] and self.settings.teacher != "file" and not row["reasoning"]
        judged = sorted(relevant) if self.settings.positives == "judged" else []
        if not row["taught"] or nothing_usable:
            further = judged or sorted(relevant.difference(row["first"]))
            if further and self.settings.keep_untaught:
                own = [] if judged else [item for item in own if item in relevant]
                return _Decision(KEPT_WITHOUT_TEACHER, further, own)
            return _Decision(NO_KEYWORDS_LEFT if row["unfiltered"] else NO_TEACHER)
        if not row["reasoning"]:
            easy = _Decision(KEPT_WITHOUT_REASONING, judged or row["first"])
            return easy if self.settings.keep_easy else _Decision(NO_REASONING)
        if judged:
            return _Decision(KEPT, judged)
        difference = difference_set(row["first"], second)
        return _Decision(KEPT, difference, own) if difference else _Decision(EMPTY_DIFFERENCE)


def token_counter(source: str | None) -> Callable[[str], int]:
    """Return a function that counts a reasoning's tokens within a sequence.

    Args:
        source: the model whose tokenizer counts; None counts words and commas.

    Raises:
        DataError: the tokenizer cannot be loaded.
    """
    if source is None:
        return KeywordRules().count_tokens
    from transformers import AutoTokenizer

    try:
        name, arguments = pretrained_source(source)
        tokenizer = AutoTokenizer.from_pretrained(name, **arguments)
    except (OSError, ValueError) as error:
        raise DataError(
            f"model.source: the tokenizer of {source} cannot be loaded ({error}): name a model or a folder"
        ) from error
    return lambda text: len(tokenizer.encode(f" {text}", add_special_tokens=False))  # with a space, as in the template
