"""Counters of work that is done in parts: numbers and lists of numbers that can be added up and stored as JSON."""

from typing import Any

Counters = dict[str, Any]


def add_counters(first: Counters, second: Counters) -> Counters:
    """Add two sets of counters, lists element by element.

    >>> add_counters({"a": 1, "b": [1, 2]}, {"a": 2, "b": [0, 1]})
    {'a': 3, 'b': [1, 3]}

    Raises:
        ValueError: a list is longer in one of them.
    """
    total = dict(first)
    for name, value in second.items():
        if name not in total:
            total[name] = value
        elif isinstance(value, list):
            total[name] = [a + b for a, b in zip(total[name], value, strict=True)]
        else:
            total[name] += value
    return total
