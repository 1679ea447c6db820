"""Rules that a teacher's keyword list must pass. Knows words, not models."""

SEPARATOR = ","


def clean(reasoning: str, query: str, banned: frozenset[str] = frozenset()) -> str:
    """Drop repeated phrases, phrases wholly made of the query's words, and banned phrases; keep the order.

    >>> clean("Helmet, gloves, e-bike,helmet, knife", "ride an e-bike", frozenset({"Knife"}))
    'helmet, gloves'
    """
    said, refused = set(query.lower().split()), {phrase.lower() for phrase in banned}
    kept: list[str] = []
    for phrase in reasoning.lower().split(SEPARATOR):
        phrase = " ".join(phrase.split())
        if phrase and phrase not in kept and phrase not in refused and not set(phrase.split()) <= said:
            kept.append(phrase)
    return f"{SEPARATOR} ".join(kept)


def expand(query: str, reasoning: str) -> str:
    """The second retriever's query: `query (kw1, kw2, …)`."""
    return f"{query} ({reasoning})" if reasoning else query


def difference(first: list[str], second: list[str]) -> list[str]:
    """D = set 2 − set 1, in the order of set 2: what only the reasoning reached.

    >>> difference(["a", "b"], ["b", "c", "d"])
    ['c', 'd']
    """
    seen = set(first)
    return [item for item in second if item not in seen]
