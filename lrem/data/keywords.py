"""Keyword lists: phrases separated by commas, as a reasoning is written."""

import re
from collections.abc import Iterable

from lrem.data.words import normalize

SEPARATOR = ", "
COMMA = re.compile(r"(?<!\d),|,(?!\d)")  # not the comma of 12,000 btu


def split_phrases(text: str) -> list[str]:
    """Return the phrases of a list in order, with single spaces and without empty ones.

    >>> split_phrases("rubber  boots,hat, , 12,000 btu,")
    ['rubber boots', 'hat', '12,000 btu']
    """
    return [phrase for part in COMMA.split(text) if (phrase := " ".join(part.split()))]


def join_phrases(phrases: Iterable[str]) -> str:
    """Return a list of phrases as text."""
    return SEPARATOR.join(phrases)


def clean_keywords(text: str, cut: bool) -> str:
    """Return a written list without repeated phrases and, if it was `cut`, without the phrase that the cut hit.

    A cut list of one phrase keeps it: a part of a phrase says more than nothing. Repeats may differ in case.

    >>> clean_keywords("hat, scarf, Hat, wool glo", cut=True)
    'hat, scarf'
    >>> clean_keywords("hat, scarf,", cut=True), clean_keywords("wool glo", cut=True)
    ('hat, scarf', 'wool glo')
    """
    phrases = split_phrases(text)
    within_phrase = cut and len(phrases) > 1 and not text.rstrip().endswith(",")
    unique: dict[str, str] = {}
    for phrase in phrases[: len(phrases) - within_phrase]:
        unique.setdefault(normalize(phrase), phrase)
    return join_phrases(unique.values())
