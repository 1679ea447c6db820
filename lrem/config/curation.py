"""Settings of import, curation and bootstrap."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from lrem.config.llm import JudgeLlmConfig, LlmConfig
from lrem.config.paths import PathOrName
from lrem.config.section import Section

Format = Literal["table", "esci", "wands", "multi_cpr"]


class SourcesConfig(Section):
    """What `lrem import` reads: a catalogue, queries and judgements, each a local path or a URI.

    `table` reads parquet, CSV or JSON lines by the file's suffix and renames columns. The published formats know
    their file names: `folder` is enough.
    """

    format: Format = "table"
    """table, or a published data set."""
    folder: str | None = None
    """Folder of a published data set, as unpacked."""
    catalogue: str | None = None
    """File of items."""
    queries: str | None = None
    """File with one row per query, or a log in which repeated queries are counted."""
    judgements: str | None = None
    """File of judged pairs, or of clicks."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our column name → yours: item_id, title, query_id, query, grade, …"""
    grades: dict[str, int] = Field(default_factory=dict)
    """Label → grade. Numbers need no entry."""
    delimiter: str | None = Field(None, min_length=1, max_length=1)
    """Separator of the columns of CSV files; a comma if not set. TSV files have tabs."""
    encoding: str | None = None
    """Encoding of CSV, TSV and JSON files, such as latin-1 or utf-16; UTF-8 if not set."""
    numbers: list[str] = Field(default_factory=list)
    """Your text columns to read as numbers though some are written unusually, such as 19.90."""
    locale: str | None = None
    """Keep only rows of this product_locale or query_locale (ESCI)."""

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, encoding: str | None) -> str | None:
        try:
            "".encode(encoding or "utf-8")
        except LookupError:
            raise ValueError(f"'{encoding}' is no text encoding of Python: use one such as latin-1 or utf-16") from None
        return encoding


class TeacherLlmConfig(LlmConfig):
    """A language model that writes reasonings; these need some variety."""

    temperature: float = Field(0.7, ge=0)
    """Sampling temperature."""


class DifficultyConfig(Section):
    """A query is hard if the retriever serves it badly by any of these measures, or if none can be computed."""

    recall_below: float | None = Field(0.7, ge=0, le=1)
    """Share of the query's relevant items within top_k (of at most top_k of them)."""
    margin_below: float | None = Field(None, ge=0)
    """Best score minus the k-th, as a share of the best."""
    overlap_below: float | None = Field(None, ge=0, le=1)
    """Share of the query's words that occur in titles of its relevant items, or else of the top 10."""


class CurateConfig(Section):
    """From queries to triplets."""

    retriever: PathOrName = "bm25"
    """bm25, or a folder: a sentence-transformers model, one of ours, or an index snapshot of paths.model."""
    top_k: int = Field(30, ge=1)
    """Items per retrieval, with and without the reasoning: one result page. Not stated in the paper."""
    difficulty: DifficultyConfig = DifficultyConfig()
    relevant_from: int = Field(1, ge=1)
    """Lowest grade that counts as relevant."""
    teacher: Literal["file", "catalogue", "llm"] = "file"
    """file: paths.teacher. catalogue: keywords from the catalogue, no model. llm: a language model."""
    llm: TeacherLlmConfig = TeacherLlmConfig()
    """The teacher."""
    judge: Literal["known", "cross_encoder", "llm"] = "known"
    """known: the judgements in paths.qrels. Otherwise a model."""
    judge_llm: JudgeLlmConfig = JudgeLlmConfig()
    """The judge."""
    cross_encoder: PathOrName | None = None
    """Name or folder of a sentence-transformers cross-encoder."""
    accept: float = Field(0.5, ge=0, le=1)
    """Lowest relevance that a judge accepts, 0 to 1; grades 0 to 3 count as thirds."""
    judged_per_query: int = Field(20, ge=1)
    """Maximum items of the difference set that a judge's model sees per query; of those that the query retrieves by
    itself it sees own_share times as many."""
    positives: Literal["retrieved", "judged"] = "retrieved"
    """retrieved: items that the retriever finds, with the reasoning or without it; a query whose reasoning reaches no
    relevant item is dropped (paper). judged: all items that the judgements call relevant; own_share has no effect."""
    items_per_query: int = Field(4, ge=1)
    """Maximum triplets per query: many queries teach more than many items."""
    own_share: float = Field(0.5, ge=0, lt=1)
    """Share of the triplets whose item the query retrieves on its own. 0: none, only the difference set (paper)."""
    order_keywords: bool = True
    """Put the most decisive keyword first, before the budget cuts the list. The catalogue's are always so."""
    only_helpful: bool = False
    """Empty the reasonings with which the retriever ranks the query's known relevant items no higher than without."""
    rl_share: float = Field(0.25, gt=0, lt=1)
    """Share of the queries that go to reinforcement. The paper: 4 of 75 M triplets."""
    dev_share: float = Field(0.0, ge=0, lt=0.5)
    """Share of the queries held out to choose checkpoints (paths.dev)."""
    test_share: float | None = Field(None, ge=0, lt=0.5)
    """Share of the queries held out in test.parquet. None: 0.1, or 0 if the queries already have a split."""
    keep_untaught: bool = True
    """Use judged queries without a reasoning as RL pairs, which the direct baseline trains on too."""
    keep_easy: bool = True
    """Use queries that need no reasoning, to teach an empty reasoning."""
    rl_easy: bool = True
    """Use such queries for reinforcement too, otherwise for the cold start only."""
    banned: list[str] = Field(default_factory=list)
    """Words and phrases that no reasoning may contain."""
    brand_column: str | None = "brand"
    """Catalogue column with brands. If it is missing, other brands in a reasoning are not removed."""
    part_rows: int = Field(1000, ge=1)
    """Queries per part. A killed run repeats at most one part per actor."""
    actors: int = Field(1, ge=1)
    """Actors, each working on one part at a time."""

    @model_validator(mode="after")
    def _check_positives(self) -> "CurateConfig":
        if self.positives == "judged" and self.judge != "known":
            raise ValueError(
                f"positives=judged takes the items from the judgements, and judge={self.judge} would judge them again: "
                "set judge=known"
            )
        return self


class BootstrapConfig(Section):
    """Queries, reasonings and judgements generated from the catalogue alone."""

    queries: int = Field(8000, ge=50)
    """Queries to generate."""
    type_column: str | None = "category"
    """Product type: text, or a list of texts from general to specific."""
    brand_column: str | None = "brand"
    """Column with brands."""
    colour_column: str | None = "color"
    """Column with colours."""
    text_columns: list[str] = Field(default_factory=lambda: ["bullet_points", "description"])
    """Columns to read in addition to the title."""
    shares: dict[str, float] = Field(
        default_factory=lambda: {"easy": 0.3, "attribute": 0.2, "negative": 0.25, "question": 0.15, "alternative": 0.1}
    )
    """Share of each kind of query."""
    most_relevant: int = Field(60, ge=1)
    """Drop queries that match more items than this: they are too vague."""

    @model_validator(mode="after")
    def _check_kinds(self) -> "BootstrapConfig":
        wrong = set(self.shares) - {"easy", "attribute", "negative", "question", "alternative"}
        if wrong:
            raise ValueError(f"shares has no kind '{min(wrong)}'")
        return self
