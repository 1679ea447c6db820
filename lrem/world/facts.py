"""The shop's common knowledge, read from facts/*.yaml into typed records; the seed assigns the brand names."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from random import Random
from typing import Any

import yaml

TIERS = ("premium", "mid", "budget")


@dataclass(frozen=True)
class Dimension:
    """An attribute of a product: its values, and the words that require or exclude one."""

    values: tuple[str, ...]
    limit: str | None = None  # the wording of a side condition, e.g. "in {value}"; None: never a side condition
    negated: str | None = None  # the kind of wording, material or quality; None: never excluded


@dataclass(frozen=True)
class ProductType:
    """A kind of product, with its usual price and its dimensions in the order of the title."""

    department: str
    price: float
    has: tuple[str, ...]
    share: float = 1.0


@dataclass(frozen=True)
class Brands:
    """One department's brands: brand → price tier, and premium brand → its cheaper rivals."""

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
class NeedKind:
    """A kind of need that a bridge leads to; if `needs` is empty, it is a kind of general knowledge."""

    wordings: tuple[str, ...]
    needs: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Bridge:
    """Two-step facts: what subjects imply → the subjects, and the kinds of need to query them for."""

    subjects: Mapping[str, tuple[str, ...]]
    need_kinds: Mapping[str, NeedKind]


@dataclass(frozen=True)
class Facts:
    """All facts of the shop; `wordings` is category → kind → templates."""

    dimensions: Mapping[str, Dimension]
    types: Mapping[str, ProductType]
    brands: Mapping[str, Brands]
    occasions: Mapping[str, tuple[str, ...]]
    knowledge: Mapping[str, Knowledge]
    wordings: Mapping[str, Mapping[str, tuple[str, ...]]]
    bridges: Mapping[str, Bridge]

    def brands_of(self, product_type: str) -> Brands:
        """Return the brands that make `product_type`."""
        return self.brands[self.types[product_type].department]


def load_facts(rng: Random) -> Facts:
    """Read the tables and assign the brand names by `rng`, so that each seed is a different market."""
    return Facts(
        dimensions={name: Dimension(**_frozen(entry)) for name, entry in _read("dimensions").items()},
        types={
            name: ProductType(department, **_frozen(entry))
            for department, types in _read("types").items()
            for name, entry in types.items()
        },
        brands={department: _shuffled_brands(entry, rng) for department, entry in _read("brands").items()},
        occasions=_frozen(_read("occasions")),
        knowledge={
            kind: Knowledge(**{"needs": {}, "values": {}} | _frozen(entry))
            for kind, entry in _read("knowledge").items()
        },
        wordings=_frozen(_read("wordings")),
        bridges={family: _bridge(_frozen(entry)) for family, entry in _read("bridges").items()},
    )


def _shuffled_brands(entry: dict[str, Any], rng: Random) -> Brands:
    names = [name for tier in TIERS for name in entry[tier]]
    new = dict(zip(names, rng.sample(names, len(names)), strict=True))
    return Brands(
        tier={new[name]: tier for tier in TIERS for name in entry[tier]},
        rivals={new[name]: tuple(new[rival] for rival in rivals) for name, rivals in entry["rivals"].items()},
    )


def _bridge(entry: dict[str, Any]) -> Bridge:
    need_kinds = {kind: NeedKind(need["wordings"], need.get("needs", {})) for kind, need in entry["asks"].items()}
    return Bridge(entry["subjects"], need_kinds)


def _read(table: str) -> dict[str, Any]:
    text = resources.files("lrem.world").joinpath("facts", f"{table}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _frozen(inner) for key, inner in value.items()}
    return tuple(value) if isinstance(value, list) else value
