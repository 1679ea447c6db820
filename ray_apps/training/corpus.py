"""Ray Data: triplets from parquet to token ids, checked, in an order that only their content and the seed decide.

Every row gets a hash of its content and the seed; sorting by it gives the same order and the same shards whatever
the files and blocks the rows came in. The hash is also the row's id, for whoever wants to count what was consumed.
"""

import math
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray.data
from transformers import PreTrainedTokenizerFast

from lrem.config import ColdStartConfig, Config
from lrem.data.known_positives import KnownPositives, identity, query_identity
from lrem.data.schema import NEGATIVES, RL_PAIRS, TRIPLETS, open_table
from lrem.errors import DataError
from lrem.modeling.template import Renderer, Template

ROWS_A_BLOCK = 20_000  # about a second's rendering
RENDERED = pa.schema(
    [
        ("row", pa.int64()),  # hash of content and seed
        ("query_key", pa.int64()),
        ("item_key", pa.int64()),
        ("query_ids", pa.list_(pa.int32())),
        ("start", pa.int32()),  # where the completion begins in query_ids
        ("item_ids", pa.list_(pa.int32())),
        ("negative_keys", pa.list_(pa.int64())),
        ("negative_ids", pa.list_(pa.list_(pa.int32()))),
        ("problem", pa.string()),  # null for a usable row
    ]
)


class Corpus(NamedTuple):
    """Rendered rows, sorted; `known` is what the false-negative mask needs; `fingerprint` names the content."""

    dataset: ray.data.Dataset
    rows: int
    known: KnownPositives
    fingerprint: int


def load(config: Config, stage: ColdStartConfig, model: Path) -> Corpus:
    """Read, check and render the triplets of a stage with the tokenizer and template of the folder `model`.

    Raises:
        DataError: a file or column is missing, there are no rows, or a row cannot be used; it names the first.
    """
    sources = {config.uri("triplets"): TRIPLETS}
    if stage.objective == "direct":  # the pairs of both stages, so that neither side knows more
        sources[config.uri("rl_pairs")] = RL_PAIRS
    settings = {
        "folder": str(model),
        "joint": stage.objective == "joint",
        "cut": stage.too_long == "cut",
        "negatives": stage.max_negatives,
        "seed": config.seed,
    }
    parts = [
        _read(uri, schema, stage.objective == "joint").map_batches(
            render, batch_format="pyarrow", batch_size=4096, fn_kwargs=settings | {"source": uri}
        )
        for uri, schema in sources.items()
    ]
    rendered = parts[0].union(*parts[1:]) if parts[1:] else parts[0]
    rendered = rendered.sort("row").materialize()
    keys = _collect(rendered, ["query_key", "item_key", "row", "problem"])
    refused = keys["problem"].drop_null().to_pylist()
    if refused:
        more = f" ({len(refused)} such rows)" if len(refused) > 1 else ""
        raise DataError(f"{refused[0]}{more}")
    if keys.num_rows < stage.workers * 2:
        raise DataError(f"{keys.num_rows} rows for {stage.workers} workers: lower workers or add data")
    queries, items, rows = (keys[name].to_numpy() for name in ("query_key", "item_key", "row"))
    total = int(rows.view(np.uint64).sum(dtype=np.uint64))  # wraps around; the order does not matter
    return Corpus(rendered.drop_columns(["problem"]), len(rows), KnownPositives(queries, items), total)


def _read(uri: str, schema: pa.Schema, with_reasoning: bool) -> ray.data.Dataset:
    found = open_table(uri, schema)
    rows = found.count_rows()
    if rows == 0:
        raise DataError(f"{uri} has no rows: at least one is needed")
    wanted = [name for name in schema.names if name != "reasoning" or with_reasoning]
    wanted += [name for name in NEGATIVES.names if name in found.schema.names]
    filesystem, path = (None, uri) if "://" not in uri else pa.fs.FileSystem.from_uri(uri)
    # by default Ray starts a process for each of many tiny blocks, and each imports transformers
    return ray.data.read_parquet(
        path, filesystem=filesystem, columns=wanted, override_num_blocks=math.ceil(rows / ROWS_A_BLOCK)
    )


