"""The payload in columns, so that a filter is a few passes over arrays: rows in, a mask of rows out.

Of each field it keeps what filters can ask: strings and truth values as numbered values, numbers as they are. A list
counts as all its values. Everything else in a payload (objects, dates as objects) can be stored, not filtered.

Knows filters and arrays; does not know vectors or disks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrem.index.filters import AllOf, AnyOf, Filter, Not, Term

NAMED, NUMBER = 1, 2
KINDS = {str: NAMED, bool: NAMED, int: NUMBER, float: NUMBER}


class GrowingArray:
    """An array that grows at its end at a constant cost per value."""

    def __init__(self, dtype: Any) -> None:
        self._values, self._size = np.empty(16, dtype), 0

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> np.ndarray:
        """What is in it; a view that the next `extend` may leave behind."""
        return self._values[: self._size]

    def extend(self, values: Sequence[Any] | np.ndarray) -> None:
        """Add values at the end."""
        size = self._size + len(values)
        if size > len(self._values):
            larger = np.empty(max(size, 2 * len(self._values)), self._values.dtype)
            larger[: self._size] = self.values
            self._values = larger
        self._values[self._size : size] = values
        self._size = size


class FieldValues:
    """One field's values: (row, code) of each string or truth value, (row, number) of each number."""

    def __init__(self) -> None:
        self.codes: dict[str | bool, int] = {}
        self.named = GrowingArray(np.int64), GrowingArray(np.int32)
        self.numbers = GrowingArray(np.int64), GrowingArray(np.float64)

    def add(self, rows: Sequence[int], values: Sequence[Any]) -> None:
        """Take the values of some rows."""
        if {list, tuple} & set(map(type, values)):
            pairs = [(row, one) for row, value in zip(rows, values, strict=True) for one in _values(value)]
            rows, values = [row for row, _ in pairs], [value for _, value in pairs]
        kinds = np.fromiter((KINDS.get(type(value), 0) for value in values), np.int8, len(values))
        at = np.asarray(rows, np.int64)
        for kind, (target_rows, target) in ((NAMED, self.named), (NUMBER, self.numbers)):
            chosen = np.flatnonzero(kinds == kind)
            if not len(chosen):
                continue
            mine = values if len(chosen) == len(values) else [values[i] for i in chosen]
            taken = np.asarray(self._coded(mine) if kind == NAMED else mine, target.values.dtype)
            there = taken == taken  # NaN is no value
            target_rows.extend(at[chosen][there])
            target.extend(taken[there])

    def _coded(self, values: Sequence[str | bool]) -> list[int]:
        codes = self.codes
        return [codes.setdefault(value, len(codes)) for value in values]

    def rows(self, term: Term) -> list[np.ndarray]:
        """The rows that match a term, in any order, repeated ones possible."""
        (rows, codes), (number_rows, numbers) = ([c.values for c in pair] for pair in (self.named, self.numbers))
        if term.operator == "$exists":
            return [rows, number_rows]
        if term.operator == "$in":
            wanted = [self.codes.get(value, -1) for value in term.value if isinstance(value, str | bool)]
            exact = [float(value) for value in term.value if not isinstance(value, str | bool)]
            return [rows[_among(codes, wanted)], number_rows[_among(numbers, exact)]]
        compare = {"$gt": np.greater, "$gte": np.greater_equal, "$lt": np.less, "$lte": np.less_equal}
        return [number_rows[compare[term.operator](numbers, term.value)]]


def _values(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _among(values: np.ndarray, wanted: Sequence[float]) -> np.ndarray:
    if len(wanted) == 1:  # by far the most frequent, and several times as fast
        return values == wanted[0]
    return np.isin(values, wanted)


class Columns:
    """The payloads of rows 0, 1, 2, …, taken in in any order; a row without a payload has no field."""

    def __init__(self) -> None:
        self.fields: dict[str, FieldValues] = {}

    def add(self, rows: Sequence[int], payloads: Sequence[Mapping[str, Any]]) -> None:
        """Take the payloads of some rows."""
        seen: dict[str, tuple[list[int], list[Any]]] = {}
        for row, payload in zip(rows, payloads, strict=True):
            for name, value in payload.items():
                its_rows, values = seen.setdefault(name, ([], []))
                its_rows.append(row)
                values.append(value)
        for name, (its_rows, values) in seen.items():
            self.fields.setdefault(name, FieldValues()).add(its_rows, values)

    def mask(self, wanted: Filter, count: int) -> np.ndarray:
        """Which of the rows 0 to count−1 match. Returns [count] bool, a new array."""
        if isinstance(wanted, Not):
            return ~self.mask(wanted.part, count)
        if isinstance(wanted, AllOf | AnyOf):
            join, start = (np.logical_and, True) if isinstance(wanted, AllOf) else (np.logical_or, False)
            result = np.full(count, start)
            for part in wanted.parts:
                join(result, self.mask(part, count), out=result)
            return result
        result = np.zeros(count, bool)
        if wanted.field in self.fields:
            for rows in self.fields[wanted.field].rows(wanted):
                result[rows] = True
        if wanted.operator == "$exists" and not wanted.value:
            return ~result
        return result


def match_payloads(payloads: Sequence[Mapping[str, Any]], wanted: Filter | None) -> list[bool]:
    """Which of a few payloads match.

    >>> from lrem.index.filters import compile_filter
    >>> match_payloads([{"price": 3}, {"price": 30}, {}], compile_filter({"price": {"$lt": 20}}))
    [True, False, False]
    """
    if wanted is None:
        return [True] * len(payloads)
    columns = Columns()
    columns.add(range(len(payloads)), payloads)
    return [bool(fits) for fits in columns.mask(wanted, len(payloads))]
