"""A first training set for a shop without a query log: queries from the catalogue, then curation with it as teacher."""

from typing import Any

from lrem.config import Config
from lrem.curation.bootstrap import bootstrap_queries
from lrem.data.files import write_parquet
from lrem.data.schema import read_items
from ray_apps.curation import curate


def run(config: Config) -> dict[str, Any]:
    """Write run_dir/bootstrap/queries.parquet and qrels.parquet, and what `curate.run` makes of them.

    Raises:
        DataError: the catalogue cannot be read, or gives nothing to train on.
    """
    folder = config.run_dir / "bootstrap"
    queries, qrels = bootstrap_queries(read_items(config.path("items")), config.bootstrap, config.seed)
    write_parquet(queries, folder / "queries.parquet")
    write_parquet(qrels, folder / "qrels.parquet")
    return curate.run(taught_by_catalogue(config))


def taught_by_catalogue(config: Config) -> Config:
    """The settings of curation on the bootstrapped queries; a share of them is kept for a test only if one is set.

    They are made up: evaluation must not take them in place of real ones unasked.
    """
    folder = config.run_dir / "bootstrap"
    told = {"teacher": "catalogue", "judge": "known", "test_share": config.curate.test_share or 0.0}
    paths = {name: folder / f"{name}.parquet" for name in ("queries", "qrels")}
    return config.model_copy(
        update={
            "paths": config.paths.model_copy(update=paths),
            "curate": config.curate.model_copy(update=told),
        }
    )
