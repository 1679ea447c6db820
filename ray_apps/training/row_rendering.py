"""Check and render the training rows of both stages, a block at a time. Ray Data's tasks run it: imports no torch.

A row that cannot be used is not dropped: it becomes a row whose `problem` says what is wrong with it and where.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
from transformers import PreTrainedTokenizerFast

from lrem.data.known_positives import identity, query_identity
from lrem.data.schema import NEGATIVES, RL_PAIRS
from lrem.modeling.template import Renderer, Template
from ray_apps.training.row_shards import Row

KEYS = pa.schema(
    [
        ("row", pa.int64()),  # hash of content and seed
        ("query_key", pa.int64()),
        ("item_key", pa.int64()),
        ("negative_keys", pa.list_(pa.int64())),
        ("relevant_keys", pa.list_(pa.int64())),  # of all items known to be relevant; only for `KnownPositives`
        ("problem", pa.string()),  # null for a usable row
    ]
)
TRIPLET_ROWS = pa.schema(
    [
        *KEYS,
        ("query_ids", pa.list_(pa.int32())),
        ("start", pa.int32()),  # where the completion begins in query_ids
        ("scored", pa.bool_()),  # whether SFT trains on the completion; false for a pair without a reasoning
        ("item_ids", pa.list_(pa.int32())),
        ("negative_ids", pa.list_(pa.list_(pa.int32()))),
        ("thought_ids", pa.list_(pa.int32())),  # the reasoning as an item; null without thought_positives
    ]
)
PAIR_ROWS = pa.schema([*KEYS, *RL_PAIRS, *NEGATIVES])


class RenderOptions(NamedTuple):
    """How the rows of a run are checked and rendered."""

    model: str  # folder with tokenizer and template
    seed: int
    with_reasoning: bool
    cut: bool  # texts beyond the model's limits; otherwise they are refused
    max_negatives: int | None = None
    thought_positives: bool = False  # the reasoning is rendered as an item


def render_triplets(batch: pa.Table, source: str, options: RenderOptions) -> pa.Table:
    """Turn a block of triplets into TRIPLET_ROWS, one row per row."""
    renderer = _renderer(options.model)
    rendered = []
    for row in batch.to_pylist():
        if problem := row_problem(renderer, row, options):
            rendered.append(_unusable(source, row, problem))
        else:
            rendered.append(_render_triplet(renderer, row, options))
    return pa.Table.from_pylist(rendered, TRIPLET_ROWS)


def render_pairs(
    batch: pa.Table, source: str, options: RenderOptions, items: str, catalogue: ray.ObjectRef
) -> pa.Table:
    """Turn a block of RL pairs into PAIR_ROWS, one row per row.

    Args:
        items: the catalogue's file, for messages. catalogue: → [N] int64, the identities of its items.
    """
    renderer = _renderer(options.model)
    rows = batch.to_pylist()
    in_catalogue = np.isin([identity(str(row["item_id"])) for row in rows], ray.get(catalogue, timeout=300))
    rendered = []
    for row, known in zip(rows, in_catalogue, strict=True):
        problem = row_problem(renderer, row, options)
        if problem is None and not known:
            problem = f"the item is not in {items}: drop the row or add the item"
        rendered.append(_unusable(source, row, problem) if problem else _render_pair(row, options))
    return pa.Table.from_pylist(rendered, PAIR_ROWS)


def _unusable(source: str, row: Row, problem: str) -> Row:
    place = f"{source}: query '{row['query_id']}', item '{row['item_id']}'"
    return {"row": 0, "query_key": 0, "problem": f"{place}: {problem}"}  # sorting needs the keys


@lru_cache(maxsize=1)
def _renderer(model: str) -> Renderer:
    # reads the folder's tokenizer.json directly; AutoTokenizer would import torch first, six seconds per process
    return Renderer(Template.load(Path(model)), PreTrainedTokenizerFast.from_pretrained(model))


def _render_triplet(renderer: Renderer, row: Row, options: RenderOptions) -> Row:
    written = row.get("reasoning", "")  # RL pairs have none
    reasoning = written if options.with_reasoning else None
    thought = written.strip() if options.thought_positives else ""
    query_ids = renderer.query_ids(row["query"], reasoning)
    negatives = list(zip(*_negatives(row), strict=True))[: options.max_negatives]
    content = (row["query"], reasoning or thought, str(row["item_id"]), row["title"])
    return {
        **_keys(row, content, [str(item) for item, _ in negatives], options.seed),
        "query_ids": query_ids,
        "start": len(renderer.query_prompt(row["query"])) if options.with_reasoning else len(query_ids),
        "scored": options.with_reasoning and "reasoning" in row,
        "item_ids": renderer.item_ids(row["title"]),
        "negative_ids": [renderer.item_ids(title) for _, title in negatives],
        "thought_ids": renderer.item_ids(thought) if thought else None,
    }


def _render_pair(row: Row, options: RenderOptions) -> Row:
    negative_ids, negative_titles = _negatives(row)
    texts = {name: str(row[name]) for name in RL_PAIRS.names}
    negatives = [str(item) for item in negative_ids]
    content = (texts["query"], texts["item_id"], texts["title"])
    keys = _keys(row, content, negatives, options.seed)
    return {**texts, **keys, "negative_ids": negatives, "negative_titles": negative_titles}


def _keys(row: Row, content: tuple[str, ...], negatives: list[str], seed: int) -> dict[str, Any]:
    return {
        "row": identity(str(seed), *content, *negatives),
        "query_key": query_identity(row["query"]),
        "item_key": identity(str(row["item_id"])),
        "negative_keys": [identity(item) for item in negatives],
        "relevant_keys": [identity(str(item)) for item in row.get("relevant_ids") or []],
    }


def _negatives(row: Row) -> tuple[list[Any], list[Any]]:
    """Return ids and titles of the hard negatives; the columns may be missing."""
    return row.get("negative_ids") or [], row.get("negative_titles") or []


def row_problem(renderer: Renderer, row: Row, options: RenderOptions) -> str | None:
    """Return what is wrong with a row and what to do about it, or None for a usable row."""
    reads_reasoning = (options.with_reasoning or options.thought_positives) and "reasoning" in row
    texts = ("query", "title") + ("reasoning",) * reads_reasoning
    for name in ("query_id", "item_id", *texts):
        if row[name] is None:
            return f"'{name}' is null: fill it or drop the row"
    for name in texts:
        if not isinstance(row[name], str):
            return f"'{name}' must be text, not {type(row[name]).__name__}"
    ids, titles = _negatives(row)
    if len(ids) != len(titles) or None in ids or not all(isinstance(title, str) for title in titles):
        return f"{len(ids)} negative_ids and {len(titles)} negative_titles: each id needs its title"
    relevant = row.get("relevant_ids") or []
    if not isinstance(relevant, list) or None in relevant:
        return "'relevant_ids' must be a list without nulls: convert it, or drop the column"
    for name in ("query", "title"):
        if not renderer.text_ids(row[name]):
            return f"the {name} is empty: fill it or drop the row"
    return None if options.cut else _length_problem(renderer, row, options.with_reasoning)


def _length_problem(renderer: Renderer, row: Row, with_reasoning: bool) -> str | None:
    template = renderer.template
    if (size := len(renderer.text_ids(row["query"]))) > template.max_query_tokens:
        limit = f"max_query_tokens={template.max_query_tokens}"
        return f"the query has {size} tokens, the model's limit is {limit}: shorten it, or set too_long=cut"
    if with_reasoning and (size := len(renderer.text_ids(row.get("reasoning", "")))) > template.budget:
        return f"the reasoning has {size} tokens, the budget is {template.budget}: shorten it, or set too_long=cut"
    return None
