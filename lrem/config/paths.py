"""Where the files of a run are."""

from pathlib import Path

from lrem.config.section import Section

DEFAULT_PATHS = {
    "items": "world/items.parquet",
    "queries": "world/queries.parquet",
    "qrels": "world/qrels.parquet",
    "teacher": "world/teacher.parquet",
    "test": "curated/test.parquet",
    "gold": "world/gold.parquet",
    "triplets": "curated/triplets.parquet",
    "dev": "curated/dev.parquet",
    "mined": "curated/mined.parquet",
    "rl_pairs": "curated/rl_pairs.parquet",
    "cold_start": "cold_start",
    "direct": "direct",
    "model": "model",
    "vectors": "vectors",
    "index": "index",
    "live": "live",
}


class PathsConfig(Section):
    """The files that stages read and write. Defaults are inside `run_dir`."""

    items: Path | None = None
    """The catalogue: `item_id`, `title`, and payload columns."""
    queries: Path | None = None
    """The query log: `query_id`, `query`."""
    qrels: Path | None = None
    """Judgements: `query_id`, `item_id`, `grade`."""
    teacher: Path | None = None
    """Reasonings for training queries: `query_id`, `reasoning`."""
    test: Path | None = None
    """Queries that curation held out for the test. If missing, evaluation uses the queries whose split is test."""
    gold: Path | None = None
    """Oracle reasonings of test queries, for one of evaluation's probes. Never used for training."""
    triplets: Path | str | None = None
    """Training triplets: a file, a folder of files, or a URI such as s3://bucket/triplets."""
    dev: Path | None = None
    """Triplets held out of training, used to choose checkpoints."""
    mined: Path | None = None
    """Triplets with hard negatives."""
    rl_pairs: Path | str | None = None
    """Query–item pairs for reinforcement: a file, a folder of files, or a URI."""
    cold_start: Path | None = None
    """The model of stage 1."""
    direct: Path | None = None
    """The direct baseline's model."""
    model: Path | None = None
    """The model of stage 2, which is embedded, evaluated and served."""
    vectors: Path | None = None
    """The catalogue's embeddings."""
    index: Path | str | None = None
    """The index snapshot that serving starts from: a folder, or a URI such as s3://bucket/name."""
    live: Path | None = None
    """The live index with every write since the snapshot, on a disk of the index machines."""
