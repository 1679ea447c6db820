"""Rules that a teacher's keyword list must pass. Knows words, not models. Source: paper, "Training data"."""

import re
from collections.abc import Callable, Collection
from typing import NamedTuple

from lrem.data.words import literals, words

SEPARATOR = ","
LONGEST_BRAND = 4  # words, and of a banned phrase
# A brand behind one of these, or before one of the last, is not what is wanted, or not alone.
BEFORE = "like|instead of|than|not|no|non|without|except|besides|vs|for|with|similar to|alternatives? to"
AFTER = "alternatives?|dupes?|replacements?|compatible|style|type|vs"


class Rules(NamedTuple):
    """What a keyword list may not hold.

    banned: words or phrases; brands: those that the guard knows; both as `brand_name` writes them.
    budget: tokens, None: no limit. count: how many tokens a list has.
    """

    banned: frozenset[str] = frozenset()
    brands: frozenset[str] = frozenset()
    budget: int | None = None
    count: Callable[[str], int] = lambda text: len(re.findall(r"\w+|,", text))


def clean(reasoning: str, query: str, rules: Rules = Rules()) -> str:
    """Drop phrases that a rule forbids; keep the order. See `sift`.

    >>> clean("Helmet, gloves, e-bike,helmet, knife", "ride an e-bike", Rules(frozenset({"knife"})))
    'helmet, gloves'
    >>> clean("nike pegasus, running shoe", "adidas trainers for women", Rules(brands=frozenset({"nike", "adidas"})))
    'running shoe'
    >>> clean("wh-1000xm5, headphones", "sony wh-1000xm4", Rules())
    'headphones'
    """
    return sift(reasoning, query, rules)[0]


def sift(reasoning: str, query: str, rules: Rules) -> tuple[str, dict[str, int]]:
    """The phrases that pass every rule, in their order, and how many each rule dropped.

    Dropped are: repeated phrases, phrases wholly made of the query's words, those that hold a banned one, other brands
    than the one that the query asks for, literals (words with a digit) that the query does not have where it has
    some, and what lies beyond the budget.

    >>> sift("helmet, helmet, ride", "ride a bike", Rules())
    ('helmet', {'repeated': 1, 'of the query': 1})
    """
    said, own = set(words(query)), literals(query)
    target = _target(query, rules.brands) if rules.brands else set()
    kept: list[str] = []
    dropped: dict[str, int] = {}
    phrases = [phrase for part in reasoning.lower().split(SEPARATOR) if (phrase := " ".join(part.split()))]
    for place, phrase in enumerate(phrases):
        if phrase in kept:
            rule = "repeated"
        elif set(words(phrase)) <= said:
            rule = "of the query"
        elif rules.banned and names(phrase, rules.banned):
            rule = "banned"
        elif target and names(phrase, rules.brands) - target:
            rule = "another brand"
        elif own and literals(phrase) - own:
            rule = "another literal"
        elif rules.budget is not None and rules.count(f"{SEPARATOR} ".join([*kept, phrase])) > rules.budget:
            dropped["beyond the budget"] = len(phrases) - place
            break
        else:
            kept.append(phrase)
            continue
        dropped[rule] = dropped.get(rule, 0) + 1
    return f"{SEPARATOR} ".join(kept), dropped


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
    """The brands that a query asks for: those that it does not name only to get another, or something to go with it.

    >>> brands = {"nike", "adidas"}
    >>> [_target(query, brands) for query in ("adidas shoes for women", "cheaper than nike shoes", "nike dupe")]
    [{'adidas'}, set(), set()]
    """
    text, found = " ".join(words(query)), names(query, brands)
    elsewhere = {
        brand
        for brand in found
        if re.search(rf"\b({BEFORE}) {re.escape(brand)}\b|\b{re.escape(brand)}( \w+)? ({AFTER})\b", text)
    }
    return set() if elsewhere else found


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
