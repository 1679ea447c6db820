"""From a seed to the tables of a world: items, queries, qrels, the teacher's and the oracle's reasonings."""

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import pyarrow as pa

from lrem.data.files import write_parquet
from lrem.world.catalogue import CatalogueItem, make_items
from lrem.world.combinations import Combination, all_combinations, bridged_combinations
from lrem.world.facts import load_facts
from lrem.world.meaning import Meaning
from lrem.world.split import SampledQuery, split, split_bridged
from lrem.world.teacher import imperfect_reasoning

# A query needs some relevant items, but not a whole department. The minimum applies to a world of FULL_SIZE products;
# in a smaller world it is proportionally smaller.
MIN_RELEVANT, MAX_RELEVANT = 5, 150
FULL_SIZE = 6000


@dataclass(frozen=True)
class World:
    """The tables of a demo world.

    items: item_id, title, category, type, brand, price_tier, colour (nullable), price, in_stock,
        attributes (JSON of the type's dimensions).
    queries: query_id, query, category, split, slice (of test queries: interpolation or composition), explained
        (whether the teacher knows the fact).
    qrels: query_id, item_id, grade (1).
    teacher: query_id, reasoning, of the train queries whose fact the teacher knows.
    gold: query_id, reasoning; the oracle reasoning of every query.
    origins: query_id, fact, constraint, wording, meaning (JSON): how each query was made; not written to disk.
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
    """Create the world of `seed`; the same arguments give the same tables.

    Args:
        bridged_train, bridged_test: additional queries of two-step facts.
        unexplained: share of the facts that the teacher does not know; facts of easy queries are exempt.

    Raises:
        ValueError: the fact tables have too few titles or queries.
    """
    facts = load_facts(Random(f"{seed} brands"))
    items = make_items(facts, products, Random(f"{seed} items"))
    minimum = max(1, round(MIN_RELEVANT * products / FULL_SIZE))
    relevant = _relevant(items, all_combinations(facts), minimum)
    train, test = split(relevant, facts, train_queries, test_queries, Random(f"{seed} split"))
    composed: list[SampledQuery] = []
    if bridged_train:
        bridged = _relevant(items, bridged_combinations(facts), minimum)
        rng = Random(f"{seed} bridged")
        bridged_queries, composed = split_bridged(bridged, facts, train, bridged_train, bridged_test, rng)
        relevant, train = relevant | bridged, train + bridged_queries
    queries = {f"q{number:05d}": query for number, query in enumerate(train + test + composed, start=1)}
    slices = [None] * len(train) + ["interpolation"] * len(test) + ["composition"] * len(composed)
    unknown = _unexplained(train, unexplained, Random(f"{seed} unexplained"))
    rng = Random(f"{seed} teacher")
    explained = {
        query_id: query
        for query_id, query in islice(queries.items(), len(train))
        if query.combination.fact not in unknown
    }
    return World(
        items=_items_table(items),
        queries=_queries_table(queries, slices, unknown),
        qrels=_qrels_table(queries, relevant),
        teacher=_reasonings(explained, lambda meaning: imperfect_reasoning(meaning, facts, rng)),
        gold=_reasonings(queries, lambda meaning: ", ".join(meaning.keywords)),
        origins=_origins_table(queries),
    )


def relevant_ids(meaning: Meaning, by_type: dict[str, list[CatalogueItem]]) -> list[str]:
    """Return the ids of all items that `meaning` accepts; only the items of a target type have to be checked."""
    types = dict.fromkeys(target.type for target in meaning.any_of)
    return sorted(item.item_id for name in types for item in by_type[name] if meaning.accepts(item.fields))


def _relevant(
    items: list[CatalogueItem], combinations: list[Combination], minimum: int
) -> dict[Combination, list[str]]:
    """Return the combinations with `minimum` to MAX_RELEVANT relevant items → the ids of these items."""
    by_type: dict[str, list[CatalogueItem]] = defaultdict(list)
    for item in items:
        by_type[item.fields["type"]].append(item)
    relevant = {combination: relevant_ids(combination.meaning, by_type) for combination in combinations}
    return {combination: ids for combination, ids in relevant.items() if minimum <= len(ids) <= MAX_RELEVANT}


def _items_table(items: list[CatalogueItem]) -> pa.Table:
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


def _unexplained(train: list[SampledQuery], share: float, rng: Random) -> set[str]:
    """Sample the facts that the teacher does not know: the same share of each kind."""
    by_kind: dict[str, list[str]] = defaultdict(list)
    for fact in sorted({query.combination.fact for query in train if query.combination.category != "easy"}):
        by_kind[fact.partition(":")[0]].append(fact)
    return {fact for same_kind in by_kind.values() for fact in rng.sample(same_kind, round(len(same_kind) * share))}


def _queries_table(queries: dict[str, SampledQuery], slices: list[str | None], unknown: set[str]) -> pa.Table:
    return pa.table(
        {
            "query_id": list(queries),
            "query": [query.text for query in queries.values()],
            "category": [query.combination.category for query in queries.values()],
            "split": ["test" if name else "train" for name in slices],
            "slice": pa.array(slices, pa.string()),
            "explained": [query.combination.fact not in unknown for query in queries.values()],
        }
    )


def _qrels_table(queries: dict[str, SampledQuery], relevant: dict[Combination, list[str]]) -> pa.Table:
    pairs = [(query_id, item_id) for query_id, query in queries.items() for item_id in relevant[query.combination]]
    return pa.table(
        {
            "query_id": [query_id for query_id, _ in pairs],
            "item_id": [item_id for _, item_id in pairs],
            "grade": pa.array([1] * len(pairs), pa.int64()),
        }
    )


def _reasonings(queries: dict[str, SampledQuery], reason: Callable[[Meaning], str]) -> pa.Table:
    """Build a table of reasonings; those of easy queries are empty, because their own words suffice."""
    combinations = [query.combination for query in queries.values()]
    texts = ["" if c.category == "easy" else reason(c.meaning) for c in combinations]
    return pa.table({"query_id": list(queries), "reasoning": texts})


def _origins_table(queries: dict[str, SampledQuery]) -> pa.Table:
    combinations = [query.combination for query in queries.values()]
    return pa.table(
        {
            "query_id": list(queries),
            "fact": [c.fact for c in combinations],
            "constraint": [c.constraint for c in combinations],
            "wording": [f"{q.combination.category} {q.combination.kind} {q.wording}" for q in queries.values()],
            "meaning": [c.meaning.to_json() for c in combinations],
        }
    )
