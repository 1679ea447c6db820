"""Queries out of a catalogue alone: a small shop whose every want can be read off its columns."""

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
ALL = BootstrapConfig()  # 8000 queries: more than such a shop gives


def row(item_id: str, title: str, kind: str, brand: str | None, colour: str | None, points: str | None) -> dict:
    path = kind.split(" > ")
    return {"item_id": item_id, "title": title, "category": path, "brand": brand, "color": colour} | {
        "bullet_points": points,
        "description": None if points is None else "Made to last.",
    }


def shop() -> pa.Table:
    """Ten boots of three brands, half of them with laces; eight tents for camping of one brand; eight laces of none."""
    stuff = ("leather", "rubber", "suede", "felt", "canvas")
    brands = ["Alpa"] * 4 + ["Bero-Tex"] * 3 + ["Cima"] * 2 + [None]
    points = ["Comes with laces."] * 5 + ["With a zip. Great for you."] * 4 + [None]
    rows = [
        row(
            f"b{i}",
            f"{brands[i] or 'Alpa'} {stuff[i % 5]} boots",
            BOOTS,
            brands[i],
            ["Black", "brown"][i % 2],
            points[i],
        )
        for i in range(10)
    ]
    rows += [
        row(f"t{i}", f"{stuff[i % 5]} camping tent", "Outdoor > Tents", "Dome", "black/green", "Perfect for camping.")
        for i in range(5)
    ]
    rows += [
        row(f"t{i}", f"{stuff[i % 5]} camping tent", "Outdoor > Tents", "Dome", None, "Light.") for i in range(5, 8)
    ]
    rows += [row(f"l{i}", f"{stuff[i % 5]} laces {80 + i} cm", "Care > Laces", None, "X", "Strong.") for i in range(8)]
    return pa.Table.from_pylist(rows)


def made(items: pa.Table, config: BootstrapConfig = ALL, seed: int = 0) -> dict[str, dict[str, set[str]]]:
    """Kind of need → query → item ids."""
    queries, qrels = bootstrap_queries(items, config, seed)
    wanted: dict[str, set[str]] = defaultdict(set)
    for pair in qrels.to_pylist():
        assert pair["grade"] == 1
        assert pair["item_id"] not in wanted[pair["query_id"]]
        wanted[pair["query_id"]].add(pair["item_id"])
    found: dict[str, dict[str, set[str]]] = defaultdict(dict)
    for query in queries.to_pylist():
        found[query["category"]][query["query"]] = wanted.pop(query["query_id"])
    assert not wanted
    return found


def ids(letter: str, places: range | tuple[int, ...]) -> set[str]:
    return {f"{letter}{i}" for i in places}


def test_negative_queries_want_the_items_that_lack_the_feature() -> None:
    found = made(shop())["negative"]
    assert len(found) == 2  # two wordings; a zip stands in no title: it may be no thing
    assert set(found) <= {wording.format(kind="boots", feature="laces") for wording in NEGATIVE_TEMPLATES}
    assert all(items == ids("b", range(5, 10)) for items in found.values())


def test_alternatives_are_of_another_brand_for_sure() -> None:
    found = made(shop())["alternative"]
    others = {"alpa": range(4, 9), "bero tex": (0, 1, 2, 3, 7, 8), "cima": range(7)}  # b9 names no brand in its column
    told = {brand: {text.format(kind="boots", brand=brand) for text in ALTERNATIVE_TEMPLATES} for brand in others}
    assert len(found) == 3  # no alternative to the only brand of tents
    for brand, wordings in told.items():
        [query] = set(found) & wordings
        assert found[query] == ids("b", others[brand])


def test_attributes_are_the_colours_of_the_column() -> None:
    assert made(shop())["attribute"] == {
        "black boots": ids("b", range(0, 10, 2)),
        "brown boots": ids("b", range(1, 10, 2)),
        "black camping tent": ids("t", range(5)),
        "green camping tent": ids("t", range(5)),
    }


