"""The teacher's reasoning as an item, for the direct baseline."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lrem.data.schema import RL_PAIRS, TRIPLETS
from lrem.modeling.model import ReasoningEmbedder
from ray_apps.training.row_rendering import RenderOptions, render_triplets

ROW = {"query_id": "q", "query": "red coat", "reasoning": "wool, winter", "item_id": "p", "title": "blue shirt"}


def render(folder: Path, row: dict[str, Any], schema: pa.Schema = TRIPLETS, **options: Any) -> dict[str, Any]:
    given = RenderOptions(str(folder), seed=0, with_reasoning=False, cut=False, thought_positives=True)
    names = [name for name in schema.names if name in row]
    batch = pa.Table.from_pylist([{name: row[name] for name in names}])
    [rendered] = render_triplets(batch, "triplets", given._replace(**options)).to_pylist()
    return dict(rendered)


def test_the_reasoning_becomes_an_item_of_a_direct_row(tiny: ReasoningEmbedder, tiny_folder: Path) -> None:
    row = render(tiny_folder, ROW)
    assert row["thought_ids"] == tiny.renderer.item_ids("wool, winter")
    assert row["query_ids"] == tiny.renderer.query_ids("red coat", None)
    assert render(tiny_folder, ROW, thought_positives=False)["thought_ids"] is None
    assert render(tiny_folder, ROW | {"reasoning": " "})["thought_ids"] is None
    assert render(tiny_folder, ROW, RL_PAIRS)["thought_ids"] is None  # stage 2's pairs have no reasoning


def test_runs_with_other_reasonings_have_other_rows(tiny_folder: Path) -> None:
    rows = [render(tiny_folder, ROW), render(tiny_folder, ROW | {"reasoning": "silk"})]
    assert rows[0]["row"] != rows[1]["row"]


@pytest.mark.parametrize("reasoning", [None, 7])
def test_a_reasoning_that_is_no_text_is_named(tiny_folder: Path, reasoning: Any) -> None:
    assert "'reasoning'" in render(tiny_folder, ROW | {"reasoning": reasoning})["problem"]
