"""From a seed to the tables of a world: items, queries, qrels, the teacher's and the perfect reasonings.

Knows how the parts fit together and the table columns; the facts, meanings and the split live elsewhere.
"""

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import pyarrow as pa

from lrem.data.files import write_parquet
from lrem.world.catalogue import Item, make_items
from lrem.world.combinations import Combination, all_combinations, bridged_combinations
from lrem.world.facts import load_facts
from lrem.world.meaning import Meaning
from lrem.world.split import Asked, split, split_bridged
from lrem.world.teacher import imperfect

# A query needs some relevant items, but not a whole department; at this many products, at least LEAST of
# them. A smaller world is the same in small: its queries may have proportionally fewer.
LEAST, MOST = 5, 150
FULL_SIZE = 6000


@dataclass(frozen=True)
class World:
    """The tables of a demo world.

    items: item_id, title, category, type, brand, price_tier, colour (nullable), price, in_stock,
        attributes (JSON of the type's dimensions).
    queries: query_id, query, category, split, slice (of test queries: interpolation or composition), explained
        (whether the teacher knows the fact).  qrels: query_id, item_id, grade (1).
    teacher: query_id, reasoning, of train queries that it explains.  gold: query_id, reasoning, of all queries.
    origins: query_id, fact, constraint, wording, meaning (JSON): where each query comes from; not written.
    """

    items: pa.Table
    queries: pa.Table
    qrels: pa.Table
    teacher: pa.Table
    gold: pa.Table
    origins: pa.Table

    def write(self, folder: Path) -> None:
        """Write items, queries, qrels, teacher and gold as parquet into `folder`, each atomically."""
        for name in ("items", "queries", "qrels", "teacher", "gold"):
            write_parquet(getattr(self, name), folder / f"{name}.parquet")


def make_world(
    seed: int,
    products: int = FULL_SIZE,
    train_queries: int = 7000,
    test_queries: int = 600,
    bridged_train: int = 0,
    bridged_test: int = 0,
    unexplained: float = 0.0,
) -> World:
    """The world of `seed`; the same arguments give the same tables.

    Args:
        bridged_train: queries more, of facts of two steps. bridged_test: of these, asked as training never does.
        unexplained: share of the facts, but not of easy ones, that the teacher does not know.

    Raises:
        ValueError: more titles or queries are asked than the fact tables give.
    """
    facts = load_facts(Random(f"{seed} brands"))
    items = make_items(facts, products, Random(f"{seed} items"))
    least = max(1, round(LEAST * products / FULL_SIZE))
    relevant = _relevant(items, all_combinations(facts), least)
    train, test = split(relevant, facts, train_queries, test_queries, Random(f"{seed} split"))
    composed: list[Asked] = []
    if bridged_train:
        bridged = _relevant(items, bridged_combinations(facts), least)
        more, composed = split_bridged(bridged, facts, train, bridged_train, bridged_test, Random(f"{seed} bridged"))
        relevant, train = relevant | bridged, train + more
    asked = {f"q{number:05d}": query for number, query in enumerate(train + test + composed, start=1)}
    slices = [None] * len(train) + ["interpolation"] * len(test) + ["composition"] * len(composed)
    unknown = _unexplained(train, unexplained, Random(f"{seed} unexplained"))
    rng = Random(f"{seed} teacher")
    taught = {q: a for q, a in islice(asked.items(), len(train)) if a.combination.fact not in unknown}
    return World(
        items=_items_table(items),
        queries=_queries_table(asked, slices, unknown),
        qrels=_qrels_table(asked, relevant),
        teacher=_reasonings(taught, lambda meaning: imperfect(meaning, facts, rng)),
        gold=_reasonings(asked, lambda meaning: ", ".join(meaning.keywords)),
        origins=_origins_table(asked),
    )


def relevant_ids(meaning: Meaning, by_type: dict[str, list[Item]]) -> list[str]:
    """Ids of all items that `meaning` accepts; only items of a wanted type are looked at, no other can be."""
    types = dict.fromkeys(wanted.type for wanted in meaning.any_of)
    return sorted(item.item_id for name in types for item in by_type[name] if meaning.accepts(item.fields))


def _relevant(items: list[Item], combinations: list[Combination], least: int) -> dict[Combination, list[str]]:
    """The combinations with `least` to MOST relevant items, and these items."""
    by_type: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_type[item.fields["type"]].append(item)
    found = {combination: relevant_ids(combination.meaning, by_type) for combination in combinations}
    return {combination: ids for combination, ids in found.items() if least <= len(ids) <= MOST}


def _items_table(items: list[Item]) -> pa.Table:
    return pa.table(
        {
            "item_id": [item.item_id for item in items],
            "title": [item.title for item in items],
            "category": [item.category for item in items],
            "type": [item.fields["type"] for item in items],
            "brand": [item.fields["brand"] for item in items],
            "price_tier": [item.price_tier for item in items],
            "colour": pa.array([item.fields.get("colour") for item in items], pa.string()),
            "price": [item.price for item in items],
            "in_stock": [item.in_stock for item in items],
            "attributes": [
                json.dumps({k: v for k, v in item.fields.items() if k not in ("type", "brand", "colour")})
                for item in items
            ],
        }
    )


def _unexplained(train: list[Asked], share: float, rng: Random) -> set[str]:
    """Facts that the teacher does not know: the same share of each kind."""
    by_kind: dict[str, list[str]] = defaultdict(list)
    for fact in sorted({a.combination.fact for a in train if a.combination.category != "easy"}):
        by_kind[fact.partition(":")[0]].append(fact)
    return {fact for same_kind in by_kind.values() for fact in rng.sample(same_kind, round(len(same_kind) * share))}


def _queries_table(asked: dict[str, Asked], slices: list[str | None], unknown: set[str]) -> pa.Table:
    return pa.table(
        {
            "query_id": list(asked),
            "query": [a.query for a in asked.values()],
            "category": [a.combination.category for a in asked.values()],
            "split": ["test" if name else "train" for name in slices],
            "slice": pa.array(slices, pa.string()),
            "explained": [a.combination.fact not in unknown for a in asked.values()],
        }
    )


def _qrels_table(asked: dict[str, Asked], relevant: dict[Combination, list[str]]) -> pa.Table:
    pairs = [(query_id, item_id) for query_id, a in asked.items() for item_id in relevant[a.combination]]
    return pa.table(
        {
            "query_id": [query_id for query_id, _ in pairs],
            "item_id": [item_id for _, item_id in pairs],
            "grade": pa.array([1] * len(pairs), pa.int64()),
        }
    )


def _reasonings(asked: dict[str, Asked], reason: Callable[[Meaning], str]) -> pa.Table:
    """Easy queries get an empty reasoning: their own words are all there is to say."""
    texts = ["" if a.combination.category == "easy" else reason(a.combination.meaning) for a in asked.values()]
    return pa.table({"query_id": list(asked), "reasoning": texts})


def _origins_table(asked: dict[str, Asked]) -> pa.Table:
    combinations = [a.combination for a in asked.values()]
    return pa.table(
        {
            "query_id": list(asked),
            "fact": [c.fact for c in combinations],
            "constraint": [c.constraint for c in combinations],
            "wording": [f"{a.combination.category} {a.combination.kind} {a.wording}" for a in asked.values()],
            "meaning": [c.meaning.to_json() for c in combinations],
        }
    )