def test_questions_are_what_the_texts_say_a_product_is_for() -> None:
    found = made(shop())["question"]
    assert len(found) == 3
    assert set(found) <= {wording.format(use="camping") for wording in QUESTION_TEMPLATES}
    assert all(items == ids("t", range(5)) for items in found.values())


def test_easy_queries_want_every_title_that_holds_their_words() -> None:
    found = made(shop())["easy"]
    stems = {item["item_id"]: set(content_words(item["title"])) for item in shop().to_pylist()}
    assert len(found) > 30
    for query, items in found.items():
        assert items == {item for item, title in stems.items() if set(content_words(query)) <= title}
        assert len(query.split()) >= 2


def test_the_tables_are_those_of_the_schema_and_no_query_stands_twice() -> None:
    queries, qrels = bootstrap_queries(shop(), ALL, 0)
    assert queries.select(QUERIES.names).schema == QUERIES
    assert qrels.schema == QRELS
    assert len({query_identity(text) for text in queries["query"].to_pylist()}) == queries.num_rows
    assert len(set(queries["query_id"].to_pylist())) == queries.num_rows


def test_the_same_seed_makes_the_same_tables() -> None:
    one, other = bootstrap_queries(shop(), ALL, 3), bootstrap_queries(shop(), ALL, 3)
    assert one[0].equals(other[0])
    assert one[1].equals(other[1])
    assert not bootstrap_queries(shop(), ALL, 4)[0].equals(one[0])


def test_shares_and_the_size_are_upper_bounds() -> None:
    few = made(shop(), BootstrapConfig(queries=50, shares={"easy": 0.5, "attribute": 0.04, "alternative": 0.46}))
    assert {need: len(found) for need, found in few.items()} == {"easy": 25, "attribute": 2, "alternative": 3}
    with pytest.raises(ValidationError, match="no kind 'hard'"):
        BootstrapConfig(shares={"hard": 1.0})


def test_a_query_that_fits_too_much_is_left_out() -> None:
    found = made(shop(), BootstrapConfig(most_relevant=5))
    assert max(len(items) for queries in found.values() for items in queries.values()) == 5
    assert "alternative" in found  # to Alpa: five
    assert len(found["alternative"]) == 1


def test_a_catalogue_without_columns_gives_easy_queries() -> None:
    bare = shop().select(["item_id", "title"])
    found = made(bare)
    assert set(found) == {"easy"}
    assert found["easy"] == made(shop(), ALL)["easy"]
    laced = ids("t", (0, 1))
    said = [item["title"] + " with laces" * (item["item_id"] in laced) for item in bare.to_pylist()]
    told = made(bare.set_column(1, "title", [said]))["negative"]  # a kind is the pair of words that most titles share
    assert len(told) == 2
    assert set(told) <= {wording.format(kind="camping tent", feature="laces") for wording in NEGATIVE_TEMPLATES}
    assert all(items == ids("t", range(2, 8)) for items in told.values())


def test_a_column_by_another_name_is_named_in_the_settings() -> None:
    renamed = shop().rename_columns(["item_id", "title", "path", "maker", "shade", "points", "text"])
    config = BootstrapConfig(type_column="path", brand_column="maker", colour_column="shade", text_columns=["points"])
    assert made(renamed, config) == made(shop())
    none = BootstrapConfig(type_column=None, brand_column=None, colour_column=None, text_columns=[])
    assert set(made(shop(), none)) == {"easy"}


@pytest.mark.parametrize("titles", [[], ["for the"], ["a"], ["!"]])
def test_a_catalogue_that_says_nothing_is_an_error(titles: list[Any]) -> None:
    items = pa.table({"item_id": [f"i{i}" for i in range(len(titles))], "title": pa.array(titles, pa.string())})
    with pytest.raises(DataError, match="no query"):
        bootstrap_queries(items, ALL, 0)


def test_a_catalogue_of_one_item_gives_its_title() -> None:
    items = pa.table({"item_id": ["i"], "title": ["Red coats"]})
    assert made(items) == {"easy": {"red coats": {"i"}}}
