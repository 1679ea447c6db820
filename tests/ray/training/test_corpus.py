"""Training rows through Ray Data: one order whatever the blocks, exact shards, and bad rows named before training."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray.data

from lrem.config import ColdStartConfig, Config, ReinforceConfig, load_config
from lrem.data.files import write_parquet
from lrem.data.known_positives import identity, query_identity
from lrem.data.schema import ITEMS, NEGATIVES, RELEVANT, RL_PAIRS, TRIPLETS
from lrem.errors import DataError
from lrem.modeling.model import ReasoningEmbedder
from ray_apps.cluster.session import cluster
from ray_apps.training import corpus as corpus_module
from ray_apps.training.corpus import Corpus, load_pairs, load_triplets
from ray_apps.training.row_shards import RowSharding

STAGE = ColdStartConfig(workers=2)
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def local_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with cluster(load_config(None, ["ray.num_cpus=4", f"run_dir={tmp_path_factory.mktemp('ray')}"])):
        yield


def make_rows(count: int = 30, **change: Any) -> Rows:
    """Return triplets; `change` replaces columns of row 3."""
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


def write_rows(folder: Path, rows: Rows, columns: pa.Schema, files: int = 1) -> None:
    optional = [field for field in (*NEGATIVES, *RELEVANT) if any(field.name in row for row in rows)]
    schema = pa.schema([*columns, *optional])
    size = -(-len(rows) // files)
    for i in range(files):
        write_parquet(pa.Table.from_pylist(rows[i * size : (i + 1) * size], schema), folder / f"{i}.parquet")


def load(
    tmp_path: Path, model: Path, rows: Rows, files: int = 1, stage: ColdStartConfig = STAGE, as_uri: bool = False
) -> Corpus:
    folder = tmp_path / "triplets"
    write_rows(folder, rows, TRIPLETS, files)
    uri = f"file://{folder}" if as_uri else str(folder)
    return load_triplets(load_config(None, [f"run_dir={tmp_path}", f"paths.triplets={uri}", "seed=5"]), stage, model)


def pairs_config(tmp_path: Path, rows: Rows, files: int = 1) -> Config:
    write_rows(tmp_path / "pairs", rows, RL_PAIRS, files)
    items = [{"item_id": f"p{i}", "title": f"blue linen shirt {i}"} for i in range(20)]
    write_parquet(pa.Table.from_pylist(items, ITEMS), tmp_path / "world/items.parquet")
    return load_config(None, [f"run_dir={tmp_path}", f"paths.rl_pairs={tmp_path}/pairs", "seed=5"])


def table(dataset: ray.data.Dataset | ray.data.DataIterator) -> Rows:
    blocks = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    return [row for block in blocks for row in pa.table(block).to_pylist()]


def shards_of(corpus: Corpus, ranks: int) -> list[Rows]:
    sharding = RowSharding(corpus.epoch.per_query)
    shards = sharding.configure({"train": corpus.dataset}, ranks, worker_handles=None, worker_node_ids=None)
    return [table(shard["train"]) for shard in shards]


def test_a_triplet_is_rendered_completely(tmp_path: Path, tiny: ReasoningEmbedder, tiny_folder: Path) -> None:
    rows = make_rows()
    rendered = {row["row"]: row for row in table(load(tmp_path, tiny_folder, rows).dataset)}
    assert len(rendered) == len(rows)
    for row in rows:
        result = rendered[identity("5", row["query"], row["reasoning"], row["item_id"], row["title"])]
        assert result["query_ids"] == tiny.renderer.query_ids(row["query"], row["reasoning"])
        assert result["query_ids"][: result["start"]] == tiny.renderer.query_prompt(row["query"])
        assert result["item_ids"] == tiny.renderer.item_ids(row["title"])
        assert result["query_key"] == query_identity(row["query"])
        assert result["item_key"] == identity(row["item_id"])
        assert result["negative_ids"] == []


def test_rl_pairs_are_rows_without_sft(tmp_path: Path, tiny_folder: Path) -> None:
    write_rows(tmp_path / "triplets", make_rows(), TRIPLETS, 1)
    write_rows(tmp_path / "pairs", make_rows(34)[30:], RL_PAIRS, 1)
    paths = [
        f"paths.{table}={tmp_path}/{folder}" for table, folder in (("triplets", "triplets"), ("rl_pairs", "pairs"))
    ]
    config = load_config(None, [f"run_dir={tmp_path}", *paths])
    corpus = load_triplets(config, STAGE.model_copy(update={"rl_pairs": True}), tiny_folder)
    assert [sum(row["scored"] is scored for row in table(corpus.dataset)) for scored in (True, False)] == [30, 4]
    assert load_triplets(config, STAGE, tiny_folder).rows == 30


def test_the_order_depends_on_content_alone(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file or four, in any order and in many blocks, by path or URI: the same rows in the same order and shards.

    A shard holds all rows of its queries, of which there are 15; an epoch visits one row of each.
    """
    rows = make_rows()
    first = load(tmp_path / "one", tiny_folder, rows)
    monkeypatch.setattr(corpus_module, "ROWS_PER_BLOCK", 4)
    second = load(tmp_path / "four", tiny_folder, rows[::-1], files=4, as_uri=True)
    assert table(first.dataset) == table(second.dataset)
    assert first.fingerprint == second.fingerprint
    keys = [(row["query_key"], row["row"]) for row in table(first.dataset)]
    assert keys == sorted(keys)
    for corpus in (first, second):
        shards = shards_of(corpus, 4)
        queries = [{row["query_key"] for row in shard} for shard in shards]
        assert sorted(map(len, queries)) == [3, 4, 4, 4]
        assert len(set.union(*queries)) == 15
        assert corpus.epoch == (15, 1)
        assert [row for shard in shards for row in shard] == table(first.dataset)


