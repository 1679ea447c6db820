"""Curation with the catalogue as teacher: the demo world with near-duplicates added, and a shop without a query log."""

import re
from collections import Counter
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lrem.config import BootstrapConfig, Config, load_config
from lrem.curation.teacher import DEFAULT_BUDGET
from lrem.data.files import write_parquet
from lrem.data.words import content_words, stem, words
from lrem.errors import DataError
from lrem.retrieval.bm25 import Bm25
from lrem.world import make_world
from ray_apps.curation import bootstrap, curate
from ray_apps.evaluation import inputs
from tests.ray.curation.small_shop import decided_rows, with_settings

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def curated_world(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The demo world in which a third of the queries occur twice, in other words, curated by its own catalogue."""
    folder = tmp_path_factory.mktemp("world")
    make_world(1, products=2500, train_queries=300, test_queries=50).write(folder / "world")
    config = load_config(None, [f"run_dir={folder}", "curate.teacher=catalogue", "ray.num_cpus=4"])
    queries = pq.read_table(config.path("queries"))
    rng, rows, twins = Random(0), queries.to_pylist(), {}
    for row in rng.sample([row for row in rows if row["split"] == "train"], 100):
        shuffled = rng.sample(row["query"].split(), len(row["query"].split()))
        extra = " extra" * (len(set(content_words(row["query"]))) >= 5)
        twin = f"{row['query_id']}-twin"
        twins[twin] = row | {"query_id": twin, "query": f"the {' '.join(shuffled)}{extra}"}
    qrels = pq.read_table(config.path("qrels"))
    copied = [pair | {"query_id": f"{pair['query_id']}-twin"} for pair in qrels.to_pylist()]
    copied = [pair for pair in copied if pair["query_id"] in twins]
    write_parquet(
        pa.concat_tables([queries, pa.Table.from_pylist([*twins.values()], queries.schema)]), config.path("queries")
    )
    write_parquet(pa.concat_tables([qrels, pa.Table.from_pylist(copied, qrels.schema)]), config.path("qrels"))
    config = with_settings(config, dev_share=0.15, test_share=0.2, part_rows=150, actors=2)
    curate.run(config)
    return config


def test_the_keywords_reach_relevant_items_that_the_query_does_not(curated_world: Config) -> None:
    items = pq.read_table(curated_world.path("items"))
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    bm25 = Bm25(list(titles), list(titles.values()))
    relevant = {(row["query_id"], row["item_id"]) for row in pq.read_table(curated_world.path("qrels")).to_pylist()}
    rows = decided_rows(curated_world)
    kept = [row for row in rows.values() if row["outcome"] == "kept"]
    hard = [row for row in rows.values() if row["hard"]]
    assert len(kept) > 0.5 * len(hard) > 50
    assert all(row["hard"] and row["reasoning"] for row in kept)
    rankings = bm25.search([row["query"] for row in kept], curated_world.curate.top_k)
    for row, ranking in zip(kept, rankings, strict=True):
        own = {item for item, _ in ranking} & set(row["items"])
        assert len(row["items"]) > len(own) <= 2  # at most half of four, and beside them at least one that is new
        assert {(row["query_id"], item) for item in row["items"]} <= relevant
        assert {(row["query_id"], item) for item in row["relevant"]} == {
            pair for pair in relevant if pair[0] == row["query_id"] and pair[1] in titles
        }
        query_stems = {stem(word) for word in words(row["query"])}
        assert all({stem(word) for word in phrase.split()} - query_stems for phrase in row["reasoning"].split(", "))
        assert len(re.findall(r"\w+|,", row["reasoning"])) <= DEFAULT_BUDGET


def test_nothing_leaks_between_the_files_of_the_split(curated_world: Config) -> None:
    """No query and no near-duplicate is in two of the four files, and every row comes from a decided query."""
    folder = curated_world.path("triplets").parent
    tables = {
        name: pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("triplets", "rl_pairs", "dev", "test")
    }
    file_of: dict[str, str] = {}
    for name, rows in tables.items():
        for row in rows:
            assert file_of.setdefault(row["query_id"], name) == name
    by_words: dict[frozenset[str], set[str]] = {}
    for name, rows in tables.items():
        for row in rows:
            stems = frozenset(content_words(row["query"]))
            shorter = [stems - {word} for word in stems] if len(stems) >= 5 else []
            for word_set in (stems, *shorter):
                by_words.setdefault(word_set, set()).add(name)
    assert all(len(names) == 1 for names in by_words.values())
    twins = [query for query in file_of if f"{query}-twin" in file_of]
    assert len(twins) > 40
    assert all(file_of[query] == file_of[f"{query}-twin"] for query in twins)
    decided = decided_rows(curated_world)
    pairs = [(row["query_id"], row["item_id"]) for name in ("triplets", "rl_pairs", "dev") for row in tables[name]]
    assert len(pairs) == len(set(pairs))
    assert all(item in decided[query]["items"] for query, item in pairs)
    assert len(tables["test"]) == sum(name == "test" for name in file_of.values())  # one row per query
    assert Counter(file_of.values())["test"] == pytest.approx(0.2 * len(decided), abs=30)
    draws = {name: [decided[query]["draw"] for query in file_of if file_of[query] == name] for name in tables}
    assert max(draws["rl_pairs"]) < 0.65  # those without a reasoning come from the share of the cold start
    assert min(draws["dev"]) >= 0.85 > max(draws["test"]) >= min(draws["test"]) >= 0.65 > max(draws["triplets"])
    assert min(draws["triplets"]) >= 0.25


@pytest.fixture
def boots_and_laces(tmp_path: Path) -> Config:
    """Ten boots, of which three come with laces, and eight laces; no query log."""
    config = load_config(None, [f"run_dir={tmp_path}", "ray.num_cpus=4", "curate.rl_share=0.5"])
    materials = ("leather", "rubber", "suede", "felt", "canvas")
    titles = {
        **{f"b{i}": f"{('Alpa', 'Bero')[i // 5]} {materials[i % 5]} boots" for i in range(10)},
        **{f"l{i}": f"{materials[i % 5]} laces {80 + i} cm" for i in range(8)},
    }
    rows = [
        {"item_id": item, "title": title, "category": ("boots", "laces")[item[0] == "l"], "brand": title.split()[0]}
        | {"description": "Comes with laces." * (item in ("b0", "b1", "b2"))}
        for item, title in titles.items()
    ]
    write_parquet(pa.Table.from_pylist(rows), config.path("items"))
    return config.model_copy(update={"bootstrap": BootstrapConfig(queries=60)})


def test_a_shop_without_a_query_log(boots_and_laces: Config, tmp_path: Path) -> None:
    config = boots_and_laces
    counters = bootstrap.run(config)
    queries = pq.read_table(tmp_path / "bootstrap/queries.parquet")
    assert counters["queries"] == queries.num_rows
    negative = [row["query_id"] for row in queries.to_pylist() if row["category"] == "negative"]
    qrels = pq.read_table(tmp_path / "bootstrap/qrels.parquet").to_pylist()
    assert {row["item_id"] for row in qrels if row["query_id"] in negative} == {f"b{i}" for i in range(3, 10)}
    assert set(decided_rows(bootstrap.bootstrap_settings(config))) == set(queries["query_id"].to_pylist())
    for name in ("triplets", "rl_pairs"):
        assert pq.read_table(config.path(name)).num_rows > 0
    with pytest.raises(DataError, match=r"queries.parquet does not exist: .*`lrem import`"):
        inputs.test_set(config)  # generated queries are a test set only if test_share is set
    kept = bootstrap.run(with_settings(config, test_share=0.3))["test"]
    test = inputs.test_set(config)
    assert (len(test.queries), test.left_out) == (kept, 0)
    assert all(test.qrels[query_id] for query_id in test.queries)
    counters = bootstrap.run(config)
    assert not config.path("test").exists()
    write_parquet(pa.table({"item_id": ["i"], "title": ["red coat"]}), config.path("items"))
    with pytest.raises(DataError, match="nothing left to train on"):
        bootstrap.run(config)
    assert pq.read_table(config.path("triplets")).num_rows == counters["triplets"]  # nothing was replaced
    write_parquet(
        pa.table({"item_id": pa.array([], pa.string()), "title": pa.array([], pa.string())}), config.path("items")
    )
    with pytest.raises(DataError, match="has no rows"):
        bootstrap.run(config)
