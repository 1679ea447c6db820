"""The catalogue as a teacher: keywords that set the wanted items apart, by log-likelihood. Knows counts, no model.

What the query alone retrieves is the contrast: words that its results have anyway teach nothing.
Source: Dunning, "Accurate methods for the statistics of surprise and coincidence" (1993), the G² of two counts.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from lrem.data.words import NEGATIONS, STOP, stem, words

LINKS = frozenset(("in", "off", "on", "up"))  # stop words that may end a pair, as in slip on
COVERED = 0.2  # share of the wanted titles that a keyword has to stand in: it is to lead to them all, not to a few
LEAST_G2 = 6.63  # of one degree of freedom, once in a hundred by chance: one wanted item can still have keywords


class Background(NamedTuple):
    """In how many of the catalogue's `size` titles each phrase of one or two words stands."""

    counts: dict[str, int]
    size: int


def phrases(title: str) -> set[str]:
    """A title's words and neighbouring pairs of words; no stop words, no bare numbers, no single letters.

    >>> sorted(phrases("Slip-on shoes for men 42"))
    ['men', 'shoes', 'slip', 'slip on']
    """
    found = words(title)
    single = {word for word in found if len(word) > 1 and word not in STOP and not word.isdigit()}
    pairs = {f"{a} {b}" for a, b in pairwise(found) if a in single and a not in NEGATIONS and b in single | LINKS}
    return single | pairs


def background(titles: Iterable[str], least: int = 2) -> Background:
    """Counts over a catalogue; phrases of fewer than `least` titles are left out: they name one product.

    >>> background(["red coat", "red hat"]).counts
    {'red': 2}
    """
    counts: Counter[str] = Counter()
    size = 0
    for title in titles:
        counts.update(phrases(title))
        size += 1
    return Background({phrase: n for phrase, n in counts.items() if n >= least}, size)


def g2(inside: int, inside_size: int, outside: int, outside_size: int) -> float:
    """Log-likelihood ratio of a phrase's two shares, signed: negative where it is rarer inside.

    >>> round(g2(10, 10, 0, 90), 1), g2(1, 10, 9, 90)
    (65.0, 0.0)
    """
    total, size = inside + outside, inside_size + outside_size
    if not total or total == size:
        return 0.0
    score = 0.0
    for count, part in ((inside, inside_size), (outside, outside_size)):
        for seen, expected in ((count, part * total / size), (part - count, part * (size - total) / size)):
            score += seen * math.log(seen / expected) if seen else 0.0
    return round(2 * score, 9) * (1 if inside * outside_size >= outside * inside_size else -1)


def keywords(
    query: str, wanted: Sequence[str], retrieved: Sequence[str], catalogue: Background, count: int = 5
) -> list[str]:
    """Up to `count` phrases of the wanted titles that neither the query nor the retrieved titles have, best first.

    A phrase's score is the smaller of its G² against the retrieved titles and its G² against the catalogue, so that it
    has to tell the wanted items from both. Words of a phrase that was taken are not taken again.

    Args:
        wanted, retrieved: titles of the relevant items, and of the others that the query alone finds.

    >>> titles = ["tea pot", "green tea", "black tea"] * 5 + ["coffee beans", "ground coffee", "iced coffee"]
    >>> keywords("stronger than tea", titles[15:], titles[:3], background(titles))
    ['coffee']
    """
    inside = Counter(phrase for title in wanted for phrase in phrases(title))
    contrast = Counter(phrase for title in retrieved for phrase in phrases(title))
    asked = {stem(word) for word in words(query)}
    scored = []
    for phrase, n in inside.items():
        known = catalogue.counts.get(phrase, 0)
        if not known or n < COVERED * len(wanted) or {stem(word) for word in phrase.split()} <= asked:
            continue
        rest = max(known - n, 0), max(catalogue.size - len(wanted), 1)
        apart = g2(n, len(wanted), contrast[phrase], len(retrieved)) if retrieved else math.inf
        score = min(apart, g2(n, len(wanted), *rest))
        if score >= LEAST_G2:
            scored.append((-score, -len(phrase.split()), phrase))
    kept: list[str] = []
    taken: set[str] = set()
    for _, _, phrase in sorted(scored):
        stems = {stem(word) for word in phrase.split()}
        if not stems & taken:
            kept.append(phrase)
            taken |= stems
        if len(kept) == count:
            break
    return kept
