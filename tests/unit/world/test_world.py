"""The demo world: reproducible, exact relevance, no leak from training to test, and queries that need reasoning."""

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from random import Random
from statistics import mean

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lrem.data.schema import QRELS, QUERIES, REASONINGS, read_items, read_table
from lrem.retrieval.bm25 import Bm25
from lrem.world import World, make_world
from lrem.world.combinations import CATEGORIES, HARD
from lrem.world.facts import Facts, load_facts
from lrem.world.meaning import Meaning, TargetProduct, token_count
from lrem.world.teacher import BUDGET, imperfect_reasoning, neighbours

TABLES = ("items", "queries", "qrels", "teacher", "gold", "origins")


@cache
def default() -> World:
    return make_world(0)


@cache
def small(seed: int = 1) -> World:
    return make_world(seed, products=900, train_queries=400, test_queries=50)


@cache
def facts() -> Facts:
    """The fact tables of the default world."""
    return load_facts(Random("0 brands"))


def texts(table: pa.Table, column: str) -> dict[str, str]:
    """Return the first column of a table → another column."""
    return dict(zip(table.column(0).to_pylist(), table[column].to_pylist(), strict=True))


@cache
def parsed_items() -> dict[str, dict[str, str]]:
    """The default items as flat fields, read back from the table."""
    return {row["item_id"]: row | json.loads(row["attributes"]) for row in default().items.to_pylist()}


@cache
def relevant() -> dict[str, set[str]]:
    item_ids: dict[str, set[str]] = defaultdict(set)
    for row in default().qrels.to_pylist():
        item_ids[row["query_id"]].add(row["item_id"])
    return item_ids


@cache
def rows() -> list[dict[str, str]]:
    """Queries of the default world, each with its origin and its oracle reasoning."""
    gold = texts(default().gold, "reasoning")
    origins = {row["query_id"]: row for row in default().origins.to_pylist()}
    return [row | origins[row["query_id"]] | {"gold": gold[row["query_id"]]} for row in default().queries.to_pylist()]


def of(split: str) -> list[dict[str, str]]:
    return [row for row in rows() if row["split"] == split]


def test_the_same_seed_gives_the_same_tables() -> None:
    again = make_world(1, products=900, train_queries=400, test_queries=50)
    assert all(getattr(again, name).equals(getattr(small(), name)) for name in TABLES)


def test_another_seed_gives_another_world() -> None:
    one, two = small(1), small(2)
    titles = [set(world.items["title"].to_pylist()) for world in (one, two)]
    assert len(titles[0] & titles[1]) < 0.2 * len(titles[0])
    tiers = [
        dict(zip(w.items["brand"].to_pylist(), w.items["price_tier"].to_pylist(), strict=True)) for w in (one, two)
    ]
    assert sum(tiers[0][brand] != tiers[1][brand] for brand in tiers[0]) > 30
    held = [{(r["fact"], r["constraint"]) for r in w.origins.slice(400).to_pylist()} for w in (one, two)]
    assert len(held[0] & held[1]) < 0.5 * len(held[0])


def test_world_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "import hashlib; from lrem.world import make_world; w = make_world(1, 900, 400, 50);"
        f"print(hashlib.sha256(repr([getattr(w, n).to_pylist() for n in {TABLES}]).encode()).hexdigest())"
    )
    outs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outs) == 1


def test_write_creates_the_tables_and_no_other_file(tmp_path: Path) -> None:
    world = small()
    world.write(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "gold.parquet",
        "items.parquet",
        "qrels.parquet",
        "queries.parquet",
        "teacher.parquet",
    ]
    assert read_items(tmp_path / "items.parquet").num_rows == 900
    assert read_table(tmp_path / "queries.parquet", QUERIES).num_rows == 450
    assert read_table(tmp_path / "qrels.parquet", QRELS).num_rows == world.qrels.num_rows
    assert read_table(tmp_path / "teacher.parquet", REASONINGS).num_rows == 400
    assert pq.read_table(tmp_path / "gold.parquet").equals(world.gold)


def test_too_large_a_world_names_what_is_missing() -> None:
    with pytest.raises(ValueError, match="'olive oil' has 96 distinct titles"):
        make_world(0, products=20000)
    with pytest.raises(ValueError, match="1000 question test queries"):
        make_world(0, products=600, train_queries=300, test_queries=5000)


@pytest.mark.parametrize("seed", [1, 7, 42, 1234])
def test_any_seed_gives_a_complete_world(seed: int) -> None:
    world = make_world(seed)
    assert (world.items.num_rows, world.queries.num_rows) == (6000, 7600)


