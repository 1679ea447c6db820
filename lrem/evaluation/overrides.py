"""The paper's probe (Table 2): put another text in place of the model's own reasoning."""

import random
from collections.abc import Sequence

OVERRIDES = ("own", "empty", "random", "query")


def vocabulary(titles: Sequence[str]) -> list[str]:
    """Every word of the catalogue once, sorted: what random reasonings are drawn from.

    >>> vocabulary(["red coat", "blue coat"])
    ['blue', 'coat', 'red']
    """
    return sorted({word for title in titles for word in title.split()})


def override(kind: str, queries: Sequence[str], own: Sequence[str], words: Sequence[str], seed: int) -> list[str]:
    """The reasonings of one override, in the order of `queries`.

    `random` draws as many words from `words` as the model's own reasoning has.

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
    raise ValueError(f"no override '{kind}': one of {', '.join(OVERRIDES)}")
