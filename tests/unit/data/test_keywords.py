"""Keyword lists: what is joined is split again, and cleaning only drops phrases."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrem.data.keywords import clean_keywords, join_phrases, split_phrases

PHRASES = st.lists(st.sampled_from(["hat", "Hat", "wool hat", "12,000 btu", "5 ft"]), max_size=8)


@given(PHRASES)
def test_a_joined_list_is_split_into_its_phrases(phrases: list[str]) -> None:
    assert split_phrases(join_phrases(phrases)) == phrases


@given(PHRASES, st.booleans())
def test_cleaning_keeps_first_occurrences_in_order(phrases: list[str], cut: bool) -> None:
    kept = split_phrases(clean_keywords(join_phrases(phrases), cut))
    usable = phrases[:-1] if cut and len(phrases) > 1 else phrases
    assert [phrase.lower() for phrase in kept] == list(dict.fromkeys(phrase.lower() for phrase in usable))
    assert clean_keywords(join_phrases(kept), cut=False) == join_phrases(kept)


@pytest.mark.parametrize(
    ("text", "whole", "cut"),
    [
        ("women, women, women, wom", "women, wom", "women"),
        ("hat,scarf", "hat, scarf", "hat"),
        ("12,000 btu, 10,0", "12,000 btu, 10,0", "12,000 btu"),
        ("hat, ,", "hat", "hat"),
        (" , ", "", ""),
        ("one long phrase without a comma", "one long phrase without a comma", "one long phrase without a comma"),
    ],
)
def test_lists_as_models_write_them(text: str, whole: str, cut: str) -> None:
    assert (clean_keywords(text, cut=False), clean_keywords(text, cut=True)) == (whole, cut)
