"""The shop's common knowledge, read from facts/*.yaml into typed records.

Knows the YAML layout, and how a seed deals out the brand names; does not know items or queries.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from random import Random
from typing import Any

import yaml

TIERS = ("premium", "mid", "budget")


@dataclass(frozen=True)
class Dimension:
    """Something that can be said of a product: its values, and the words for wanting or ruling one out."""

    values: tuple[str, ...]
    limit: str | None = None  # "in {value}"; None: never a side condition
    negated: str | None = None  # the kind of wording, material or quality; None: never ruled out


@dataclass(frozen=True)
class ProductType:
    """A kind of product, its usual price and the dimensions it has, in title order."""

    department: str
    price: float
    has: tuple[str, ...]
    share: float = 1.0


@dataclass(frozen=True)
class Brands:
    """One department's brands: tier of each, and the cheaper rivals of each premium one."""

    tier: Mapping[str, str]
    rivals: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Knowledge:
    """One kind of knowledge: subjects that call for types (`needs`) or for attribute values (`values`)."""

    needs: Mapping[str, tuple[str, ...]]
    values: Mapping[str, tuple[str, ...]]
    about: tuple[str, ...] = ()
    departments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ask:
    """A kind of need that a bridge leads to; without `needs` it is a kind of general knowledge."""

    wordings: tuple[str, ...]
    needs: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Bridge:
    """Facts of two steps: what subjects stand for -> the subjects, and what can be asked of them."""

    subjects: Mapping[str, tuple[str, ...]]
    asks: Mapping[str, Ask]


@dataclass(frozen=True)
class Facts:
    """Everything the shop knows; `wordings` is category -> kind -> templates."""

    dimensions: Mapping[str, Dimension]
    types: Mapping[str, ProductType]
    brands: Mapping[str, Brands]
    occasions: Mapping[str, tuple[str, ...]]
    knowledge: Mapping[str, Knowledge]
    wordings: Mapping[str, Mapping[str, tuple[str, ...]]]
    bridges: Mapping[str, Bridge]

    def brands_of(self, product_type: str) -> Brands:
        """The brands that make `product_type`."""
        return self.brands[self.types[product_type].department]


def load_facts(rng: Random) -> Facts:
    """Read the tables and let `rng` deal the brand names out, so each seed is another market."""
    return Facts(
        dimensions={name: Dimension(**_frozen(entry)) for name, entry in _read("dimensions").items()},
        types={
            name: ProductType(department, **_frozen(entry))
            for department, types in _read("types").items()
            for name, entry in types.items()
        },
        brands={department: _dealt(entry, rng) for department, entry in _read("brands").items()},
        occasions=_frozen(_read("occasions")),
        knowledge={
            kind: Knowledge(**{"needs": {}, "values": {}} | _frozen(entry))
            for kind, entry in _read("knowledge").items()
        },
        wordings=_frozen(_read("wordings")),
        bridges={family: _bridge(_frozen(entry)) for family, entry in _read("bridges").items()},
    )


def _dealt(entry: dict[str, Any], rng: Random) -> Brands:
    names = [name for tier in TIERS for name in entry[tier]]
    new = dict(zip(names, rng.sample(names, len(names)), strict=True))
    return Brands(
        tier={new[name]: tier for tier in TIERS for name in entry[tier]},
        rivals={new[name]: tuple(new[rival] for rival in rivals) for name, rivals in entry["rivals"].items()},
    )


def _bridge(entry: dict[str, Any]) -> Bridge:
    asks = {kind: Ask(ask["wordings"], ask.get("needs", {})) for kind, ask in entry["asks"].items()}
    return Bridge(entry["subjects"], asks)


def _read(table: str) -> dict[str, Any]:
    text = resources.files("lrem.world").joinpath("facts", f"{table}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _frozen(inner) for key, inner in value.items()}
    return tuple(value) if isinstance(value, list) else value
