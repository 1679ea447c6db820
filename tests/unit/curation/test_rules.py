"""The keyword rules one by one, and properties that hold for every list."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrem.curation.rules import (
    KeywordRules,
    difference_set,
    expand_query,
    filter_keywords,
    find_mentions,
    normalize_brand,
)
from lrem.data.keywords import split_phrases

BRANDS = frozenset({"nike", "adidas", "new balance", "t fal", "the north face"})
# Words that occur in queries and lists alike, so that every rule applies to some.
WORD = st.sampled_from(
    [
        "nike",
        "New",
        "balance",
        "adidas",
        "shoe",
        "shoes",
        "red",
        "RED",
        "wh-1000xm4",
        "xm5",
        "42",
        "Coat",
        "ß",
        "İ",
        "é",
    ]
)
PHRASE = st.lists(WORD, max_size=4).map(" ".join)
LISTS = st.lists(st.one_of(PHRASE, st.text(max_size=12)), max_size=10).map(",".join)
RULES = st.builds(
    KeywordRules,
    st.frozensets(PHRASE.map(normalize_brand), max_size=3),
    st.sampled_from([frozenset[str](), BRANDS]),
    st.one_of(st.none(), st.integers(1, 12)),
    st.just(KeywordRules().count_tokens),
)


def clean(reasoning: str, query: str, rules: KeywordRules = KeywordRules()) -> str:
    return filter_keywords(reasoning, query, rules)[0]


def test_phrases_are_lower_cased_trimmed_and_unique() -> None:
    rules = KeywordRules(frozenset({"knife"}))
    assert clean("Helmet , gloves,helmet,, bike ride, knife", "ride a bike", rules) == "helmet, gloves"
    assert clean("Helmet, gloves, e-bike,helmet, knife", "ride an e-bike", rules) == "helmet, gloves"
    assert clean("", "tea") == ""
    assert clean("tea pot", "tea") == "tea pot"


def test_difference_set_and_expanded_query() -> None:
    assert difference_set(["a", "b"], ["c", "b", "d"]) == ["c", "d"]
    assert difference_set(["a"], []) == []
    assert expand_query("ride a bike", "helmet, gloves") == "ride a bike (helmet, gloves)"
    assert expand_query("tea", "") == "tea"


@pytest.mark.parametrize(
    ("reasoning", "query", "kept"),
    [
        # the query asks for a brand: other brands go; its own and phrases without a brand stay
        ("nike pegasus, Adidas, adidas ultraboost, running shoe", "adidas trainers", "adidas ultraboost, running shoe"),
        ("new balance 574 alternative, new balance", "nike shoes", ""),
        ("new, balance board", "nike shoes", "new, balance board"),  # part of a brand's name is no brand
        ("T-fal pan, tefal pan, lid", "T-fal cookware", "t-fal pan, tefal pan, lid"),
        ("nike, adidas", "nike or adidas trainers", ""),  # words of the query
        ("nike sock, adidas sock, puma sock", "nike or adidas trainers", "nike sock, adidas sock, puma sock"),
        # the query names a brand only to get another: every brand stays
        ("adidas ultraboost, running shoe", "nike pegasus alternative", "adidas ultraboost, running shoe"),
        ("adidas, new balance", "cheaper than nike", "adidas, new balance"),
        ("adidas ultraboost", "trainers not nike", "adidas ultraboost"),
        ("adidas ultraboost", "non-nike trainers", "adidas ultraboost"),
        # the query names no brand: every brand stays
        ("nike pegasus, adidas ultraboost", "shoes to run in", "nike pegasus, adidas ultraboost"),
    ],
)
def test_the_brand_guard(reasoning: str, query: str, kept: str) -> None:
    assert clean(reasoning, query, KeywordRules(brands=BRANDS)) == kept


def test_without_known_brands_there_is_no_guard() -> None:
    assert clean("nike pegasus", "adidas trainers") == "nike pegasus"


@pytest.mark.parametrize(
    "query", ["shoes like nike", "nike shoes alternative", "nike dupe", "laces for nike", "no nike"]
)
def test_a_brand_named_to_get_another_allows_all(query: str) -> None:
    assert clean("adidas ultraboost", query, KeywordRules(brands=BRANDS)) == "adidas ultraboost"


@pytest.mark.parametrize(
    "query", ["nike shoes for women", "nike shoes without laces", "likely nike", "red nike shoes no 42"]
)
def test_such_a_word_elsewhere_in_the_query_changes_nothing(query: str) -> None:
    assert clean("adidas ultraboost", query, KeywordRules(brands=BRANDS)) == ""


def test_drops_are_counted_by_rule() -> None:
    rules = KeywordRules(frozenset({"cheap"}), BRANDS, 6)
    reasoning = "boot, boot, nike 42, cheap boot, adidas boot, 43 inch, leather boot, rubber boot, sole"
    kept, dropped = filter_keywords(reasoning, "nike 42 size", rules)
    assert kept == "boot, leather boot"
    assert dropped == {
        "repeated": 1,
        "of the query": 1,
        "banned": 1,
        "another brand": 1,
        "another literal": 1,
        "beyond the budget": 2,
    }


def test_mentions_are_up_to_four_whole_words() -> None:
    assert find_mentions("The North-Face jacket by Adidas", BRANDS) == {"the north face", "adidas"}
    assert find_mentions("north face nikes", BRANDS) == set()
    assert find_mentions("a b c d e", {"a b c d", "a b c d e"}) == {"a b c d"}
    assert normalize_brand(" The  NORTH-Face®") == "the north face"


@pytest.mark.parametrize(
    ("reasoning", "query", "kept"),
    [
        ("wh-1000xm5, xm4 case, headphones", "sony wh-1000xm4", "headphones"),  # xm4 is not the literal wh-1000xm4
        ("wh-1000xm4 case, headphones", "sony wh-1000xm4", "wh-1000xm4 case, headphones"),
        ("iphone 15, iphone 14 case", "iphone 14", "iphone 14 case"),
        (
            "2 person tent, 3 season bag",
            "camping weekend",
            "2 person tent, 3 season bag",
        ),  # the query has none
    ],
)
def test_literals_other_than_the_querys_go(reasoning: str, query: str, kept: str) -> None:
    assert clean(reasoning, query) == kept


def test_banned_phrases_go_anywhere_in_a_phrase() -> None:
    rules = KeywordRules(banned=frozenset({"free shipping", "best"}))
    assert clean("Free  Shipping, best, best helmet, free, bestseller", "ride", rules) == "free, bestseller"


def test_phrases_of_the_querys_words_go() -> None:
    assert clean("bike, ride bike, bike lamp, Ride", "Ride a bike") == "bike lamp"
    assert clean("bike, rain coat, Rain", "what do i need for rain, with a bike?") == "rain coat"


def test_the_budget_cuts_before_the_first_phrase_that_exceeds_it() -> None:
    reasoning = "rubber boots, umbrella, warm rain coat, hat"  # 7 words, 3 commas
    kept = {
        1: "",
        2: "rubber boots",
        3: "rubber boots",
        4: "rubber boots, umbrella",
        7: "rubber boots, umbrella",  # the coat needs 8; the hat would fit, but follows it
        8: "rubber boots, umbrella, warm rain coat",
        10: "rubber boots, umbrella, warm rain coat, hat",
    }
    assert {budget: clean(reasoning, "storm", KeywordRules(budget=budget)) for budget in kept} == kept
    assert clean(reasoning, "storm", KeywordRules(budget=15, count_tokens=len)) == "rubber boots"  # 12 letters
    assert clean("umbrella, umbrella, hat", "storm", KeywordRules(budget=3)) == "umbrella, hat"


def test_phrases_are_put_in_order_before_the_budget_cuts() -> None:
    rules = KeywordRules(frozenset({"cheap"}), budget=4)
    kept, dropped = filter_keywords("cheap hat, warm rain coat, hat, hat, boots", "storm", rules, sorted)
    assert (kept, dropped) == ("boots, hat", {"banned": 1, "repeated": 1, "beyond the budget": 1})


def test_a_number_with_a_comma_is_one_word() -> None:
    assert clean("12,000 btu, 5,000 btu", "air conditioner") == "12,000 btu, 5,000 btu"


@settings(max_examples=300, deadline=None)
@given(LISTS, PHRASE, RULES)
def test_properties_of_every_list(reasoning: str, query: str, rules: KeywordRules) -> None:
    kept = clean(reasoning, query, rules)
    assert clean(kept, query, rules) == kept
    given_phrases, kept_phrases = split_phrases(reasoning.lower()), split_phrases(kept)
    rest = iter(given_phrases)
    assert all(phrase in rest for phrase in kept_phrases)  # phrases of the list, in its order
    assert len(kept_phrases) == len(set(kept_phrases))
    assert len("".join(kept_phrases)) <= len("".join(given_phrases))
    assert not any(find_mentions(phrase, rules.banned) for phrase in kept_phrases)
    assert rules.budget is None or len(re.findall(r"\w+|,", kept)) <= rules.budget


@settings(max_examples=100, deadline=None)
@given(LISTS, PHRASE, RULES, st.integers(1, 12))
def test_a_smaller_budget_keeps_a_prefix(reasoning: str, query: str, rules: KeywordRules, budget: int) -> None:
    whole = clean(reasoning, query, rules._replace(budget=None))
    kept = clean(reasoning, query, rules._replace(budget=budget))
    assert whole.split(", ")[: len(kept.split(", "))] == kept.split(", ") or kept == ""
