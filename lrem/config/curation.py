"""The settings of sources, curation and bootstrap: names, types, defaults and their reasons."""

from typing import Literal

from pydantic import Field, model_validator

from lrem.config.settings import JudgeLlmConfig, LlmConfig, Section

Format = Literal["table", "esci", "wands", "multi_cpr"]


class SourcesConfig(Section):
    """Where `lrem import` reads a catalogue, queries and judgements from, each local or a URI.

    `table`: parquet, CSV or JSON lines by the file's ending, with a column map. The published formats know their
    files: `folder` is all they need.
    """

    format: Format = "table"
    folder: str | None = None  # of a published data set, as it is unpacked
    catalogue: str | None = None
    queries: str | None = None  # one row a query, or a log: repeated queries are counted
    judgements: str | None = None  # judged pairs, or clicks
    columns: dict[str, str] = Field(default_factory=dict)  # ours → theirs: item_id, title, query_id, query, grade, …
    grades: dict[str, int] = Field(default_factory=dict)  # a label → its grade; numbers need none
    locale: str | None = None  # keep the rows of one product_locale or query_locale (ESCI)


class TeacherLlmConfig(LlmConfig):
    """Free reasoning wants some variety."""

    temperature: float = Field(0.7, ge=0)


class DifficultyConfig(Section):
    """A query is hard where the retriever serves it badly by any of these; where none can be told, it is hard."""

    recall_below: float | None = Field(0.7, ge=0, le=1)  # of its known items, top_k of them at most, within top_k
    margin_below: float | None = Field(None, ge=0)  # best score less the k-th, as a share of the best
    overlap_below: float | None = Field(None, ge=0, le=1)  # of its words in its known items' titles, or the top 10's


class CurateConfig(Section):
    """From queries to triplets."""

    retriever: str = "bm25"  # or a folder: of sentence-transformers, of ours, or an index snapshot of paths.model
    top_k: int = Field(30, ge=1)  # of both retrievals: a first page; the paper does not state it
    difficulty: DifficultyConfig = DifficultyConfig()
    relevant_from: int = Field(1, ge=1)  # the grade from which an item counts as relevant
    teacher: Literal["file", "catalogue", "llm"] = "file"  # file: paths.teacher; catalogue: no model at all
    llm: TeacherLlmConfig = TeacherLlmConfig()  # the teacher's
    judge: Literal["known", "cross_encoder", "llm"] = "known"
    judge_llm: JudgeLlmConfig = JudgeLlmConfig()
    cross_encoder: str | None = None  # a sentence-transformers cross-encoder's name or folder
    accept: float = Field(0.5, ge=0, le=1)  # a judge's relevance from which an item counts; grades 0 to 3 are thirds
    judged_per_query: int = Field(20, ge=1)  # of the difference set, from its top: what a judge is asked
    items_per_query: int = Field(4, ge=1)  # triplets kept of one query: breadth of queries teaches more
    rl_share: float = Field(0.25, gt=0, lt=1)  # of the queries; the paper gives 4 of 75 M triplets
    dev_share: float = Field(0.0, ge=0, lt=0.5)  # of the queries, put aside to choose checkpoints by (paths.dev)
    # of the queries, kept out of training and written to test.parquet; None: 0.1, or 0 where they bring a split
    test_share: float | None = Field(None, ge=0, lt=0.5)
    keep_untaught: bool = True  # judged queries without a teacher's reasoning: pairs for reinforcement and the baseline
    keep_easy: bool = True  # queries served without thinking teach an empty reasoning
    rl_easy: bool = True  # such queries are reinforced too; else they go to the cold start
    banned: list[str] = Field(default_factory=list)  # words and phrases that no reasoning may hold
    brand_column: str | None = "brand"  # of the catalogue, for the brand guard; no such column: no guard
    part_rows: int = Field(1000, ge=1)  # queries of one part: what a killed run does again at most, for each actor
    actors: int = Field(1, ge=1)  # that work on parts at once


class BootstrapConfig(Section):
    """Queries, reasonings and judgements made of the catalogue alone."""

    queries: int = Field(8000, ge=50)
    type_column: str | None = "category"  # text, or a path of texts whose last is the kind of product
    brand_column: str | None = "brand"
    colour_column: str | None = "color"
    text_columns: list[str] = Field(default_factory=lambda: ["bullet_points", "description"])  # besides the title
    shares: dict[str, float] = Field(
        default_factory=lambda: {"easy": 0.3, "attribute": 0.2, "negative": 0.25, "question": 0.15, "alternative": 0.1}
    )
    most_relevant: int = Field(60, ge=1)  # a query that fits more items than this says too little

    @model_validator(mode="after")
    def _known(self) -> "BootstrapConfig":
        wrong = set(self.shares) - {"easy", "attribute", "negative", "question", "alternative"}
        if wrong:
            raise ValueError(f"shares has no kind '{min(wrong)}'")
        return self
