"""Queries from a catalogue alone: a small shop whose relevant items can be read off its columns."""

from collections import defaultdict
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from lrem.config import BootstrapConfig
from lrem.curation.bootstrap import (
    ALTERNATIVE_TEMPLATES,
    NEGATIVE_TEMPLATES,
    QUESTION_TEMPLATES,
    bootstrap_queries,
)
from lrem.data.known_positives import query_identity
from lrem.data.schema import QRELS, QUERIES
from lrem.data.words import content_words
from lrem.errors import DataError

BOOTS = "Clothes > Shoes > Boots"
ALL = BootstrapConfig()  # 8000 queries: more than this shop yields


def row(item_id: str, title: str, kind: str, brand: str | None, colour: str | None, points: str | None) -> dict:
    path = kind.split(" > ")
    return {"item_id": item_id, "title": title, "category": path, "brand": brand, "color": colour} | {
        "bullet_points": points,
        "description": None if points is None else "Made to last.",
    }


def shop() -> pa.Table:
    """Ten boots of three brands, half of them with laces; eight camping tents of one brand; eight laces of none."""
    materials = ("leather", "rubber", "suede", "felt", "canvas")
    brands = ["Alpa"] * 4 + ["Bero-Tex"] * 3 + ["Cima"] * 2 + [None]
    points = ["Comes with laces."] * 5 + ["With a zip. Great for you."] * 4 + [None]
    rows = [
        row(
            f"b{i}",
            f"{brands[i] or 'Alpa'} {materials[i % 5]} boots",
            BOOTS,
            brands[i],
            ["Black", "brown"][i % 2],
            points[i],
        )
        for i in range(10)
    ]
    rows += [
        row(
            f"t{i}",
            f"{materials[i % 5]} camping tent",
            "Outdoor > Tents",
            "Dome",
            "black/green",
            "Perfect for camping.",
        )
        for i in range(5)
    ]
    rows += [
        row(f"t{i}", f"{materials[i % 5]} camping tent", "Outdoor > Tents", "Dome", None, "Light.") for i in range(5, 8)
    ]
    rows += [
        row(f"l{i}", f"{materials[i % 5]} laces {80 + i} cm", "Care > Laces", None, "X", "Strong.") for i in range(8)
    ]
    return pa.Table.from_pylist(rows)


def generate(items: pa.Table, config: BootstrapConfig = ALL, seed: int = 0) -> dict[str, dict[str, set[str]]]:
    """Kind of need → query → relevant item ids."""
    queries, qrels = bootstrap_queries(items, config, seed)
    relevant: dict[str, set[str]] = defaultdict(set)
    for pair in qrels.to_pylist():
        assert pair["grade"] == 1
        assert pair["item_id"] not in relevant[pair["query_id"]]
        relevant[pair["query_id"]].add(pair["item_id"])
    by_need: dict[str, dict[str, set[str]]] = defaultdict(dict)
    for query in queries.to_pylist():
        by_need[query["category"]][query["query"]] = relevant.pop(query["query_id"])
    assert not relevant
    return by_need


def ids(letter: str, numbers: range | tuple[int, ...]) -> set[str]:
    return {f"{letter}{i}" for i in numbers}


def test_negative_queries_match_the_items_without_the_feature() -> None:
    queries = generate(shop())["negative"]
    assert len(queries) == 2  # two wordings; zip is in no title, so it may be no noun
    assert set(queries) <= {wording.format(kind="boots", feature="laces") for wording in NEGATIVE_TEMPLATES}
    assert all(items == ids("b", range(5, 10)) for items in queries.values())


def test_alternatives_are_of_another_known_brand() -> None:
    queries = generate(shop())["alternative"]
    others = {"alpa": range(4, 9), "bero tex": (0, 1, 2, 3, 7, 8), "cima": range(7)}  # b9 has no brand in its column
    wordings = {brand: {text.format(kind="boots", brand=brand) for text in ALTERNATIVE_TEMPLATES} for brand in others}
    assert len(queries) == 3  # no alternative to the only brand of tents
    for brand, texts in wordings.items():
        [query] = set(queries) & texts
        assert queries[query] == ids("b", others[brand])


