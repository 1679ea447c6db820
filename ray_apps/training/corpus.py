"""The training rows of both stages through Ray Data: read, checked, rendered, and in a reproducible order.

Every row gets a hash of its content and the seed. Sorting by it gives the same order and the same shards whatever files
and blocks the rows came in. The hash is also the row's id in the logs of consumed rows. Where an epoch visits only some
rows of each query, the rows are sorted by query first, so that the rows of one query reach the same rank.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import ray.data

from lrem.config import ColdStartConfig, Config, ReinforceConfig
from lrem.data.known_positives import KnownPositives, identity, relevant_pairs
from lrem.data.schema import NEGATIVES, RELEVANT, RL_PAIRS, open_table, read_items
from lrem.errors import DataError
from lrem.training.batching import EpochRows
from ray_apps.training.row_rendering import KEYS, RenderOptions, render_pairs, render_triplets
from ray_apps.training.training_tables import training_tables

ROWS_PER_BLOCK = 20_000  # about a second of rendering
ROWS_PER_CALL = 4096


class Corpus(NamedTuple):
    """Rendered rows, sorted; `known_positives` is for the false-negative mask; `fingerprint` identifies the content."""

    dataset: ray.data.Dataset
    rows: int
    epoch: EpochRows
    known_positives: KnownPositives
    fingerprint: int

    def describe(self) -> str:
        """Return size and fingerprint, for the run's signature."""
        return f"{self.rows} rows, {self.fingerprint:016x}"


def load_triplets(config: Config, stage: ColdStartConfig, model: Path) -> Corpus:
    """Read, check and render the triplets of stage 1 with the tokenizer and template of the folder `model`.

    Raises:
        DataError: a file or column is missing, there are no rows, a row cannot be used (the message names the first),
            or there are too few rows for the workers.
    """
    with_reasoning = stage.objective == "joint"
    options = RenderOptions(
        str(model), config.seed, with_reasoning, stage.too_long == "cut", stage.max_negatives, stage.thought_positives
    )
    rendered = []
    for uri, schema in training_tables(config, stage).items():
        columns = [name for name in schema.names if name != "reasoning" or with_reasoning or stage.thought_positives]
        arguments = {"source": uri, "options": options}
        rendered.append(
            _read(uri, schema, columns).map_batches(
                render_triplets, batch_format="pyarrow", batch_size=ROWS_PER_CALL, fn_kwargs=arguments
            )
        )
    corpus = _build_corpus(rendered, stage.rows_per_query)
    if corpus.epoch.total < stage.workers * corpus.epoch.min_per_rank():
        raise DataError(
            f"an epoch visits {corpus.epoch.total} of {corpus.rows} rows, too few for {stage.workers} workers: lower "
            "workers or add data"
        )
    return corpus


def load_pairs(config: Config, stage: ReinforceConfig, model: Path) -> Corpus:
    """Read and check the RL pairs of stage 2; rows keep their texts, and get their keys.

    Raises:
        DataError: as `load_triplets`; also if a row's item is not in the catalogue.
    """
    uri, items = config.uri("rl_pairs"), config.path("items")
    identities = [identity(item) for item in read_items(items)["item_id"].to_pylist()]
    arguments = {
        "source": uri,
        # a query beyond its limit is cut, as in serving; it is the pool that renders it
        "options": RenderOptions(str(model), config.seed, with_reasoning=False, cut=True),
        "items": str(items),
        "catalogue": ray.put(np.array(identities)),
    }
    rows = _read(uri, RL_PAIRS, RL_PAIRS.names).map_batches(
        render_pairs, batch_format="pyarrow", batch_size=ROWS_PER_CALL, fn_kwargs=arguments
    )
    corpus = _build_corpus([rows], rows_per_query=None)
    if corpus.rows < stage.workers:
        raise DataError(
            f"{corpus.rows} RL pairs for {stage.workers} workers: raise curate.rl_share, or lower reinforce.workers"
        )
    return corpus


def _read(uri: str, schema: pa.Schema, columns: Sequence[str]) -> ray.data.Dataset:
    table = open_table(uri, schema)
    rows = table.count_rows()
    if rows == 0:
        raise DataError(f"{uri} has no rows: at least one is needed")
    optional = [name for name in (*NEGATIVES.names, *RELEVANT.names) if name in table.schema.names]
    filesystem, path = (None, uri) if "://" not in uri else pa.fs.FileSystem.from_uri(uri)
    # by default Ray starts a process for each of many tiny blocks, and each imports transformers
    blocks = math.ceil(rows / ROWS_PER_BLOCK)
    names = [*columns, *optional]
    types = pa.schema([table.schema.field(name) for name in names])  # Ray takes the columns of the first file otherwise
    return ray.data.read_parquet(path, filesystem=filesystem, schema=types, override_num_blocks=blocks)


def _build_corpus(parts: Sequence[ray.data.Dataset], rows_per_query: int | None) -> Corpus:
    """Return the rendered rows, sorted by their hash, or by query and hash if an epoch visits only some of a query's.

    Raises DataError for the first row with a problem.
    """
    rendered = parts[0].union(*parts[1:]) if parts[1:] else parts[0]
    rendered = rendered.sort("row" if rows_per_query is None else ["query_key", "row"]).materialize()
    keys = _collect(rendered, ["query_key", "item_key", "relevant_keys", "row", "problem"])
    problems = keys["problem"].drop_null().to_pylist()
    if problems:
        count = f" ({len(problems)} such rows)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{count}")
    queries, rows = keys["query_key"].to_numpy(), keys["row"].to_numpy()
    judged = np.bitwise_xor(*relevant_pairs(keys))  # what the rows' hashes do not cover
    fingerprint = int(np.concatenate([rows, judged]).view(np.uint64).sum(dtype=np.uint64))  # wraps around, in any order
    trained = rendered.drop_columns(["problem", "relevant_keys"])
    trained.context.execution_options.preserve_order = True  # ranks take slices of the sorted rows
    return Corpus(
        trained.materialize(),
        len(rows),
        EpochRows.of(queries, rows_per_query),
        KnownPositives.of_rows(keys),
        fingerprint,
    )


def _collect(dataset: ray.data.Dataset, columns: list[str]) -> pa.Table:
    schema = pa.schema([KEYS.field(name) for name in columns])
    blocks = dataset.select_columns(columns).iter_batches(batch_size=None, batch_format="pyarrow")
    return pa.concat_tables([pa.table(block).cast(schema) for block in blocks])
