"""One run of curation: its settings, the files it works with, and the rows that pass from step to step.

The steps, each created once in an actor and then called with one part of the queries after another:

Finder    query                       → what the retriever returns for the query alone, and whether it is hard
Teacher   + an optional reasoning     → keywords that pass the rules, and the difference set
Judge     + verdicts                  → the items to keep, all that are relevant, and the outcome of the query
"""

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from lrem.config import Config
from lrem.curation.query_lookup import QueryLookup
from lrem.data.schema import read_items
from lrem.retrieval.resolved_retriever import ResolvedRetriever

TEXT, TEXTS = pa.string(), pa.list_(pa.string())
# draw decides the split of a query's group; alone: the query has no near-duplicate
_QUERY = [("query_id", TEXT), ("query", TEXT), ("category", TEXT), ("draw", pa.float64()), ("alone", pa.bool_())]
_TEACHING = [("hard", pa.bool_()), ("reasoning", TEXT), ("outcome", TEXT)]
INPUT_SCHEMA = pa.schema(_QUERY)
DIFFICULTY_SCHEMA = pa.schema([*_QUERY, ("first", TEXTS), ("recall", pa.float64()), ("hard", pa.bool_())])
# candidates: what only the reasoning retrieves; own: what the query itself retrieves
REASONING_SCHEMA = pa.schema([*_QUERY, *_TEACHING, ("candidates", TEXTS), ("own", TEXTS)])
# items: those to train on; relevant: all that are known to be relevant
VERDICT_SCHEMA = pa.schema([*_QUERY, *_TEACHING, ("items", TEXTS), ("relevant", TEXTS)])


class CurationRun(NamedTuple):
    """The settings of a run, its work folder and its retriever."""

    config: Config
    folder: Path  # of this run's parts; its name is a hash of everything that they depend on
    retriever: ResolvedRetriever

    @property
    def judgements_file(self) -> Path:
        """Known (item, grade) pairs by query."""
        return self.folder / "known.sqlite"

    @property
    def reasonings_file(self) -> Path:
        """The reasonings of paths.teacher by query."""
        return self.folder / "told.sqlite"

    @property
    def answers_file(self) -> Path:
        """The answers of language models; shared by all runs."""
        return self.folder.parent / "answers.sqlite"


class CurationStep:
    """What all steps load: the catalogue's titles and the known judgements."""

    def __init__(self, run: CurationRun) -> None:
        self.run, self.settings = run, run.config.curate
        items = read_items(run.config.path("items"), check_limits=False)
        self.titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
        self.judgements = QueryLookup(run.judgements_file)

    def relevant_items(self, query_ids: list[str]) -> dict[str, set[str]]:
        """Return query id → its relevant items in the catalogue, for the queries with judgements."""
        judgements, min_grade = self.judgements.get(query_ids), self.settings.relevant_from
        return {
            query_id: {item for item, grade in pairs if grade >= min_grade and item in self.titles}
            for query_id, pairs in judgements.items()
        }
