"""Payloads in columns: a filter becomes a few passes over arrays, and returns a mask of positions.

Each field keeps what filters can match: strings and booleans as codes, numbers as they are, a list as all its values.
Objects are stored, and only their presence can be filtered; null counts as absent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrem.index.filters import AllOf, AnyOf, Filter, Not, Term, terms, timestamp

CODED, NUMBER = 1, 2
KIND_NAMES = {str: "text", bool: "bool", int: "number", float: "number"}
KINDS = {str: CODED, bool: CODED, int: NUMBER, float: NUMBER}


class GrowingArray:
    """An array to which values can be appended at amortized constant cost."""

    def __init__(self, dtype: Any) -> None:
        self._values, self._size = np.empty(16, dtype), 0

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> np.ndarray:
        """A view of the values, valid until the next `extend`."""
        return self._values[: self._size]

    def extend(self, values: Sequence[Any] | np.ndarray) -> None:
        """Append values."""
        size = self._size + len(values)
        if size > len(self._values):
            larger = np.empty(max(size, 2 * len(self._values)), self._values.dtype)
            larger[: self._size] = self.values
            self._values = larger
        self._values[self._size : size] = values
        self._size = size


class FieldValues:
    """One field: (position, code) of each string or boolean, (position, number) of each number, other positions.

    Attributes:
        kinds: what the values are: text, bool, number, other (objects, empty lists).
    """

    def __init__(self) -> None:
        self.codes: dict[str | bool, int] = {}
        self.coded = GrowingArray(np.int64), GrowingArray(np.int32)
        self.numbers = GrowingArray(np.int64), GrowingArray(np.float64)
        self.others = GrowingArray(np.int64)  # positions of values that hold nothing that a filter could compare
        self.kinds: set[str] = set()
        self._timestamps = GrowingArray(np.float64)  # of the codes, NaN where one is no date; filled when needed

    def add(self, positions: Sequence[int], values: Sequence[Any]) -> None:
        """Add the values at positions."""
        self._add_others(positions, values)
        if {list, tuple} & set(map(type, values)):
            entries = zip(positions, values, strict=True)
            pairs = [(position, element) for position, value in entries for element in _elements(value)]
            positions, values = [position for position, _ in pairs], [value for _, value in pairs]
        kinds = np.fromiter((KINDS.get(type(value), 0) for value in values), np.int8, len(values))
        at = np.asarray(positions, np.int64)
        for kind, (target_positions, target) in ((CODED, self.coded), (NUMBER, self.numbers)):
            chosen = np.flatnonzero(kinds == kind)
            if not len(chosen):
                continue
            selected = values if len(chosen) == len(values) else [values[i] for i in chosen]
            self.kinds.update(KIND_NAMES[one] for one in set(map(type, selected)))
            array = np.asarray(self._encode(selected) if kind == CODED else selected, target.values.dtype)
            valid = array == array  # not NaN
            target_positions.extend(at[chosen][valid])
            target.extend(array[valid])

    def _add_others(self, positions: Sequence[int], values: Sequence[Any]) -> None:
        others = [
            position
            for position, value in zip(positions, values, strict=True)
            if value is not None
            and type(value) not in KINDS
            and not any(type(one) in KINDS for one in _elements(value))
        ]
        self.others.extend(others)
        self.kinds.update(["other"] * bool(others))

    def _encode(self, values: Sequence[str | bool]) -> list[int]:
        codes = self.codes
        return [codes.setdefault(value, len(codes)) for value in values]

    def positions(self, term: Term) -> list[np.ndarray]:
        """Return the positions that match a term, in any order, perhaps repeated."""
        (positions, codes), (number_positions, numbers) = (
            [c.values for c in pair] for pair in (self.coded, self.numbers)
        )
        if term.operator == "$exists":
            return [positions, number_positions, self.others.values]
        if term.operator == "$in":
            accepted = [self.codes.get(value, -1) for value in term.value if isinstance(value, str | bool)]
            accepted_numbers = [float(value) for value in term.value if not isinstance(value, str | bool)]
            return [positions[_isin(codes, accepted)], number_positions[_isin(numbers, accepted_numbers)]]
        compare = {"$gt": np.greater, "$gte": np.greater_equal, "$lt": np.less, "$lte": np.less_equal}
        if isinstance(term.value, str):
            return [positions[compare[term.operator](self.timestamps()[codes], timestamp(term.value))]]
        return [number_positions[compare[term.operator](numbers, term.value)]]

    def timestamps(self) -> np.ndarray:
        """Return the `timestamp` of each code, [codes] float64."""
        if len(self._timestamps) < len(self.codes):
            new = list(self.codes)[len(self._timestamps) :]
            self._timestamps.extend([timestamp(value) if isinstance(value, str) else np.nan for value in new])
        return self._timestamps.values


def _elements(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _isin(values: np.ndarray, accepted: Sequence[float]) -> np.ndarray:
    if len(accepted) == 1:  # by far the most frequent case, and several times as fast
        return values == accepted[0]
    return np.isin(values, accepted)


class Columns:
    """The payloads at positions 0, 1, 2, …, added in any order; a position without a payload has no fields."""

    def __init__(self) -> None:
        self.fields: dict[str, FieldValues] = {}

    def add(self, positions: Sequence[int], payloads: Sequence[Mapping[str, Any]]) -> None:
        """Add the payloads at positions."""
        by_field: dict[str, tuple[list[int], list[Any]]] = {}
        for position, payload in zip(positions, payloads, strict=True):
            for name, value in payload.items():
                field_positions, values = by_field.setdefault(name, ([], []))
                field_positions.append(position)
                values.append(value)
        for name, (field_positions, values) in by_field.items():
            self.fields.setdefault(name, FieldValues()).add(field_positions, values)

    def kinds(self, condition: Filter) -> dict[str, set[str]]:
        """Return field → kinds of its values (text, bool, number, date, other), of the fields of a filter."""
        found: dict[str, set[str]] = {}
        for term in terms(condition):
            if values := self.fields.get(term.field):
                kinds = found.setdefault(term.field, set(values.kinds))
                if isinstance(term.value, str) and np.isfinite(values.timestamps()).any():
                    kinds.add("date")
        return found

    def mask(self, condition: Filter, count: int) -> np.ndarray:
        """Return which of the positions 0 to count − 1 match, [count] bool, a new array."""
        if isinstance(condition, Not):
            return ~self.mask(condition.part, count)
        if isinstance(condition, AllOf | AnyOf):
            join, start = (np.logical_and, True) if isinstance(condition, AllOf) else (np.logical_or, False)
            result = np.full(count, start)
            for part in condition.parts:
                join(result, self.mask(part, count), out=result)
            return result
        result = np.zeros(count, bool)
        if condition.field in self.fields:
            for positions in self.fields[condition.field].positions(condition):
                result[positions] = True
        if condition.operator == "$exists" and not condition.value:
            return ~result
        return result


def match_payloads(payloads: Sequence[Mapping[str, Any]], condition: Filter | None) -> list[bool]:
    """Return which of a few payloads match.

    >>> from lrem.index.filters import compile_filter
    >>> match_payloads([{"price": 3}, {"price": 30}, {}], compile_filter({"price": {"$lt": 20}}))
    [True, False, False]
    """
    if condition is None:
        return [True] * len(payloads)
    columns = Columns()
    columns.add(range(len(payloads)), payloads)
    return [bool(match) for match in columns.mask(condition, len(payloads))]
