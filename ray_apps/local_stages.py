"""The stages that run in this process, without Ray: the demo world, the import of other formats, the index build.

Each imports what it needs when it runs: the world needs neither Faiss nor PyTorch.
"""

from typing import Any

from lrem.config import Config


def generate_world(config: Config) -> dict[str, Any]:
    """Write the demo world beside `paths.items`; return its counts."""
    from lrem.world import make_world

    world = make_world(config.seed, **config.world.model_dump())
    world.write(config.path("items").parent)
    return {
        "items": world.items.num_rows,
        "queries": world.queries.num_rows,
        "judgements": world.qrels.num_rows,
    }


def import_sources(config: Config) -> dict[str, Any]:
    """Write the tables of `sources` to `paths.items`, `paths.queries` and `paths.qrels`; return their counts."""
    from lrem.curation.sources import import_tables
    from lrem.data.files import write_parquet

    source = import_tables(config.sources)
    queries = source.queries if source.queries.num_rows else None
    for name, table in {"items": source.items, "queries": queries, "qrels": source.qrels}.items():
        if table is not None:
            write_parquet(table, config.path(name))
        elif config.path(name) == config.default_path(name):  # left from an earlier import: it would not fit
            config.path(name).unlink(missing_ok=True)
    return source.counts


def build_index(config: Config) -> dict[str, Any]:
    """Build the index snapshot `paths.index` from `paths.vectors` and `paths.items`; return its size and structure."""
    from lrem.index.ann import choose_factory
    from ray_apps.indexing import embed

    manifest = embed.build_index(config, config.path("vectors"), config.uri("index"))
    structure, reason = choose_factory(manifest["count"], manifest["dimension"], config.index.factory)
    return {
        "items": manifest["count"],
        "dimension": manifest["dimension"],
        "model": manifest["model"],
        "structure": f"{structure} ({reason})",
    }
