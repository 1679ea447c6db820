"""Rules that a teacher's keyword list must pass. Knows words, not models. Source: paper, "Training data"."""

import re
from collections.abc import Callable, Collection
from typing import NamedTuple

from lrem.words import literals, words

SEPARATOR = ","
LONGEST_BRAND = 4  # words
# Where one of these stands, the brand that a query names is not, or not alone, what is wanted.
ELSEWHERE = re.compile(
    r"\b(alternatives?|dupes?|like|similar|instead|replacements?|compatible|other|cheaper|better|besides|not|no|non|"
    r"without|except|vs|for)\b"
)


class Rules(NamedTuple):
    """What a keyword list may not hold.

    banned: phrases, in lower case. brands: those that the guard knows, as `brand_name` writes them.
    budget: tokens, None: no limit. count: how many tokens a list has.
    """

    banned: frozenset[str] = frozenset()
    brands: frozenset[str] = frozenset()
    budget: int | None = None
    count: Callable[[str], int] = lambda text: len(re.findall(r"\w+|,", text))


def clean(reasoning: str, query: str, rules: Rules = Rules()) -> str:
    """Drop phrases that a rule forbids; keep the order.

    Dropped are: repeated phrases, phrases wholly made of the query's words, banned ones, other brands than the one that
    the query asks for, literals (words with a digit) that the query does not have where it has some, and what lies
    beyond the budget.

    >>> clean("Helmet, gloves, e-bike,helmet, knife", "ride an e-bike", Rules(frozenset({"knife"})))
    'helmet, gloves'
    >>> clean("nike pegasus, running shoe", "adidas trainers", Rules(brands=frozenset({"nike", "adidas"})))
    'running shoe'
    >>> clean("wh-1000xm5, headphones", "sony wh-1000xm4", Rules())
    'headphones'
    """
    said = set(words(query))
    own = literals(query)
    target = _target(query, rules.brands) if rules.brands else set()
    kept: list[str] = []
    for phrase in reasoning.lower().split(SEPARATOR):
        phrase = " ".join(phrase.split())
        if not phrase or phrase in kept or phrase in rules.banned or set(words(phrase)) <= said:
            continue
        if (own and literals(phrase) - own) or (target and names(phrase, rules.brands) - target):
            continue
        if rules.budget is not None and rules.count(f"{SEPARATOR} ".join([*kept, phrase])) > rules.budget:
            break
        kept.append(phrase)
    return f"{SEPARATOR} ".join(kept)


def names(text: str, brands: Collection[str]) -> set[str]:
    """The brands that a text names, as whole words; `brands` as `brand_name` writes them.

    >>> names("Apple iPhone case", {"apple", "app"})
    {'apple'}
    """
    found = words(text)
    spans = {" ".join(found[i : i + n]) for n in range(1, LONGEST_BRAND + 1) for i in range(len(found) - n + 1)}
    return {span for span in spans if span in brands}


def brand_name(brand: str) -> str:
    """A brand as the guard compares it.

    >>> brand_name("T-fal ")
    't fal'
    """
    return " ".join(words(brand))


def _target(query: str, brands: Collection[str]) -> set[str]:
    """The brands that a query asks for; none where it names one only to get another."""
    return set() if ELSEWHERE.search(query.lower()) else names(query, brands)


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
