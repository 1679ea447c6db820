"""Filters over payload fields: a JSON object in, a checked tree out.

The language is the one of Pinecone and Chroma (after MongoDB): `{"brand": "acme", "price": {"$lt": 20}}`. Several
fields, or several operators of a field, must all hold. Operators of a field: $eq, $ne, $in, $nin, $gt, $gte, $lt,
$lte, $exists; of filters: $and, $or, $not. A row that lacks a field matches $ne, $nin and {"$exists": false} of it and
nothing else; a list matches where one of its values does.

Knows the language; does not know where the values lie.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lrem.errors import FilterError

MAX_DEPTH = 8
MAX_TERMS = 1000  # values of $in, parts of $and, all together
EXACT = 2**53  # whole numbers up to it are kept exactly
COMPARISONS = {"$gt", "$gte", "$lt", "$lte"}
NEGATED = {"$ne": "$eq", "$nin": "$in"}
Scalar = str | int | float | bool


class Term(NamedTuple):
    """A leaf: `operator` is $in, one of COMPARISONS, or $exists (its value: a bool)."""

    field: str
    operator: str
    value: Any


class AllOf(NamedTuple):
    """Every part holds; without parts, always."""

    parts: tuple["Filter", ...]


class AnyOf(NamedTuple):
    """One part holds at least; without parts, never."""

    parts: tuple["Filter", ...]


class Not(NamedTuple):
    """The part does not hold."""

    part: "Filter"


Filter = Term | AllOf | AnyOf | Not


def compile_filter(given: Mapping[str, Any]) -> Filter:
    """Check a filter and bring it into its tree; $eq becomes $in, $ne and $nin become Not.

    >>> compile_filter({"brand": "acme", "price": {"$lt": 20}})
    AllOf(parts=(Term(field='brand', operator='$in', value=('acme',)), Term(field='price', operator='$lt', value=20)))

    Raises:
        FilterError: an unknown operator, a value of the wrong kind, or too large a filter.
    """
    found = _filter(given, "filter", 0)
    terms = _size(found)
    if terms > MAX_TERMS:
        raise FilterError(f"filter: {terms} values and parts, at most {MAX_TERMS} are taken: send a smaller filter")
    return found


def _filter(given: Any, place: str, depth: int) -> Filter:
    if depth > MAX_DEPTH:
        raise FilterError(f"{place}: nested deeper than {MAX_DEPTH}: flatten it")
    if not isinstance(given, Mapping):
        raise FilterError(f'{place}: {_kind(given)}, an object like {{"brand": "acme"}} is needed')
    parts = tuple(_entry(key, value, place, depth) for key, value in given.items())
    return parts[0] if len(parts) == 1 else AllOf(parts)


def _entry(key: str, value: Any, place: str, depth: int) -> Filter:
    here = f"{place}.{key}"
    if key in ("$and", "$or"):
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise FilterError(f"{here}: {_kind(value)}, a list of filters is needed")
        parts = tuple(_filter(part, f"{here}[{i}]", depth + 1) for i, part in enumerate(value))
        return AllOf(parts) if key == "$and" else AnyOf(parts)
    if key == "$not":
        return Not(_filter(value, here, depth + 1))
    if key.startswith("$"):
        raise FilterError(f"{here}: no such operator here: $and, $or and $not join filters, the others follow a field")
    if not isinstance(value, Mapping):
        return Term(key, "$in", (_scalar(value, here),))
    parts = tuple(_term(key, operator, wanted, here) for operator, wanted in value.items())
    if not parts:
        raise FilterError(f'{here}: empty, an operator is needed, like {{"$gt": 5}}')
    return parts[0] if len(parts) == 1 else AllOf(parts)


def _term(field: str, operator: str, value: Any, place: str) -> Filter:
    here = f"{place}.{operator}"
    if operator in NEGATED:
        return Not(_term(field, NEGATED[operator], value, place))
    if operator == "$eq":
        return Term(field, "$in", (_scalar(value, here),))
    if operator == "$in":
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise FilterError(f"{here}: {_kind(value)}, a list of values is needed")
        return Term(field, "$in", tuple(_scalar(one, f"{here}[{i}]") for i, one in enumerate(value)))
    if operator in COMPARISONS:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FilterError(f"{here}: {_kind(value)}, a number is needed")
        return Term(field, operator, _scalar(value, here))
    if operator == "$exists":
        if not isinstance(value, bool):
            raise FilterError(f"{here}: {_kind(value)}, true or false is needed")
        return Term(field, "$exists", value)
    known = "$eq, $ne, $in, $nin, $gt, $gte, $lt, $lte, $exists"
    raise FilterError(f"{here}: no such operator, there are {known}")


def _scalar(value: Any, place: str) -> Scalar:
    if not isinstance(value, str | int | float | bool) or value != value:
        raise FilterError(f"{place}: {_kind(value)}, a string, a number, true or false is needed")
    if too_large(value):
        raise FilterError(f"{place}: whole numbers beyond 2^53 are not told apart: keep such ids as strings")
    return value


def too_large(value: Any) -> bool:
    """Whether a value is a whole number that a float cannot hold exactly."""
    return isinstance(value, int) and abs(value) > EXACT


def _size(found: Filter) -> int:
    if isinstance(found, Term):
        return len(found.value) if found.operator == "$in" else 1
    parts = (found.part,) if isinstance(found, Not) else found.parts
    return 1 + sum(_size(part) for part in parts)


def _kind(value: Any) -> str:
    return "null" if value is None else "no number" if value != value else f"{type(value).__name__} given"
