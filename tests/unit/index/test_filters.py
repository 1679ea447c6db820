"""Filters: the same rows as a plain Python definition, or an error that names the place."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrem.errors import FilterError
from lrem.index.columns import Columns
from lrem.index.filters import COMPARISONS, MAX_TERMS, MAX_VALUES, compile_filter, require_comparable

DATES = {
    "2024-05-01": datetime(2024, 5, 1, tzinfo=UTC),
    "2024-05-01T08:30:00": datetime(2024, 5, 1, 8, 30, tzinfo=UTC),
    "2024-05-01T10:00:00+02:00": datetime(2024, 5, 1, 8, tzinfo=UTC),
    "1969-12-31": datetime(1969, 12, 31, tzinfo=UTC),
}
VALUES = st.one_of(
    st.sampled_from(["a", "b", "", "1", "2024-13-01", *DATES]),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([0.5, 1.0]),
)
STORED = st.one_of(VALUES, st.none(), st.lists(VALUES, max_size=3), st.just({"nested": 1}))
PAYLOADS = st.lists(st.dictionaries(st.sampled_from("xyz"), STORED), max_size=12)
NUMBERS = st.sampled_from([-1, 0, 0.5, 1, 2, *DATES])
CONDITIONS = st.one_of(
    VALUES,
    st.dictionaries(st.sampled_from(["$eq", "$ne"]), VALUES, min_size=1),
    st.dictionaries(st.sampled_from(["$in", "$nin"]), st.lists(VALUES, max_size=3), min_size=1),
    st.dictionaries(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), NUMBERS, min_size=1),
    st.dictionaries(st.just("$exists"), st.booleans(), min_size=1),
)
FILTERS = st.recursive(
    st.dictionaries(st.sampled_from("xyz"), CONDITIONS, max_size=2),
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from(["$and", "$or"]), st.lists(inner, max_size=3), min_size=1),
        st.dictionaries(st.just("$not"), inner, min_size=1),
    ),
    max_leaves=5,
)


def same(a: Any, b: Any) -> bool:
    """Return whether two JSON values are equal; true is not 1."""
    return isinstance(a, bool) == isinstance(b, bool) and isinstance(a, str) == isinstance(b, str) and a == b


def holds(given: dict[str, Any], payload: dict[str, Any]) -> bool:
    """The definition of the language, for one payload."""
    for key, wanted in given.items():
        if key == "$and":
            fits = all(holds(part, payload) for part in wanted)
        elif key == "$or":
            fits = any(holds(part, payload) for part in wanted)
        elif key == "$not":
            fits = not holds(wanted, payload)
        else:
            there = payload.get(key)
            values = [
                v for v in (there if isinstance(there, list) else [there]) if isinstance(v, str | bool | int | float)
            ]
            conditions = wanted if isinstance(wanted, dict) else {"$eq": wanted}
            fits = all(
                (there is not None) == value if operator == "$exists" else meets(values, operator, value)
                for operator, value in conditions.items()
            )
        if not fits:
            return False
    return True


def meets(values: list[Any], operator: str, wanted: Any) -> bool:
    numbers: list[Any] = [value for value in values if not isinstance(value, str | bool)]
    bound = wanted
    if isinstance(wanted, str) and operator in COMPARISONS:
        numbers, bound = [DATES[value] for value in values if value in DATES], DATES[wanted]
    return {
        "$eq": lambda: any(same(value, wanted) for value in values),
        "$ne": lambda: not any(same(value, wanted) for value in values),
        "$in": lambda: any(same(value, one) for value in values for one in wanted),
        "$nin": lambda: not any(same(value, one) for value in values for one in wanted),
        "$gt": lambda: any(value > bound for value in numbers),
        "$gte": lambda: any(value >= bound for value in numbers),
        "$lt": lambda: any(value < bound for value in numbers),
        "$lte": lambda: any(value <= bound for value in numbers),
    }[operator]()


@settings(max_examples=300, deadline=None)
@given(PAYLOADS, FILTERS, st.integers(0, 12))
def test_a_mask_has_the_rows_of_the_definition(payloads: list[dict[str, Any]], given: dict[str, Any], cut: int) -> None:
    columns = Columns()
    columns.add(range(len(payloads))[cut:], payloads[cut:])  # the rows come in two parts, the later ones first
    columns.add(range(len(payloads))[:cut], payloads[:cut])
    expected = [holds(given, payload) for payload in payloads]
    assert columns.mask(compile_filter(given), len(payloads)).tolist() == expected


@pytest.mark.parametrize(
    ("given", "fact"),
    [
        ({"price": {"$below": 3}}, r"filter.price.\$below: no such operator"),
        ({"price": {"$lt": "3"}}, r"filter.price.\$lt: a text given"),
        ({"price": {"$lt": float("nan")}}, r"filter.price.\$lt"),
        ({"price": {"$lt": 10**400}}, r"filter.price.\$lt: .*2\^53"),
        ({"uid": 2**53 + 1}, r"filter.uid: .*2\^53"),
        ({"price": {}}, "filter.price: empty"),
        ({"brand": None}, "filter.brand: null"),
        ({"brand": {"$in": "acme"}}, r"filter.brand.\$in: a text given"),
        ({"brand": {"$in": ["a", None]}}, r"filter.brand.\$in\[1\]: null"),
        ({"brand": {"$exists": 1}}, r"filter.brand.\$exists"),
        ({"$or": {"brand": "a"}}, r"filter.\$or: an object given"),
        ({"$and": [3]}, r"filter.\$and\[0\]: a number given"),
        ({"$xor": []}, r"filter.\$xor"),
        ([], "filter: a list given"),
        ({"price": {"$gt": "2024-13-01"}}, r"filter.price.\$gt: a text given, but a number or an ISO date"),
        ({"brand": {"$in": list(range(MAX_VALUES + 1))}}, "16385 values, at most 16384"),
        ({"$or": [{"brand": str(i)} for i in range(MAX_TERMS)]}, "1000 conditions"),
    ],
)
def test_an_invalid_filter_is_refused_with_its_place(given: Any, fact: str) -> None:
    with pytest.raises(FilterError, match=fact):
        compile_filter(given)


def test_depth_is_bounded() -> None:
    given: dict[str, Any] = {"brand": "a"}
    for _ in range(20):
        given = {"$not": given}
    with pytest.raises(FilterError, match="deeper than 8"):
        compile_filter(given)


def test_a_mask_may_be_changed_by_the_caller() -> None:
    columns = Columns()
    columns.add([0, 1], [{"a": 1}, {}])
    wanted = compile_filter({"a": 1})
    columns.mask(wanted, 2)[:] = True
    assert columns.mask(wanted, 2).tolist() == [True, False]
    assert isinstance(columns.mask(wanted, 2), np.ndarray)


def test_ten_thousand_values_are_one_condition() -> None:
    columns = Columns()
    columns.add([0, 1, 2], [{"sku": "s9999"}, {"sku": "s10000"}, {}])
    wanted = compile_filter({"sku": {"$in": [f"s{i}" for i in range(10_000)]}})
    assert columns.mask(wanted, 3).tolist() == [True, False, False]


PAYLOADS_BY_KIND = [
    {"attrs": {"colour": "red"}, "brand": "acme", "mixed": "n/a"},
    {"price": 3, "empty": [], "mixed": 3, "made": "2024-05-01", "sale": True, "pairs": [["k", "v"]]},
]


def columns_of(payloads: list[dict[str, Any]]) -> Columns:
    columns = Columns()
    columns.add(range(len(payloads)), payloads)
    return columns


@pytest.mark.parametrize(
    ("where", "fact"),
    [
        ({"attrs": {"$eq": "red"}}, r"filter.attrs: its values are objects or lists, .* and \$in compares texts"),
        ({"$not": {"attrs": {"$lt": 3}}}, r"filter.attrs: .* \$lt compares numbers"),
        ({"pairs": "v"}, "filter.pairs: its values are objects or lists"),
        ({"brand": {"$lt": 3}}, r"filter.brand: its values are texts, and \$lt compares numbers"),
        ({"brand": {"$gte": "2024-05-01"}}, r"filter.brand: its values are texts, and \$gte compares ISO dates"),
        ({"price": {"$gte": "2024-05-01"}}, r"filter.price: its values are numbers, and \$gte compares ISO dates"),
        ({"price": "3"}, r"filter.price: its values are numbers, and \$in compares texts"),
        ({"price": {"$nin": ["3", True]}}, r"filter.price: .* \$in compares texts or true or false"),
        ({"brand": 3}, r"filter.brand: its values are texts, and \$in compares numbers"),
        ({"sale": "true"}, r"filter.sale: its values are true or false, and \$in compares texts"),
    ],
)
def test_what_cannot_be_compared_is_refused(where: dict[str, Any], fact: str) -> None:
    kinds = columns_of(PAYLOADS_BY_KIND).kinds(compile_filter(where))
    with pytest.raises(FilterError, match=fact):
        require_comparable(where, kinds)


@pytest.mark.parametrize(
    "where",
    [
        {"attrs": {"$exists": True}},
        {"mixed": {"$lt": 5}},
        {"mixed": {"$in": ["n/a", True]}},
        {"made": {"$lt": "2025-01-01"}},
        {"none": {"$lt": 1}},
        {"price": {"$in": []}},
    ],
)
def test_what_can_be_compared_is_not(where: dict[str, Any]) -> None:
    require_comparable(where, columns_of(PAYLOADS_BY_KIND).kinds(compile_filter(where)))


@pytest.mark.parametrize("field", ["attrs", "empty", "pairs", "price"])
def test_presence_is_about_any_value(field: str) -> None:
    mask = columns_of(PAYLOADS_BY_KIND).mask(compile_filter({field: {"$exists": True}}), 2)
    assert mask.tolist() == [field in payload for payload in PAYLOADS_BY_KIND]
