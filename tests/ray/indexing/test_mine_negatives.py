"""Hard negatives on Ray Data against a brute-force ranking, and the errors around them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrem.config import Config, load_config
from lrem.curation.negatives import select_hard_negatives
from lrem.data.files import write_parquet
from lrem.data.schema import RELEVANT, TRIPLETS
from lrem.errors import DataError, SnapshotError
from lrem.index.bulk_load import ItemBatch, build_snapshot
from lrem.modeling.model import ReasoningEmbedder, fingerprint
from ray_apps.indexing import mine_negatives
from tests.conftest import TITLES

ROWS = [
    {
        "query_id": f"q{i}",
        "query": f"a {title.split()[2]} of {title.split()[1]}",
        "reasoning": title.split()[0],
        "item_id": f"p{i}",
        "title": title,
    }
    for i, title in enumerate(TITLES[:20])
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny: ReasoningEmbedder) -> Config:
    run = tmp_path_factory.mktemp("mine")
    settings = ["mine.window=[2, 12]", "mine.margin=0.02", "mine.count=3"]
    config = load_config(None, [f"run_dir={run}", *settings])
    tiny.save(config.path("model"))
    batch = ItemBatch([f"p{i}" for i in range(len(TITLES))], [{"title": t} for t in TITLES], tiny.encode_items(TITLES))
    build_snapshot(config.path("index"), [batch], fingerprint(config.path("model")), tiny.dimension)
    write_parquet(pa.Table.from_pylist(ROWS, TRIPLETS), config.path("triplets"))
    return config


def test_mined_rows_equal_those_of_a_full_ranking(config: Config, tiny: ReasoningEmbedder) -> None:
    counts = mine_negatives.run(config)
    mined = pq.read_table(config.path("mined")).to_pylist()
    assert counts["rows"] == len(mined) == len(ROWS)
    queries = tiny.encode_queries([row["query"] for row in ROWS], [row["reasoning"] for row in ROWS])
    scores = queries @ tiny.encode_items(TITLES).T
    by_query = {row["query_id"]: row for row in mined}
    found = 0
    for i, row in enumerate(ROWS):
        known = {j for j, other in enumerate(ROWS) if other["query"] == row["query"]}
        window = np.argsort(-scores[i], kind="stable")[1:12]
        expected = [f"p{j}" for j in window if j not in known and scores[i, j] <= scores[i, i] - 0.02][:3]
        got = by_query[row["query_id"]]
        assert got["negative_ids"] == expected
        assert got["negative_titles"] == [TITLES[int(item[1:])] for item in expected]
        assert {name: got[name] for name in TRIPLETS.names} == row
        found += len(expected)
    assert found > 10


def test_a_judged_item_is_never_mined(config: Config, tiny: ReasoningEmbedder) -> None:
    """What the index would give first is listed in `relevant_ids`, and another item takes its place."""
    folder, index, settings = str(config.path("model")), str(config.path("index")), config.mine
    triplets = pa.Table.from_pylist(ROWS, TRIPLETS)
    before = mine_negatives.Miner(folder, index, mine_negatives.relevant_items(triplets), settings)(triplets)
    judged = [ids[:1] for ids in before["negative_ids"].to_pylist()]
    rows = [row | {"relevant_ids": ids or None} for row, ids in zip(ROWS, judged, strict=True)]
    triplets = pa.Table.from_pylist(rows, pa.schema([*TRIPLETS, *RELEVANT]))
    after = mine_negatives.Miner(folder, index, mine_negatives.relevant_items(triplets), settings)(triplets)
    assert sum(map(len, judged)) > 5
    for known, ids in zip(after["relevant_ids"].to_pylist(), after["negative_ids"].to_pylist(), strict=True):
        assert not set(known or ()) & set(ids)
    assert any(after["negative_ids"].to_pylist())


def test_another_models_index_is_refused(config: Config, tmp_path: Path, tiny: ReasoningEmbedder) -> None:
    state = {name: tensor + 0.1 for name, tensor in tiny.lm.state_dict().items()}
    tiny.save(tmp_path / "other", state)
    other = load_config(None, [f"run_dir={config.run_dir}", f"paths.model={tmp_path / 'other'}"])
    with pytest.raises(SnapshotError, match="was built with model"):
        mine_negatives.run(other)


@pytest.mark.slow
def test_a_margin_that_no_item_meets_is_refused(config: Config) -> None:
    narrow = config.model_copy(update={"mine": config.mine.model_copy(update={"margin": 2.5})})
    with pytest.raises(DataError, match="mine.margin"):
        mine_negatives.run(narrow)


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.floats(-1, 1)), max_size=8, unique_by=lambda hit: hit[0]),
    st.sets(st.sampled_from("abcdefgh")),
    st.integers(1, 8),
    st.integers(0, 8),
    st.integers(0, 4),
)
def test_a_chosen_item_satisfies_every_rule(
    hits: list[tuple[str, float]], relevant: set[str], first: int, more: int, count: int
) -> None:
    ranking = sorted(hits, key=lambda hit: -hit[1])
    chosen = select_hard_negatives(ranking, 0.5, relevant, (first, first + more), 0.1, count)
    place = {item: (rank, score) for rank, (item, score) in enumerate(ranking, start=1)}
    assert len(chosen) <= count
    assert not relevant & set(chosen)
    assert all(first <= place[item][0] <= first + more and place[item][1] <= 0.4 + 1e-8 for item in chosen)
    usable = [i for i in place if i not in relevant and first <= place[i][0] <= first + more and place[i][1] <= 0.4]
    assert len(chosen) >= min(count, len(usable))