def _collect(dataset: ray.data.Dataset, columns: list[str]) -> pa.Table:
    wanted = pa.schema([RENDERED.field(name) for name in columns])
    parts = dataset.select_columns(columns).iter_batches(batch_size=None, batch_format="pyarrow")
    return pa.concat_tables([pa.table(part).cast(wanted) for part in parts])


def render(batch: pa.Table, source: str, folder: str, **how: Any) -> pa.Table:
    """A block of triplets → RENDERED, a row a row; what is wrong with a row stands in `problem`."""
    renderer = _renderer(folder)
    rows = []
    for row in batch.to_pylist():
        problem = _problem(renderer, row, how["joint"], how["cut"])
        if problem:
            rows.append({"problem": f"{source}: query '{row['query_id']}', item '{row['item_id']}': {problem}"})
        else:
            rows.append(_render_row(renderer, row, how["joint"], how["negatives"], how["seed"]))
    return pa.Table.from_pylist(rows, RENDERED)


@lru_cache(maxsize=1)
def _renderer(folder: str) -> Renderer:
    # reads the folder's tokenizer.json as it is; AutoTokenizer would import torch first, six seconds a process
    return Renderer(Template.load(Path(folder)), PreTrainedTokenizerFast.from_pretrained(folder))


def _render_row(renderer: Renderer, row: dict[str, Any], joint: bool, negatives: int, seed: int) -> dict[str, Any]:
    reasoning = row["reasoning"] if joint else None
    ids = renderer.query(row["query"], reasoning)
    hard = list(zip(row.get("negative_ids") or [], row.get("negative_titles") or [], strict=True))[:negatives]
    content = (str(seed), row["query"], reasoning or "", str(row["item_id"]), row["title"])
    return {
        "row": identity(*content, *(str(item) for item, _ in hard)),
        "query_key": query_identity(row["query"]),
        "item_key": identity(str(row["item_id"])),
        "query_ids": ids,
        "start": len(renderer.query_prompt(row["query"])) if joint else len(ids),
        "item_ids": renderer.item(row["title"]),
        "negative_keys": [identity(str(item)) for item, _ in hard],
        "negative_ids": [renderer.item(title) for _, title in hard],
    }


def _problem(renderer: Renderer, row: dict[str, Any], joint: bool, cut: bool) -> str | None:
    needed = ["query_id", "query", "item_id", "title"] + ["reasoning"] * joint
    for name in needed:
        if row[name] is None:
            return f"'{name}' is null: fill it or drop the row"
    for name in ("query", "title") + ("reasoning",) * joint:
        if not isinstance(row[name], str):
            return f"'{name}' is a {type(row[name]).__name__}: text is needed"
    hard = row.get("negative_ids") or [], row.get("negative_titles") or []
    if len(hard[0]) != len(hard[1]) or not all(isinstance(title, str) for title in hard[1]):
        return f"{len(hard[0])} negative_ids and {len(hard[1])} negative_titles: each id needs its title"
    for name in ("query", "title"):
        if not renderer.text_ids(row[name]):
            return f"the {name} is empty: fill it or drop the row"
    if cut:
        return None
    limits = renderer.template
    if (size := len(renderer.text_ids(row["query"]))) > limits.max_query_tokens:
        limit = f"max_query_tokens={limits.max_query_tokens}"
        return f"the query has {size} tokens, the model's limit is {limit}: shorten it, or set too_long=cut"
    if joint and (size := len(renderer.text_ids(row["reasoning"]))) > limits.budget:
        return f"the reasoning has {size} tokens, the budget is {limits.budget}: shorten it, or set too_long=cut"
    return None