def test_default_catalogue() -> None:
    titles = default().items["title"].to_pylist()
    assert len(titles) == 6000 == len(set(titles))
    assert all(title == title.lower() for title in titles)
    assert default().items["item_id"][0].as_py() == "p00001"
    for item in parsed_items().values():
        words = item["title"].split()
        assert words[0] == item["brand"]
        assert item["title"].endswith(item["type"])
        assert item["colour"] is None or item["colour"] in words
        assert all(value in words for value in json.loads(item["attributes"]).values())


def test_prices_follow_the_tier() -> None:
    ranges: dict[str, list[float]] = defaultdict(list)
    for item in parsed_items().values():
        if item["type"] == "sofa":
            ranges[item["price_tier"]].append(float(item["price"]))
    assert max(ranges["budget"]) < min(ranges["mid"]) <= max(ranges["mid"]) < min(ranges["premium"])


def test_vocabulary_is_small_enough_to_learn() -> None:
    world = default()
    columns = [
        world.items["title"],
        world.queries["query"],
        world.gold["reasoning"],
        world.teacher["reasoning"],
    ]
    words = {w for column in columns for text in column.to_pylist() for w in text.replace(",", " ").split()}
    assert 500 <= len(words) <= 1000


def test_qrels_are_exactly_the_items_that_the_meaning_accepts() -> None:
    for row in of("test")[:200] + of("train")[:100]:
        meaning = json.loads(row["meaning"])
        accepted = {
            item_id
            for item_id, item in parsed_items().items()
            if any(all(item.get(f) == v for f, v in kind.items()) for kind in meaning["any_of"])
            and all(item.get(f) == v for f, v in meaning["all_of"].items())
        }
        assert accepted == relevant()[row["query_id"]], row["query"]


def test_a_negative_query_by_hand() -> None:
    row = next(r for r in rows() if r["fact"] == "not:upholstery:velvet" and r["constraint"] == "armchair")
    assert "velvet" in row["query"]
    by_hand = {
        i for i, item in parsed_items().items() if item["title"].endswith(" armchair") and "velvet" not in item["title"]
    }
    assert relevant()[row["query_id"]] == by_hand
    assert row["gold"] == "corduroy armchair, tweed armchair, vinyl armchair"


def test_an_alternative_query_by_hand() -> None:
    row = next(r for r in rows() if r["category"] == "alternative" and r["constraint"] == "tent")
    brand = row["fact"].removeprefix("rival:")
    tier = {item["brand"]: item["price_tier"] for item in parsed_items().values()}
    rivals = [keyword.removesuffix(" tent") for keyword in row["gold"].split(", ")]
    assert tier[brand] == "premium"
    assert all(tier[rival] in ("mid", "budget") for rival in rivals)
    assert tuple(rivals) == facts().brands["camping"].rivals[brand]
    by_hand = {
        i
        for i, item in parsed_items().items()
        if item["title"].endswith(" tent") and item["title"].split()[0] in rivals
    }
    assert relevant()[row["query_id"]] == by_hand


@pytest.mark.parametrize(
    ("fact", "constraint", "gold"),
    [
        ("occasion:ride an e-bike", "red", "helmet, gloves, vest"),
        ("fruit_season:october", "organic", "pears, grapes, persimmons"),
        ("birthstone:january", "ring", "garnet ring"),
        ("flag:italy", "scarf", "green scarf, white scarf, red scarf"),
        ("anniversary:7th", "teapot", "copper teapot"),
    ],
)
def test_question_and_knowledge_queries_by_hand(fact: str, constraint: str, gold: str) -> None:
    row = next(r for r in rows() if r["fact"] == fact and r["constraint"] == constraint)
    assert row["gold"] == gold
    keywords = [set(keyword.split()) for keyword in gold.split(", ")]
    by_hand = {
        i
        for i, item in parsed_items().items()
        if any(words <= set(item["title"].split()) for words in keywords) and (constraint in item["title"].split())
    }
    assert relevant()[row["query_id"]] == by_hand


def test_every_query_has_a_moderate_number_of_items() -> None:
    sizes = {row["query_id"]: len(relevant()[row["query_id"]]) for row in rows()}
    assert min(sizes.values()) >= 5
    assert max(sizes.values()) <= 150
    assert mean(8 <= size <= 60 for size in sizes.values()) > 0.8


def test_every_keyword_matches_a_relevant_title() -> None:
    for row in rows():
        titles = [set(parsed_items()[i]["title"].split()) for i in relevant()[row["query_id"]]]
        for keyword in filter(None, row["gold"].split(", ")):
            assert any(set(keyword.split()) <= words for words in titles), (row["query"], keyword)


def test_categories_are_balanced() -> None:
    test, train = (Counter(row["category"] for row in of(split)) for split in ("test", "train"))
    assert test == dict.fromkeys(CATEGORIES, 120)
    assert train == dict.fromkeys(HARD, 1435) | {"easy": 1260}
    assert len({row["query"] for row in rows()}) == 7600


