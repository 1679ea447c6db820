"""Filters: the same rows as a plain Python definition, or an error that names the place."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrem.errors import FilterError
from lrem.index.columns import Columns
from lrem.index.filters import MAX_TERMS, compile_filter

VALUES = st.one_of(st.sampled_from(["a", "b", "", "1"]), st.booleans(), st.integers(-2, 2), st.sampled_from([0.5, 1.0]))
STORED = st.one_of(VALUES, st.none(), st.lists(VALUES, max_size=3), st.just({"nested": 1}))
PAYLOADS = st.lists(st.dictionaries(st.sampled_from("xyz"), STORED), max_size=12)
NUMBERS = st.sampled_from([-1, 0, 0.5, 1, 2])
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
            fits = all(meets(values, operator, value) for operator, value in conditions.items())
        if not fits:
            return False
    return True


def meets(values: list[Any], operator: str, wanted: Any) -> bool:
    numbers = [value for value in values if not isinstance(value, str | bool)]
    return {
        "$eq": lambda: any(same(value, wanted) for value in values),
        "$ne": lambda: not any(same(value, wanted) for value in values),
        "$in": lambda: any(same(value, one) for value in values for one in wanted),
        "$nin": lambda: not any(same(value, one) for value in values for one in wanted),
        "$gt": lambda: any(value > wanted for value in numbers),
        "$gte": lambda: any(value >= wanted for value in numbers),
        "$lt": lambda: any(value < wanted for value in numbers),
        "$lte": lambda: any(value <= wanted for value in numbers),
        "$exists": lambda: bool(values) == wanted,
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
        ({"price": {"$lt": "3"}}, r"filter.price.\$lt: str given"),
        ({"price": {"$lt": float("nan")}}, r"filter.price.\$lt"),
        ({"price": {"$lt": 10**400}}, r"filter.price.\$lt: .*2\^53"),
        ({"uid": 2**53 + 1}, r"filter.uid: .*2\^53"),
        ({"price": {}}, "filter.price: empty"),
        ({"brand": None}, "filter.brand: null"),
        ({"brand": {"$in": "acme"}}, r"filter.brand.\$in: str given"),
        ({"brand": {"$in": ["a", None]}}, r"filter.brand.\$in\[1\]: null"),
        ({"brand": {"$exists": 1}}, r"filter.brand.\$exists"),
        ({"$or": {"brand": "a"}}, r"filter.\$or: dict given"),
        ({"$and": [3]}, r"filter.\$and\[0\]: int given"),
        ({"$xor": []}, r"filter.\$xor"),
        ([], "filter: list given"),
        ({"brand": {"$in": list(range(MAX_TERMS + 1))}}, "1000"),
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
