"""A first training set for a shop without a query log: generated queries, curated with the catalogue as teacher."""

from typing import Any

from lrem.config import Config
from lrem.curation.bootstrap import bootstrap_queries
from lrem.data.files import write_parquet
from lrem.data.schema import read_items
from ray_apps.curation import curate


def run(config: Config) -> dict[str, Any]:
    """Generate queries and judgements in run_dir/bootstrap, curate them, and return curation's counters.

    Raises:
        DataError: the catalogue cannot be read, or nothing is left to train on.
    """
    folder = config.run_dir / "bootstrap"
    queries, qrels = bootstrap_queries(read_items(config.path("items")), config.bootstrap, config.seed)
    write_parquet(queries, folder / "queries.parquet")
    write_parquet(qrels, folder / "qrels.parquet")
    return curate.run(bootstrap_settings(config))


def bootstrap_settings(config: Config) -> Config:
    """Return the settings of curation for generated queries, with test_share 0 unless it is set.

    Evaluation must not take generated queries for real ones by default.
    """
    folder = config.run_dir / "bootstrap"
    curate_settings = {"teacher": "catalogue", "judge": "known", "test_share": config.curate.test_share or 0.0}
    paths = {name: folder / f"{name}.parquet" for name in ("queries", "qrels")}
    return config.model_copy(
        update={
            "paths": config.paths.model_copy(update=paths),
            "curate": config.curate.model_copy(update=curate_settings),
        }
    )