def test_attributes_are_the_colours_of_the_column() -> None:
    assert generate(shop())["attribute"] == {
        "black boots": ids("b", range(0, 10, 2)),
        "brown boots": ids("b", range(1, 10, 2)),
        "black camping tent": ids("t", range(5)),
        "green camping tent": ids("t", range(5)),
    }


def test_questions_are_the_uses_in_the_texts() -> None:
    queries = generate(shop())["question"]
    assert len(queries) == 3
    assert set(queries) <= {wording.format(use="camping") for wording in QUESTION_TEMPLATES}
    assert all(items == ids("t", range(5)) for items in queries.values())


def test_easy_queries_match_every_title_with_their_words() -> None:
    queries = generate(shop())["easy"]
    stems = {item["item_id"]: set(content_words(item["title"])) for item in shop().to_pylist()}
    assert len(queries) > 30
    for query, items in queries.items():
        assert items == {item for item, title in stems.items() if set(content_words(query)) <= title}
        assert len(query.split()) >= 2


def test_tables_have_the_schema_and_no_query_twice() -> None:
    queries, qrels = bootstrap_queries(shop(), ALL, 0)
    assert queries.select(QUERIES.names).schema == QUERIES
    assert qrels.schema == QRELS
    assert len({query_identity(text) for text in queries["query"].to_pylist()}) == queries.num_rows
    assert len(set(queries["query_id"].to_pylist())) == queries.num_rows


def test_the_same_seed_gives_the_same_tables() -> None:
    one, other = bootstrap_queries(shop(), ALL, 3), bootstrap_queries(shop(), ALL, 3)
    assert one[0].equals(other[0])
    assert one[1].equals(other[1])
    assert not bootstrap_queries(shop(), ALL, 4)[0].equals(one[0])


def test_shares_and_size_are_upper_bounds() -> None:
    few = generate(shop(), BootstrapConfig(queries=50, shares={"easy": 0.5, "attribute": 0.04, "alternative": 0.46}))
    assert {need: len(queries) for need, queries in few.items()} == {"easy": 25, "attribute": 2, "alternative": 3}
    with pytest.raises(ValidationError, match="no kind 'hard'"):
        BootstrapConfig(shares={"hard": 1.0})


def test_a_query_with_too_many_relevant_items_is_left_out() -> None:
    by_need = generate(shop(), BootstrapConfig(most_relevant=5))
    assert max(len(items) for queries in by_need.values() for items in queries.values()) == 5
    assert "alternative" in by_need  # to Alpa: five
    assert len(by_need["alternative"]) == 1


def test_a_catalogue_without_columns_gives_easy_queries() -> None:
    bare = shop().select(["item_id", "title"])
    by_need = generate(bare)
    assert set(by_need) == {"easy"}
    assert by_need["easy"] == generate(shop(), ALL)["easy"]
    laced = ids("t", (0, 1))
    titles = [item["title"] + " with laces" * (item["item_id"] in laced) for item in bare.to_pylist()]
    negative = generate(bare.set_column(1, "title", [titles]))["negative"]  # the kind is the commonest pair of words
    assert len(negative) == 2
    assert set(negative) <= {wording.format(kind="camping tent", feature="laces") for wording in NEGATIVE_TEMPLATES}
    assert all(items == ids("t", range(2, 8)) for items in negative.values())


def test_columns_are_named_by_the_settings() -> None:
    renamed = shop().rename_columns(["item_id", "title", "path", "maker", "shade", "points", "text"])
    config = BootstrapConfig(type_column="path", brand_column="maker", colour_column="shade", text_columns=["points"])
    assert generate(renamed, config) == generate(shop())
    none = BootstrapConfig(type_column=None, brand_column=None, colour_column=None, text_columns=[])
    assert set(generate(shop(), none)) == {"easy"}


@pytest.mark.parametrize("titles", [[], ["for the"], ["a"], ["!"]])
def test_a_catalogue_without_words_is_an_error(titles: list[Any]) -> None:
    items = pa.table({"item_id": [f"i{i}" for i in range(len(titles))], "title": pa.array(titles, pa.string())})
    with pytest.raises(DataError, match="no query"):
        bootstrap_queries(items, ALL, 0)


def test_a_catalogue_of_one_item_yields_its_title() -> None:
    items = pa.table({"item_id": ["i"], "title": ["Red coats"]})
    assert generate(items) == {"easy": {"red coats": {"i"}}}
