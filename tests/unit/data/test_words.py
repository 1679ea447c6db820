"""Words, literals and stems of queries and titles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrem.data.words import NEGATIONS, STOP_WORDS, content_words, literals, stem, words


def test_words_of_other_scripts_and_punctuation() -> None:
    assert words("Größe 42½, l'été—C++ 跑步鞋") == ["größe", "42½", "l", "été", "c", "跑步", "步鞋"]
    assert words(" \n!?") == []


def test_literals_have_a_digit() -> None:
    assert literals("AA batteries, 3-pack WH-1000XM4 (64GB)") == {"3-pack", "wh-1000xm4", "64gb"}
    assert literals("no number") == set()
    assert literals("iphone15手机壳 14寸 ノートPC13") == {"iphone15", "14", "pc13"}


@pytest.mark.parametrize(
    ("word", "stemmed"),
    [
        *(("coats", "coat"), ("boxes", "box"), ("watches", "watch"), ("brushes", "brush"), ("glasses", "glass")),
        *(("berries", "berry"), ("ties", "tie"), ("houses", "house"), ("gas", "gas"), ("dress", "dress")),
        *(("cactus", "cactus"), ("tennis", "tennis"), ("men", "men"), ("s", "s"), ("", "")),
    ],
)
def test_stem(word: str, stemmed: str) -> None:
    assert stem(word) == stemmed


@given(st.text(max_size=30))
def test_content_words_are_the_words_that_are_not_stop_words(text: str) -> None:
    assert not set(words(text)) & STOP_WORDS & set(content_words(text))
    assert len(content_words(text)) == sum(word not in STOP_WORDS for word in words(text))
    assert content_words(text) == content_words(f"  {text}!")


def test_negations_are_not_stop_words() -> None:
    assert not NEGATIONS & STOP_WORDS
