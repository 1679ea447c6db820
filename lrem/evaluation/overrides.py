"""The paper's override probe (Table 2): replace the model's own reasoning by another text."""

import random
from collections.abc import Sequence

OVERRIDES = ("own", "empty", "random", "query")


def vocabulary(titles: Sequence[str]) -> list[str]:
    """Return every distinct word of the titles, sorted; random reasonings are drawn from these.

    >>> vocabulary(["red coat", "blue coat"])
    ['blue', 'coat', 'red']
    """
    return sorted({word for title in titles for word in title.split()})


def override(kind: str, queries: Sequence[str], own: Sequence[str], words: Sequence[str], seed: int) -> list[str]:
    """Return the reasonings of one override, in the order of `queries`.

    Args:
        kind: `own` leaves the model's reasoning, `empty` and `query` replace it by nothing or by the query, `random`
            draws as many words from `words` as the model's own reasoning has.

    Raises:
        ValueError: `kind` is not one of `OVERRIDES`.

    >>> override("query", ["red coat"], ["wool"], [], 0)
    ['red coat']
    """
    if kind == "own":
        return list(own)
    if kind == "empty":
        return ["" for _ in queries]
    if kind == "query":
        return list(queries)
    if kind == "random":
        draw = random.Random(seed)
        return [" ".join(draw.choices(words, k=max(1, len(text.split())))) for text in own]
    raise ValueError(f"unknown override '{kind}': choose one of {', '.join(OVERRIDES)}")
