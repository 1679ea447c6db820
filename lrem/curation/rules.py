"""Rules that a teacher's keyword list must pass. Source: paper, "Training data"."""

import re
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from lrem.data.keywords import join_phrases, split_phrases
from lrem.data.words import literals, normalize, words

MAX_MENTION_WORDS = 4  # of a brand or a banned phrase
# A brand after one of the first, or before one of the last, is not the one that the query asks for.
BEFORE_OTHER_BRAND = "like|instead of|than|not|no|non|without|except|besides|vs|for|with|similar to|alternatives? to"
AFTER_OTHER_BRAND = "alternatives?|dupes?|replacements?|compatible|style|type|vs"


class KeywordRules(NamedTuple):
    """What a keyword list must not contain.

    Attributes:
        banned: words and phrases, normalized by `normalize_brand`.
        brands: the brands that the brand guard knows, normalized likewise.
        budget: maximum number of tokens; None for no limit.
        count_tokens: returns the number of tokens in a list.
    """

    banned: frozenset[str] = frozenset()
    brands: frozenset[str] = frozenset()
    budget: int | None = None
    count_tokens: Callable[[str], int] = lambda text: len(re.findall(r"\w+|,", text))


def filter_keywords(
    reasoning: str, query: str, rules: KeywordRules, order: Callable[[Sequence[str]], list[str]] = list
) -> tuple[str, dict[str, int]]:
    """Return the phrases that pass every rule, and the number of phrases that each rule dropped.

    Dropped are repeated phrases, phrases made only of the query's words, phrases with a banned word or phrase, brands
    other than the one that the query asks for, literals (words with a digit) that are not the query's if it has some,
    and everything beyond the token budget.

    Args:
        order: puts the phrases that pass the other rules into the order in which the budget cuts them; by default their
            own.

    >>> filter_keywords("helmet, helmet, ride", "ride a bike", KeywordRules())
    ('helmet', {'repeated': 1, 'of the query': 1})
    >>> rules = KeywordRules(frozenset({"knife"}), frozenset({"nike", "adidas"}))
    >>> filter_keywords("knife, nike pegasus, running shoe", "adidas trainers for women", rules)
    ('running shoe', {'banned': 1, 'another brand': 1})
    >>> filter_keywords("wh-1000xm5, headphones", "sony wh-1000xm4", KeywordRules())
    ('headphones', {'another literal': 1})
    """
    query_words, query_literals = set(words(query)), literals(query)
    target = _target_brands(query, rules.brands) if rules.brands else set()
    kept: dict[str, str] = {}  # normalized phrase → phrase
    dropped: dict[str, int] = {}
    for phrase in split_phrases(reasoning.lower()):
        if normalize(phrase) in kept:
            rule = "repeated"
        elif set(words(phrase)) <= query_words:
            rule = "of the query"
        elif rules.banned and find_mentions(phrase, rules.banned):
            rule = "banned"
        elif target and find_mentions(phrase, rules.brands) - target:
            rule = "another brand"
        elif query_literals and literals(phrase) - query_literals:
            rule = "another literal"
        else:
            kept[normalize(phrase)] = phrase
            continue
        dropped[rule] = dropped.get(rule, 0) + 1
    ordered = order(list(kept.values()))
    within = _within_budget(ordered, rules)
    if len(within) < len(ordered):
        dropped["beyond the budget"] = len(ordered) - len(within)
    return join_phrases(within), dropped


def _within_budget(phrases: list[str], rules: KeywordRules) -> list[str]:
    """Return the phrases before the first that exceeds the token budget."""
    for count in range(1, len(phrases) + 1):
        if rules.budget is not None and rules.count_tokens(join_phrases(phrases[:count])) > rules.budget:
            return phrases[: count - 1]
    return phrases


def find_mentions(text: str, phrases: Collection[str]) -> set[str]:
    """Return the phrases that a text contains as whole words; `phrases` are normalized by `normalize_brand`.

    >>> find_mentions("Apple iPhone case", {"apple", "app"})
    {'apple'}
    """
    tokens = words(text)
    spans = {" ".join(tokens[i : i + n]) for n in range(1, MAX_MENTION_WORDS + 1) for i in range(len(tokens) - n + 1)}
    return {span for span in spans if span in phrases}


def normalize_brand(brand: str) -> str:
    """Return a brand's words, lower-case and separated by one space, for comparison.

    >>> normalize_brand("T-fal ")
    't fal'
    """
    return " ".join(words(brand))


def _target_brands(query: str, brands: Collection[str]) -> set[str]:
    """Return the brands that a query asks for, unless it names one only to get another, or an accessory for it.

    >>> brands = {"nike", "adidas"}
    >>> queries = ("adidas shoes for women", "cheaper than nike shoes", "nike dupe")
    >>> [_target_brands(query, brands) for query in queries]
    [{'adidas'}, set(), set()]
    """
    text, mentions = " ".join(words(query)), find_mentions(query, brands)
    other_wanted = any(
        re.search(
            rf"\b({BEFORE_OTHER_BRAND}) {re.escape(brand)}\b|\b{re.escape(brand)}( \w+)? ({AFTER_OTHER_BRAND})\b", text
        )
        for brand in mentions
    )
    return set() if other_wanted else mentions


def expand_query(query: str, reasoning: str) -> str:
    """Append a reasoning to a query, `query (kw1, kw2, …)`, for the second retrieval."""
    return f"{query} ({reasoning})" if reasoning else query


def difference_set(first: list[str], second: list[str]) -> list[str]:
    """Return D = second − first, in the order of `second`: the items that only the reasoning retrieves.

    >>> difference_set(["a", "b"], ["b", "c", "d"])
    ['c', 'd']
    """
    retrieved = set(first)
    return [item for item in second if item not in retrieved]