@pytest.mark.parametrize("key", [("query",), ("fact", "constraint"), ("fact", "wording")])
def test_training_and_test_do_not_overlap(key: tuple[str, ...]) -> None:
    train, test = ({tuple(row[name] for name in key) for row in of(split)} for split in ("train", "test"))
    assert not train & test


@pytest.mark.parametrize("key", ["fact", "constraint", "wording"])
def test_training_has_every_part_of_a_test_query(key: str) -> None:
    train, test = ({(row["category"], row[key]) for row in of(split)} for split in ("train", "test"))
    assert test <= train


def test_training_has_every_fact_and_wording() -> None:
    taught = {row["fact"] for row in of("train")}
    assert {f"occasion:{name}" for name in facts().occasions} <= taught
    assert {f"rival:{brand}" for brands in facts().brands.values() for brand in brands.rivals} <= taught
    assert {
        f"{kind}:{subject}" for kind, entry in facts().knowledge.items() for subject in (*entry.needs, *entry.values)
    } <= taught
    wordings = [(c, kind, len(t)) for c, kinds in facts().wordings.items() for kind, t in kinds.items()]
    numbered = {f"{c} {kind} {number}" for c, kind, count in wordings for number in range(count)}
    assert numbered == {row["wording"] for row in of("train")}


def test_reasonings_fit_the_budget_and_only_those_of_easy_queries_are_empty() -> None:
    gold, teacher = texts(default().gold, "reasoning"), texts(default().teacher, "reasoning")
    assert list(teacher) == [row["query_id"] for row in of("train")]
    assert list(gold) == [row["query_id"] for row in rows()]
    assert max(map(token_count, [*gold.values(), *teacher.values()])) <= BUDGET
    easy = {row["query_id"] for row in rows() if row["category"] == "easy"}
    assert {q for q, text in gold.items() if not text} == easy
    assert {q for q, text in teacher.items() if not text} == easy & set(teacher)


def test_teacher_is_imperfect_but_mostly_right() -> None:
    teacher = texts(default().teacher, "reasoning")
    pairs = [
        (row["gold"].split(", "), teacher[row["query_id"]].split(", "))
        for row in of("train")
        if row["category"] in HARD
    ]
    overlap = mean(len(set(g) & set(t)) / len(set(g) | set(t)) for g, t in pairs)
    assert 0.7 < overlap < 0.97
    for gold, taught in pairs:
        kept = [keyword for keyword in gold if keyword in taught]
        assert taught[: len(kept)] == kept  # in table order, with a wrong one last
        assert len(taught) <= len(kept) + 1


def test_error_rates_of_the_teacher() -> None:
    meaning = Meaning((TargetProduct("helmet"), TargetProduct("gloves"), TargetProduct("vest")))
    rng = Random(0)
    taught = [imperfect_reasoning(meaning, facts(), rng).split(", ") for _ in range(4000)]
    assert mean(sum(k in t for k in meaning.keywords) for t in taught) / 3 == pytest.approx(0.85, abs=0.01)
    assert mean(any(k not in meaning.keywords for k in t) for t in taught) == pytest.approx(0.2, abs=0.02)


def test_neighbours_share_a_department_or_a_dimension() -> None:
    types = [target.type for target in neighbours(TargetProduct("ring"), facts())]
    assert types == ["necklace", "earrings", "bracelet", "brooch", "tiara"]
    assert neighbours(TargetProduct("sofa", (("upholstery", "velvet"),)), facts()) == [
        TargetProduct("sofa", (("upholstery", other),)) for other in ("corduroy", "tweed", "vinyl")
    ]


@cache
def recall_at_30(category: str, with_oracle: bool) -> float:
    """Return the share of relevant titles (at most 30 of them) that BM25 puts among its first 30."""
    titles = texts(default().items, "title")
    rows_of_category = [row for row in of("test") if row["category"] == category]
    queries = [f"{row['query']} {row['gold']}" if with_oracle else row["query"] for row in rows_of_category]
    hits = Bm25(list(titles), list(titles.values())).search(queries, 30)
    return mean(
        len({item for item, _ in ranking} & relevant()[row["query_id"]]) / min(30, len(relevant()[row["query_id"]]))
        for row, ranking in zip(rows_of_category, hits, strict=True)
    )


@pytest.mark.parametrize(
    ("category", "at_most", "at_least"),
    # A negative query still contains the excluded value, so keywords help BM25 less there.
    [("question", 0.2, 0.9), ("alternative", 0.35, 0.9), ("negative", 0.55, 0.7), ("knowledge", 0.4, 0.9)],
)
def test_hard_queries_need_their_keywords(category: str, at_most: float, at_least: float) -> None:
    assert recall_at_30(category, with_oracle=False) < at_most
    assert recall_at_30(category, with_oracle=True) > at_least


def test_easy_queries_need_no_keywords() -> None:
    assert recall_at_30("easy", with_oracle=False) > 0.95
