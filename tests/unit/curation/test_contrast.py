"""The catalogue as a teacher: its statistic against scipy's, and keywords that can be checked by hand."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chi2_contingency

from lrem.curation.contrast import MIN_LOG_LIKELIHOOD, keywords, log_likelihood_ratio, phrase_frequencies, phrases
from lrem.data.words import stem, words

HOUSE = ["red kettle", "blue kettle", "green kettle", "white mug", "black mug", "glass mug", "tin mug", "tea towel"]
CAMPING = ["camping stove gas", "camping tent two", "camping stove wood", "camping lamp", "sleeping bag camping"]
SHOP = [*HOUSE, *CAMPING]


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 400), st.integers(1, 4000), st.data())
def test_log_likelihood_ratio_equals_scipy(inside_size: int, outside_size: int, data: st.DataObject) -> None:
    inside = data.draw(st.integers(0, inside_size))
    outside = data.draw(st.integers(0, outside_size))
    ratio = log_likelihood_ratio(inside, inside_size, outside, outside_size)
    if inside + outside in (0, inside_size + outside_size):  # the phrase is in no title, or in all
        assert ratio == 0
        return
    table = [[inside, inside_size - inside], [outside, outside_size - outside]]
    expected = chi2_contingency(table, lambda_="log-likelihood", correction=False)
    assert abs(ratio) == pytest.approx(expected.statistic, rel=1e-9, abs=1e-8)
    rarer = inside * outside_size < outside * inside_size
    assert ratio <= 0 if rarer else ratio >= 0
    assert log_likelihood_ratio(outside, outside_size, inside, inside_size) == pytest.approx(-ratio, abs=1e-8)


def test_log_likelihood_ratio_by_hand() -> None:
    # 3 of 4 inside, 1 of 12 outside: expected 1, 3, 3, 9
    by_hand = 2 * (3 * math.log(3) + 1 * math.log(1 / 3) + 1 * math.log(1 / 3) + 11 * math.log(11 / 9))
    assert log_likelihood_ratio(3, 4, 1, 12) == pytest.approx(by_hand, abs=1e-8)
    assert log_likelihood_ratio(1, 12, 3, 4) == pytest.approx(-by_hand, abs=1e-8)


def test_the_threshold_is_the_one_per_cent_point_of_chi_square() -> None:
    assert chi2.sf(MIN_LOG_LIKELIHOOD, df=1) == pytest.approx(0.01, abs=1e-4)


def test_a_keyword_occurs_in_a_fifth_of_the_relevant_titles() -> None:
    relevant = ["slip on shoe"] * 8 + ["velcro shoe"] * 2 + ["zip shoe"]
    others = ["laced shoe"] * 60
    result = keywords("shoe without laces", relevant, others[:20], phrase_frequencies(relevant + others), 9)
    assert result == ["slip on"]  # velcro is in two of eleven, which is too few
    assert "velcro shoe" in keywords(
        "shoe without laces", relevant[6:], others[:20], phrase_frequencies(relevant + others), 9
    )


def test_phrases_without_stop_words_numbers_and_letters() -> None:
    assert phrases("The 2 red T-shirts for men without a collar") == {
        *("red", "shirts", "men", "without", "collar"),
        # "without" begins no pair; "t" is a letter, "2" a number, "for" and "a" are stop words
        "men without",
    }
    assert phrases("") == phrases("for the 12") == set()


def test_phrase_frequencies_count_titles() -> None:
    counts, size = phrase_frequencies(["red red coat", "red coat", "blue coat", "hat"])
    assert (counts, size) == ({"red": 2, "coat": 3, "red coat": 2}, 4)
    assert phrase_frequencies(["red coat"], min_titles=1).counts == {"red": 1, "coat": 1, "red coat": 1}


def test_keywords_by_hand() -> None:
    known = phrase_frequencies(SHOP)
    relevant = [SHOP[8], SHOP[10]]  # the two stoves
    # The query retrieves the towel. "camping" and "stove" separate both stoves from it, but G²(2, 2, 0, 1) = 3.82 is
    # too low; with two more results that are no stoves it is high enough.
    assert log_likelihood_ratio(2, 2, 0, 1) < MIN_LOG_LIKELIHOOD < log_likelihood_ratio(2, 2, 0, 3)
    assert keywords("boil water for tea", relevant, ["tea towel"], known) == []
    result = keywords("boil water for tea", relevant, ["tea towel", "red kettle", "blue kettle"], known)
    # The pair is as good against the results, and better against the catalogue, where three more titles contain
    # "camping"; its words are not used again.
    assert log_likelihood_ratio(2, 2, 0, 11) > log_likelihood_ratio(2, 2, 3, 11)
    assert result == ["camping stove"]
    # A phrase that the results contain as well teaches nothing.
    assert keywords("boil water for tea", relevant, ["camping stove gas", "camping stove wood", "tin mug"], known) == []


def test_without_results_the_contrast_is_the_catalogue() -> None:
    assert keywords("hot drinks", ["white mug", "tin mug", "black mug"], [], phrase_frequencies(SHOP)) == ["mug"]
    assert keywords("mugs", ["white mug", "tin mug", "black mug"], [], phrase_frequencies(SHOP)) == []


WORD = st.sampled_from(["red", "coats", "coat", "boots", "rain", "slip", "on", "for", "without", "7", "hats", "é"])
TITLE = st.lists(WORD, min_size=1, max_size=5).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(st.lists(TITLE, min_size=4, max_size=40), st.data())
def test_keywords_are_new_and_set_the_relevant_titles_apart(titles: list[str], data: st.DataObject) -> None:
    query = data.draw(TITLE)
    rows = data.draw(st.sets(st.integers(0, len(titles) - 1), min_size=1))
    relevant = [titles[i] for i in sorted(rows)]
    others = [title for i, title in enumerate(titles) if i not in rows][: data.draw(st.integers(0, 10))]
    result = keywords(query, relevant, others, phrase_frequencies(titles), count=3)
    assert len(result) <= 3
    query_stems = {stem(word) for word in words(query)}
    used: set[str] = set()
    for phrase in result:
        stems = {stem(word) for word in phrase.split()}
        assert not stems <= query_stems  # at least one word is new
        assert not stems & used  # no word twice
        used |= stems
        inside = sum(phrase in phrases(title) for title in relevant) / len(relevant)
        assert inside > sum(phrase in phrases(title) for title in others) / max(1, len(others))
    assert result == keywords(query, relevant[::-1], others[::-1], phrase_frequencies(titles[::-1]), count=3)
