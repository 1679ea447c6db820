"""Counters of work that is done part by part: numbers, and lists of numbers, that can be added up and kept as JSON."""

from typing import Any

Counts = dict[str, Any]


def add(one: Counts, other: Counts) -> Counts:
    """Two sets of counters added up, lists place by place.

    >>> add({"a": 1, "b": [1, 2]}, {"a": 2, "b": [0, 1]})
    {'a': 3, 'b': [1, 3]}

    Raises:
        ValueError: a list is longer in one of them.
    """
    both = dict(one)
    for name, value in other.items():
        if name not in both:
            both[name] = value
        elif isinstance(value, list):
            both[name] = [a + b for a, b in zip(both[name], value, strict=True)]
        else:
            both[name] += value
    return both
