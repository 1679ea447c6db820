"""Where the files of a run are."""

import os
from pathlib import Path
from typing import Annotated, Any, get_args
from urllib.parse import unquote

from pydantic import AfterValidator, model_validator

from lrem.config.section import Section


def home(path: str | Path) -> Path:
    """Return a path with `~` and `~user` replaced by the home folder, if there is one."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises for an unknown user


LocalPath = Annotated[Path, AfterValidator(home)]
PathOrName = Annotated[str, AfterValidator(os.path.expanduser)]  # a folder, or the name of a model

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

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, paths: dict[str, Any]) -> dict[str, Any]:
        return {name: cls._absolute(name, value) for name, value in paths.items()}

    @classmethod
    def _absolute(cls, name: str, value: Any) -> str | Path:
        """Return a local path as an absolute one: a Ray worker has another working directory than the caller."""
        if not isinstance(value, str | Path):
            raise ValueError(f"paths.{name}={value} must be one path")
        if str(value).startswith("file://"):
            local = unquote(str(value).removeprefix("file://").removeprefix("localhost"))
            if not local.startswith("/"):
                raise ValueError(f"paths.{name}={value} names the host {local.partition('/')[0]}: write file:///path")
            return Path(local)
        if "://" not in str(value):
            return home(value).absolute()
        if name in cls.model_fields and str not in get_args(cls.model_fields[name].annotation):
            raise ValueError(
                f"paths.{name}={value} must be a local path: copy the file here, or read a catalogue, queries and "
                "judgements from a URI with `lrem import`"
            )
        return value
