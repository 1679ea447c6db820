"""Triplets through Ray Data: one order whatever the blocks, exact shards, and bad rows named before training."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lrem.config import ColdStartConfig, Config, load_config
from lrem.data.files import write_parquet
from lrem.data.known_positives import identity, query_identity
from lrem.data.schema import NEGATIVES, TRIPLETS
from lrem.errors import DataError
from lrem.modeling.model import ReasoningEmbedder
from ray_apps.cluster.session import cluster
from ray_apps.training import corpus
from ray_apps.training.row_shards import RowSharding

STAGE = ColdStartConfig(workers=2)


def triplets(count: int = 30, **change: Any) -> list[dict[str, Any]]:
    """Made-up rows; `change` replaces columns of row 3."""
    rows = [
        {
            "query_id": f"q{i // 2}",
            "query": f"red coat {i // 2}",
            "reasoning": "wool, winter" if i % 3 else "",
            "item_id": f"p{i % 20}",
            "title": f"blue linen shirt {i % 20}",
        }
        for i in range(count)
    ]
    rows[3] |= change
    return rows


@pytest.fixture(scope="module", autouse=True)
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with cluster(load_config(None, [f"run_dir={tmp_path_factory.mktemp('ray')}"])):
        yield


def load(
    tmp_path: Path,
    model: Path,
    rows: list[dict[str, Any]],
    files: int = 1,
    stage: ColdStartConfig = STAGE,
    uri: bool = False,
) -> corpus.Corpus:
    folder = tmp_path / "triplets"
    size = -(-len(rows) // files)
    schema = pa.schema([*TRIPLETS, *NEGATIVES]) if any("negative_ids" in row for row in rows) else TRIPLETS
    for i in range(files):
        made = pa.Table.from_pylist(rows[i * size : (i + 1) * size], schema)
        write_parquet(made, folder / f"{i}.parquet")
    place = f"file://{folder}" if uri else str(folder)
    config: Config = load_config(None, [f"run_dir={tmp_path}", f"paths.triplets={place}", "seed=5"])
    return corpus.load_triplets(config, stage, model)


def table(loaded: corpus.Corpus) -> list[dict[str, Any]]:
    parts = loaded.dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    return [row for part in parts for row in pa.table(part).to_pylist()]


def test_a_row_is_rendered_whole(tmp_path: Path, tiny: ReasoningEmbedder, tiny_folder: Path) -> None:
    rows = triplets()
    got = {row["row"]: row for row in table(load(tmp_path, tiny_folder, rows))}
    assert len(got) == len(rows)
    for row in rows:
        made = got[identity("5", row["query"], row["reasoning"], row["item_id"], row["title"])]
        assert made["query_ids"] == tiny.renderer.query(row["query"], row["reasoning"])
        assert made["query_ids"][: made["start"]] == tiny.renderer.query_prompt(row["query"])
        assert made["item_ids"] == tiny.renderer.item(row["title"])
        assert made["query_key"] == query_identity(row["query"])
        assert made["item_key"] == identity(row["item_id"])
        assert made["negative_ids"] == []


def test_the_order_depends_on_content_alone(tmp_path: Path, tiny_folder: Path) -> None:
    """One file or four, in any order, through a path or a URI: the same rows in the same order and shards."""
    rows = triplets()
    first = load(tmp_path / "one", tiny_folder, rows)
    second = load(tmp_path / "four", tiny_folder, rows[::-1], files=4, uri=True)
    assert table(first) == table(second)
    assert first.fingerprint == second.fingerprint
    assert [row["row"] for row in table(first)] != sorted(range(30))
    for loaded in (first, second):
        shards = RowSharding().configure({"train": loaded.dataset}, 4, None, None)
        sizes = [sum(len(b["row"]) for b in shard["train"].iter_batches(batch_size=None)) for shard in shards]
        assert sum(sizes) == 30
        assert max(sizes) - min(sizes) <= 1
        ids = [int(i) for shard in shards for b in shard["train"].iter_batches(batch_size=None) for i in b["row"]]
        assert ids == [row["row"] for row in table(first)]


def test_every_positive_of_a_query_is_known(tmp_path: Path, tiny_folder: Path) -> None:
    known = load(tmp_path, tiny_folder, triplets()).known
    assert set(known.of(query_identity("RED coat 4")).tolist()) == {identity("p8"), identity("p9")}
    assert known.of(12345).tolist() == []


def test_hard_negatives_are_rendered(tmp_path: Path, tiny: ReasoningEmbedder, tiny_folder: Path) -> None:
    rows = [
        row | {"negative_ids": ["n1", "n2", "n3"], "negative_titles": ["hat", "scarf", "tea"]} for row in triplets()
    ]
    path = write_parquet(pa.Table.from_pylist(rows, pa.schema([*TRIPLETS, *NEGATIVES])), tmp_path / "mined.parquet")
    config = load_config(None, [f"run_dir={tmp_path}", f"paths.triplets={path}"])
    got = table(corpus.load_triplets(config, ColdStartConfig(workers=2, max_negatives=2), tiny_folder))
    assert all(row["negative_keys"] == [identity("n1"), identity("n2")] for row in got)
    assert all(row["negative_ids"] == [tiny.renderer.item("hat"), tiny.renderer.item("scarf")] for row in got)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": "  "}, "query 'q1', item 'p3': the title is empty: fill it or drop the row"),
        ({"query": ""}, "the query is empty"),
        ({"reasoning": None}, "'reasoning' is null"),
        ({"item_id": None}, "'item_id' is null"),
        ({"query": "coat " * 70}, "query has .* tokens, the model's limit is max_query_tokens=64.*too_long=cut"),
        ({"reasoning": "wool, " * 20}, "reasoning has .* tokens, the budget is 16.*too_long=cut"),
        ({"negative_ids": ["a", "b"], "negative_titles": ["hat"]}, "2 negative_ids and 1 negative_titles"),
        ({"title": "<emb>"}, "the title is empty"),  # a control token is no text
    ],
)
def test_bad_rows_are_named(tmp_path: Path, tiny_folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, tiny_folder, triplets(**change))


def test_bad_files_are_named(tmp_path: Path, tiny_folder: Path) -> None:
    config = load_config(None, [f"run_dir={tmp_path}"])
    with pytest.raises(DataError, match="triplets.parquet does not exist"):
        corpus.load_triplets(config, STAGE, tiny_folder)
    write_parquet(pa.table({"query_id": ["q"], "query": ["a"], "cot": ["b"]}), config.path("triplets"))
    with pytest.raises(DataError, match="no column 'reasoning'"):
        corpus.load_triplets(config, STAGE, tiny_folder)
    write_parquet(TRIPLETS.empty_table(), config.path("triplets"))
    with pytest.raises(DataError, match="has no rows"):
        corpus.load_triplets(config, STAGE, tiny_folder)
    with pytest.raises(DataError, match="3 rows for 2 workers"):
        load(tmp_path / "few", tiny_folder, triplets(4)[:3])


def test_duplicates_are_rows_too(tmp_path: Path, tiny_folder: Path) -> None:
    """A corpus with every row twice is another corpus, and another one doubled is yet another."""
    once, twice = triplets(), triplets() * 2
    other = triplets(title="something else") * 2
    loaded = [load(tmp_path / str(i), tiny_folder, rows) for i, rows in enumerate((once, twice, other))]
    assert [corpus.rows for corpus in loaded] == [30, 60, 60]
    assert len({corpus.fingerprint for corpus in loaded}) == 3


def test_numbers_for_texts_are_refused(tmp_path: Path, tiny_folder: Path) -> None:
    rows = [row | {"query": i} for i, row in enumerate(triplets())]
    path = write_parquet(pa.Table.from_pylist(rows), tmp_path / "numbers.parquet")
    config = load_config(None, [f"run_dir={tmp_path}", f"paths.triplets={path}"])
    with pytest.raises(DataError, match="'query' is a int: text is needed"):
        corpus.load_triplets(config, STAGE, tiny_folder)


def test_too_long_is_cut_on_demand(tmp_path: Path, tiny: ReasoningEmbedder, tiny_folder: Path) -> None:
    loaded = load(tmp_path, tiny_folder, triplets(reasoning="wool, " * 20), stage=ColdStartConfig(too_long="cut"))
    longest = max(table(loaded), key=lambda row: len(row["query_ids"]))
    assert len(longest["query_ids"]) - longest["start"] == 16 + 3
