"""Words, literals and stems of queries and titles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrem.data.words import NEGATIONS, STOP_WORDS, content_words, literals, normalize, stem, words


def test_words_of_other_scripts_and_punctuation() -> None:
    assert words("Größe 42½, l'été—C++ 跑步鞋") == ["grösse", "42", "1", "2", "l", "été", "c", "跑步", "步鞋"]
    assert words(" \n!?") == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cafe\u0301", "CAFÉ"),
        ("İSTANBUL", "istanbul"),
        ("ＬＥＤ　ｌａｍｐ", "led lamp"),
        ("note\u200bbook soft\u00adball \ufeffcup", "notebook softball cup"),
        ("Kohler™ sink", "kohler sink"),
        ("STRASSE", "straße"),
        ("ﾃﾚﾋﾞ", "テレビ"),
        ("8½ in", "8 1/2 in"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("⚡\ufe0f deal Kohler™\ufe0f", "⚡ deal kohler"),
        ("WH\u20111000XM4", "wh-1000xm4"),
    ],
)
def test_one_spelling_of_a_text_has_the_words_of_another(one: str, other: str) -> None:
    assert words(one) == words(other) != []
    assert content_words(one) == content_words(other)
    assert literals(f"7{one}") == literals(f"7{other}") or "1/2" in other


def test_marks_belong_to_their_words() -> None:
    assert words("स्टील की बोतल") == ["स्टील", "की", "बोतल"]
    assert words("கண்ணாடி பாட்டில்") == ["கண்ணாடி", "பாட்டில்"]


@given(st.text(max_size=30))
def test_normalizing_twice_changes_nothing(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)
    assert words(normalize(text)) == words(text)


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
