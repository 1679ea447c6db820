"""Numbers as the report shows them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "–"


def finite(value: float | None) -> float | None:
    """Return the number, or None if it is absent, NaN or infinite."""
    return None if value is None or not math.isfinite(value) else float(value)


def finite_interval(value: Sequence[float | None] | None) -> tuple[float, float] | None:
    """Return (low, high) if both are finite numbers, else None."""
    low, high = (finite(end) for end in value) if value else (None, None)
    return None if low is None or high is None else (low, high)


def percent(share: float | None, sign: str = "") -> str:
    """Format a share in percent with one decimal and without "%"; `sign` "+" writes the sign of a difference.

    >>> percent(0.6125), percent(-0.02, "+"), percent(None)
    ('61.3', '−2.0', '–')
    """
    share = finite(share)
    return MISSING if share is None else f"{100 * share:{sign}z.1f}".replace("-", "−")


def plain(value: float | None) -> str:
    """Format a number with one decimal.

    >>> plain(1234.56), plain(None)
    ('1,234.6', '–')
    """
    return MISSING if finite(value) is None else f"{value:,.1f}"


def probability(p: float | None) -> str:
    """Format a p-value.

    >>> probability(0.0004), probability(0.21)
    ('< 0.001', '0.210')
    """
    p = finite(p)
    return MISSING if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the dotted keys and the values of a nested mapping.

    >>> flatten({"a": {"b": 1, "c": {}}})
    [('a.b', 1), ('a.c', {})]
    """
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and value
        pairs += flatten(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", value)]
    return pairs
