"""Rendered triplets: the keys of judged items, and rows that cannot be used."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from lrem.config import ThoughtsConfig
from lrem.data.known_positives import KnownPositives, identity, query_identity
from lrem.data.schema import RELEVANT, RL_PAIRS, TRIPLETS
from lrem.modeling.model import ReasoningEmbedder
from lrem.training.thoughts import draw_kinds
from ray_apps.training.row_rendering import TRIPLET_ROWS, RenderOptions, render_triplets

ROW = {"query_id": "q1", "query": "red coat", "reasoning": "wool", "item_id": "p1", "title": "red wool coat"}


def render(folder: Path, rows: list[dict[str, object]], schema: pa.Schema) -> pa.Table:
    options = RenderOptions(str(folder), seed=5, with_reasoning=True, cut=False)
    return render_triplets(pa.Table.from_pylist(rows, schema), "triplets.parquet", options)


def test_judged_items_are_known_positives(tiny: ReasoningEmbedder, tiny_folder: Path) -> None:
    rows = [ROW | {"relevant_ids": ["p1", "p2", "p3"]}, ROW | {"query": "Red  coat", "item_id": "p4"}]
    rendered = render(tiny_folder, rows, pa.schema([*TRIPLETS, *RELEVANT]))
    assert rendered.schema == TRIPLET_ROWS
    known = KnownPositives.of_rows(rendered).of(query_identity("red coat"))
    assert set(known.tolist()) == {identity(f"p{i}") for i in (1, 2, 3, 4)}


def test_without_the_column_the_pairs_are_known(tiny: ReasoningEmbedder, tiny_folder: Path) -> None:
    rendered = render(tiny_folder, [ROW], TRIPLETS)
    with_column = render(tiny_folder, [ROW | {"relevant_ids": ["p9"]}], pa.schema([*TRIPLETS, *RELEVANT]))
    assert KnownPositives.of_rows(rendered).of(query_identity("red coat")).tolist() == [identity("p1")]
    assert rendered["row"] == with_column["row"]  # the id of a row does not depend on what else was judged


def test_a_pair_without_a_reasoning_has_an_empty_thought_that_is_not_scored(tiny_folder: Path) -> None:
    pair = {name: value for name, value in ROW.items() if name != "reasoning"}
    [unscored] = render(tiny_folder, [pair], RL_PAIRS).to_pylist()
    [scored] = render(tiny_folder, [ROW | {"reasoning": ""}], TRIPLETS).to_pylist()
    assert (unscored["scored"], scored["scored"]) == (False, True)
    assert unscored["query_ids"] == scored["query_ids"]  # <think></think><emb>
    assert draw_kinds([unscored, scored], ThoughtsConfig(), np.random.default_rng(0)) == ["empty", "teacher"]


def test_relevant_ids_must_be_lists_without_nulls(tiny: ReasoningEmbedder, tiny_folder: Path) -> None:
    text = pa.schema([*TRIPLETS, ("relevant_ids", pa.string())])
    for schema, value in ((text, "p2 p3"), (pa.schema([*TRIPLETS, *RELEVANT]), ["p2", None])):
        [problem] = render(tiny_folder, [ROW | {"relevant_ids": value}], schema)["problem"].to_pylist()
        assert problem.startswith("triplets.parquet: query 'q1', item 'p1': 'relevant_ids' must be a list")