def test_pairs_are_sorted_and_split_like_one_table(tmp_path: Path, tiny_folder: Path) -> None:
    """Whatever the files: the order is that of the hash of content and seed, and shards are its contiguous parts."""
    rows = make_rows(29)
    for row in rows[::2]:
        row |= {"negative_ids": ["n1", "n2"], "negative_titles": ["hat", "scarf"]}
    keys = [
        {
            "row": identity("5", row["query"], row["item_id"], row["title"], *row.get("negative_ids", [])),
            "query_key": query_identity(row["query"]),
            "item_key": identity(row["item_id"]),
            "negative_keys": [identity(item) for item in row.get("negative_ids", [])],
            "negative_ids": row.get("negative_ids", []),
            "negative_titles": row.get("negative_titles", []),
        }
        for row in rows
    ]
    texts = [{name: row[name] for name in RL_PAIRS.names} for row in rows]
    expected = pa.Table.from_pylist([a | b for a, b in zip(texts, keys, strict=True)]).sort_by("row").to_pylist()
    total = sum(row["row"] for row in expected) % 2**64
    for files, ranks in ((1, 1), (4, 2)):
        config = pairs_config(tmp_path / str(files), rows, files)
        corpus = load_pairs(config, ReinforceConfig(workers=ranks), tiny_folder)
        assert (corpus.rows, corpus.fingerprint) == (29, total)
        assert corpus.known_positives.of(query_identity("red coat 4")).size == 2
        parts = [29 * rank // ranks for rank in range(ranks + 1)]
        assert shards_of(corpus, ranks) == [expected[a:b] for a, b in itertools.pairwise(parts)]


@pytest.mark.parametrize("with_negatives", [0, 1])
def test_negatives_count_in_whichever_file_they_are(tmp_path: Path, tiny_folder: Path, with_negatives: int) -> None:
    rows = make_rows()
    halves = [rows[:15], rows[15:]]
    negatives = {"negative_ids": ["n1"], "negative_titles": ["hat"]}
    halves[with_negatives] = [row | negatives for row in halves[with_negatives]]
    for part, half in enumerate(halves):
        write_rows(tmp_path / f"half{part}", half, TRIPLETS)
        (tmp_path / "triplets").mkdir(exist_ok=True)
        (tmp_path / f"half{part}" / "0.parquet").rename(tmp_path / "triplets" / f"{part}.parquet")
    config = load_config(None, [f"run_dir={tmp_path}", f"paths.triplets={tmp_path}/triplets"])
    corpus = load_triplets(config, STAGE, tiny_folder)
    assert sum(row["negative_keys"] == [identity("n1")] for row in table(corpus.dataset)) == 15


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"title": "  "}, "query 'q1', item 'p3': the title is empty"),
        ({"query": ""}, "query 'q1', item 'p3': the query is empty"),
        ({"query_id": None}, "item 'p3': 'query_id' is null"),
        ({"item_id": "p77"}, "query 'q1', item 'p77': .*world/items.parquet"),
        ({"negative_ids": ["a", "b"], "negative_titles": ["hat"]}, "2 negative_ids and 1 negative_titles"),
        ({"relevant_ids": ["a", None]}, "'relevant_ids' must be a list without nulls"),
    ],
)
def test_bad_pairs_are_named(tmp_path: Path, tiny_folder: Path, change: dict[str, Any], fact: str) -> None:
    config = pairs_config(tmp_path, make_rows(**change))
    with pytest.raises(DataError, match=f"{tmp_path}/pairs: .*{fact}"):
        load_pairs(config, ReinforceConfig(), tiny_folder)


