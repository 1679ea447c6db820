"""Filters over payload fields: a JSON object is validated and compiled to a tree.

The language is that of Pinecone and Chroma (after MongoDB): `{"brand": "acme", "price": {"$lt": 20}}`. Several fields,
or several operators of one field, must all hold. Operators of a field: $eq, $ne, $in, $nin, $gt, $gte, $lt, $lte,
$exists; of filters: $and, $or, $not. $gt, $gte, $lt and $lte compare numbers with numbers, and texts that are ISO
dates with an ISO date. An item without a field, or with null in it, matches only $ne, $nin and {"$exists": false} of
it; a list matches if one of its values does.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from lrem.data.payloads import too_large
from lrem.errors import FilterError

MAX_DEPTH = 8
MAX_TERMS = 1000  # conditions and combinations in total
MAX_VALUES = 16_384  # of all $in and $nin
ISO_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d.*)?", re.ASCII)
COMPARISONS = {"$gt", "$gte", "$lt", "$lte"}
NEGATED = {"$ne": "$eq", "$nin": "$in"}
KINDS = {
    "text": "texts",
    "bool": "true or false",
    "number": "numbers",
    "date": "ISO dates",
    "other": "objects or lists, of which only $exists can be filtered",
}
Scalar = str | int | float | bool


class Term(NamedTuple):
    """A leaf: `operator` is $in, one of COMPARISONS, or $exists (its value: a bool)."""

    field: str
    operator: str
    value: Any


class AllOf(NamedTuple):
    """All parts must hold; true without parts."""

    parts: tuple["Filter", ...]


class AnyOf(NamedTuple):
    """At least one part must hold; false without parts."""

    parts: tuple["Filter", ...]


class Not(NamedTuple):
    """The part must not hold."""

    part: "Filter"


Filter = Term | AllOf | AnyOf | Not


def compile_filter(where: Mapping[str, Any]) -> Filter:
    """Validate a filter and return its tree; $eq becomes $in, $ne and $nin become Not.

    >>> compile_filter({"brand": "acme", "price": {"$lt": 20}})
    AllOf(parts=(Term(field='brand', operator='$in', value=('acme',)), Term(field='price', operator='$lt', value=20)))

    Raises:
        FilterError: an operator is unknown, a value has the wrong type, or the filter is too large.
    """
    tree = _filter(where, "filter", 0)
    leaves = list(terms(tree))
    if len(leaves) + _combinations(tree) > MAX_TERMS:
        raise FilterError(f"filter: more than {MAX_TERMS} conditions: send a smaller filter, or $in in place of $or")
    values = sum(len(term.value) for term in leaves if term.operator == "$in")
    if values > MAX_VALUES:
        raise FilterError(f"filter: {values} values, at most {MAX_VALUES} are allowed: send several filters")
    return tree


def require_comparable(where: Mapping[str, Any], kinds: Mapping[str, Collection[str]]) -> None:
    """Check that each condition can be compared with some value of its field, if the field has values.

    Args:
        where: a valid filter.
        kinds: field → what its values are: text, bool, number, date, other.

    Raises:
        FilterError: a condition could match nothing.
    """
    for term in terms(compile_filter(where)):
        has = set(kinds.get(term.field, ()))
        if term.operator == "$exists" or not has:
            continue
        if term.operator == "$in":
            needs = {"bool" if isinstance(v, bool) else "text" if isinstance(v, str) else "number" for v in term.value}
        else:
            needs = {"date" if isinstance(term.value, str) else "number"}
        if needs and not needs & has:
            named = " or ".join(KINDS[kind] for kind in KINDS if kind in has)
            wanted = " or ".join(KINDS[kind] for kind in KINDS if kind in needs)
            raise FilterError(
                f"filter.{term.field}: its values are {named}, and {term.operator} compares {wanted}: compare the "
                "field with a value of its own type"
            )


def timestamp(text: str) -> float:
    """Return an ISO date or date and time as seconds since 1970, without a time zone in UTC; NaN for any other text.

    >>> timestamp("1970-01-02"), timestamp("1970-01-01T01:00:00+01:00"), timestamp("soon")
    (86400.0, 0.0, nan)
    """
    if not ISO_DATE.fullmatch(text):
        return float("nan")
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return float("nan")


def _filter(given: Any, place: str, depth: int) -> Filter:
    if depth > MAX_DEPTH:
        raise FilterError(f"{place}: nested deeper than {MAX_DEPTH} levels: flatten it")
    if not isinstance(given, Mapping):
        raise FilterError(f'{place}: {_kind(given)}, but an object like {{"brand": "acme"}} is required')
    parts = tuple(_entry(key, value, place, depth) for key, value in given.items())
    return parts[0] if len(parts) == 1 else AllOf(parts)


def _entry(key: str, value: Any, place: str, depth: int) -> Filter:
    here = f"{place}.{key}"
    if key in ("$and", "$or"):
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise FilterError(f"{here}: {_kind(value)}, but a list of filters is required")
        parts = tuple(_filter(part, f"{here}[{i}]", depth + 1) for i, part in enumerate(value))
        return AllOf(parts) if key == "$and" else AnyOf(parts)
    if key == "$not":
        return Not(_filter(value, here, depth + 1))
    if key.startswith("$"):
        raise FilterError(f"{here}: no such operator here: use $and, $or or $not, or put it below a field")
    if not isinstance(value, Mapping):
        return Term(key, "$in", (_scalar(value, here),))
    parts = tuple(_term(key, operator, operand, here) for operator, operand in value.items())
    if not parts:
        raise FilterError(f'{here}: empty, but an operator like {{"$gt": 5}} is required')
    return parts[0] if len(parts) == 1 else AllOf(parts)


def _term(field: str, operator: str, value: Any, place: str) -> Filter:
    here = f"{place}.{operator}"
    if operator in NEGATED:
        return Not(_term(field, NEGATED[operator], value, place))
    if operator == "$eq":
        return Term(field, "$in", (_scalar(value, here),))
    if operator == "$in":
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise FilterError(f"{here}: {_kind(value)}, but a list of values is required")
        return Term(field, "$in", tuple(_scalar(element, f"{here}[{i}]") for i, element in enumerate(value)))
    if operator in COMPARISONS:
        comparable = timestamp(value) == timestamp(value) if isinstance(value, str) else isinstance(value, int | float)
        if isinstance(value, bool) or not comparable:
            raise FilterError(f"{here}: {_kind(value)}, but a number or an ISO date such as 2024-05-01 is required")
        return Term(field, operator, _scalar(value, here))
    if operator == "$exists":
        if not isinstance(value, bool):
            raise FilterError(f"{here}: {_kind(value)}, but true or false is required")
        return Term(field, "$exists", value)
    known = "$eq, $ne, $in, $nin, $gt, $gte, $lt, $lte, $exists"
    raise FilterError(f"{here}: no such operator: use one of {known}")


def _scalar(value: Any, place: str) -> Scalar:
    if not isinstance(value, str | int | float | bool) or value != value:
        raise FilterError(f"{place}: {_kind(value)}, but a string, a number, true or false is required")
    if too_large(value):
        raise FilterError(f"{place}: whole numbers beyond 2^53 cannot be compared exactly: store such ids as strings")
    return value


def _parts(tree: Filter) -> tuple[Filter, ...]:
    return () if isinstance(tree, Term) else (tree.part,) if isinstance(tree, Not) else tree.parts


def terms(tree: Filter) -> Iterator[Term]:
    """Yield the leaves of a filter."""
    if isinstance(tree, Term):
        yield tree
    for part in _parts(tree):
        yield from terms(part)


def _combinations(tree: Filter) -> int:
    """Return the number of $and, $or and $not in a filter."""
    if isinstance(tree, Term):
        return 0
    return 1 + sum(map(_combinations, _parts(tree)))


def _kind(value: Any) -> str:
    """Return what a JSON value is, in words."""
    if value != value:
        return "NaN given"
    names = {
        bool: "true or false",
        str: "a text",
        int: "a number",
        float: "a number",
        dict: "an object",
        list: "a list",
    }
    return f"{names.get(type(value), 'null')} given"
