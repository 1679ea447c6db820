"""The catalogue: items of every type, with evenly distributed brands and attribute values, and unique titles."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, cycle, islice, product
from random import Random

from lrem.world.facts import Facts

# Price range of each tier, relative to the type's usual price; the tiers do not overlap.
PRICE_RANGE = {"budget": (0.5, 0.8), "mid": (0.9, 1.3), "premium": (1.6, 2.6)}
IN_STOCK = 0.92  # share of the items


@dataclass(frozen=True)
class CatalogueItem:
    """One product; `fields` holds its type, its brand and its value of each dimension that the type has."""

    item_id: str
    title: str
    category: str
    fields: dict[str, str]
    price_tier: str
    price: float
    in_stock: bool


def make_items(facts: Facts, count: int, rng: Random) -> list[CatalogueItem]:
    """Create exactly `count` items in shuffled order, with ids from p00001.

    Raises:
        ValueError: a type has fewer distinct titles than the items it should get.
    """
    drawn = [fields for name, n in _shares(facts, count) for fields in _draw(facts, name, n, rng)]
    rng.shuffle(drawn)
    return [_item(facts, f"p{number:05d}", fields, rng) for number, fields in enumerate(drawn, start=1)]


def _shares(facts: Facts, count: int) -> Iterator[tuple[str, int]]:
    """Yield the number of items of each type, rounded cumulatively so that they sum to `count`."""
    total = sum(entry.share for entry in facts.types.values())
    ends = [round(count * share / total) for share in accumulate(entry.share for entry in facts.types.values())]
    for name, start, end in zip(facts.types, [0, *ends], ends, strict=False):
        yield name, end - start


def _draw(facts: Facts, product_type: str, count: int, rng: Random) -> list[dict[str, str]]:
    """Draw distinct items of one type, with (nearly) equally frequent values of each field."""
    has = facts.types[product_type].has
    fields = ["brand", *has]
    values = [tuple(facts.brands_of(product_type).tier), *(facts.dimensions[name].values for name in has)]
    columns = [rng.sample(list(islice(cycle(rng.sample(v, len(v))), count)), count) for v in values]
    rows = set(zip(*columns, strict=True))
    unused = [row for row in product(*values) if row not in rows]
    missing = count - len(rows)  # the columns combine to some rows twice
    if missing > len(unused):
        distinct = len(rows) + len(unused)
        raise ValueError(f"'{product_type}' has {distinct} distinct titles, but {count} are needed: lower `products`")
    chosen = sorted(rows) + rng.sample(unused, missing)  # sorted, because a set has no reproducible order
    return [{"type": product_type} | dict(zip(fields, row, strict=True)) for row in chosen]


def _item(facts: Facts, item_id: str, fields: dict[str, str], rng: Random) -> CatalogueItem:
    entry = facts.types[fields["type"]]
    tier = facts.brands_of(fields["type"]).tier[fields["brand"]]
    words = [fields["brand"], *(fields[name] for name in entry.has), fields["type"]]
    return CatalogueItem(
        item_id=item_id,
        title=" ".join(words),
        category=entry.department,
        fields=fields,
        price_tier=tier,
        price=round(entry.price * rng.uniform(*PRICE_RANGE[tier]), 2),
        in_stock=rng.random() < IN_STOCK,
    )