def test_every_positive_of_a_query_is_known(tmp_path: Path, tiny_folder: Path) -> None:
    known = load(tmp_path, tiny_folder, make_rows()).known_positives
    assert set(known.of(query_identity("RED coat 4")).tolist()) == {identity("p8"), identity("p9")}
    assert known.of(12345).tolist() == []
    judged = [row | {"relevant_ids": ["p8", "p30"] if row["query"] == "red coat 4" else None} for row in make_rows()]
    corpus = load(tmp_path / "judged", tiny_folder, judged)
    expected = {identity(item) for item in ("p8", "p9", "p30")}
    assert set(corpus.known_positives.of(query_identity("red coat 4")).tolist()) == expected
    assert "relevant_keys" not in corpus.dataset.columns()
    assert corpus.fingerprint != load(tmp_path / "again", tiny_folder, make_rows()).fingerprint


def test_hard_negatives_are_rendered(tmp_path: Path, tiny: ReasoningEmbedder, tiny_folder: Path) -> None:
    negatives = {"negative_ids": ["n1", "n2", "n3"], "negative_titles": ["hat", "scarf", "tea"]}
    rows = [row | negatives for row in make_rows()]
    corpus = load(tmp_path, tiny_folder, rows, stage=ColdStartConfig(workers=2, max_negatives=2))
    for row in table(corpus.dataset):
        assert row["negative_keys"] == [identity("n1"), identity("n2")]
        assert row["negative_ids"] == [tiny.renderer.item_ids("hat"), tiny.renderer.item_ids("scarf")]


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"title": "  "}, "query 'q1', item 'p3': the title is empty"),
        ({"query": ""}, "the query is empty"),
        ({"reasoning": None}, "'reasoning' is null"),
        ({"item_id": None}, "'item_id' is null"),
        ({"query": "coat " * 70}, "query has .* tokens.*max_query_tokens=64.*too_long=cut"),
        ({"reasoning": "wool, " * 20}, "reasoning has .* tokens.*16.*too_long=cut"),
        ({"negative_ids": ["a", "b"], "negative_titles": ["hat"]}, "2 negative_ids and 1 negative_titles"),
        ({"title": "<emb>"}, "the title is empty"),  # a control token is not text
    ],
)
def test_bad_triplets_are_named(tmp_path: Path, tiny_folder: Path, change: dict[str, Any], fact: str) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}/triplets: .*{fact}"):
        load(tmp_path, tiny_folder, make_rows(**change))


def test_bad_files_are_named(tmp_path: Path, tiny_folder: Path) -> None:
    config = load_config(None, [f"run_dir={tmp_path}"])
    with pytest.raises(DataError, match="triplets.parquet does not exist"):
        load_triplets(config, STAGE, tiny_folder)
    write_parquet(pa.table({"query_id": ["q"], "query": ["a"], "cot": ["b"]}), config.path("triplets"))
    with pytest.raises(DataError, match="triplets.parquet .*'reasoning'"):
        load_triplets(config, STAGE, tiny_folder)
    write_parquet(TRIPLETS.empty_table(), config.path("triplets"))
    with pytest.raises(DataError, match="triplets.parquet has no rows"):
        load_triplets(config, STAGE, tiny_folder)
    with pytest.raises(DataError, match="an epoch visits 2 of 3 rows, too few for 2 workers"):
        load(tmp_path / "few", tiny_folder, make_rows(4)[:3])


def test_duplicates_are_rows_too(tmp_path: Path, tiny_folder: Path) -> None:
    """A corpus with every row twice is another corpus, and another one doubled is yet another."""
    once, twice = make_rows(), make_rows() * 2
    other = make_rows(title="something else") * 2
    corpora = [load(tmp_path / str(i), tiny_folder, rows) for i, rows in enumerate((once, twice, other))]
    assert [corpus.rows for corpus in corpora] == [30, 60, 60]
    assert len({corpus.fingerprint for corpus in corpora}) == 3


def test_numbers_in_place_of_texts_are_refused(tmp_path: Path, tiny_folder: Path) -> None:
    rows = [row | {"query": i} for i, row in enumerate(make_rows())]
    path = write_parquet(pa.Table.from_pylist(rows), tmp_path / "numbers.parquet")
    config = load_config(None, [f"run_dir={tmp_path}", f"paths.triplets={path}"])
    with pytest.raises(DataError, match="numbers.parquet: .*'query' must be text, not int"):
        load_triplets(config, STAGE, tiny_folder)


def test_long_texts_are_cut_on_request(tmp_path: Path, tiny_folder: Path) -> None:
    rows = make_rows(reasoning="wool, " * 20)
    corpus = load(tmp_path, tiny_folder, rows, stage=ColdStartConfig(too_long="cut"))
    longest = max(table(corpus.dataset), key=lambda row: len(row["query_ids"]))
    assert len(longest["query_ids"]) - longest["start"] == 15 + 3  # eight times wool, seven commas
