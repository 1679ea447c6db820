"""The catalogue as a teacher: keywords that set the relevant items apart, by log-likelihood ratio. Needs no model.

The contrast is what the query alone retrieves: words that its results have anyway teach nothing.
Source: Dunning, "Accurate methods for the statistics of surprise and coincidence" (1993), G² of two counts.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from lrem.data.words import NEGATIONS, STOP_WORDS, stem, words

PAIR_ENDINGS = frozenset(("in", "off", "on", "up"))  # stop words that may end a pair, as in slip on
MIN_COVERAGE = 0.2  # share of the relevant titles with a keyword: it has to lead to many of them, not to a few
MIN_LOG_LIKELIHOOD = 6.63  # chi-square, one degree of freedom, p = 0.01: even one relevant item can have keywords


class PhraseFrequencies(NamedTuple):
    """The number of a catalogue's titles with each phrase of one or two words, and the number of all its titles."""

    counts: dict[str, int]
    size: int


def phrases(title: str) -> set[str]:
    """Return a title's words and pairs of neighbouring words, without stop words, bare numbers and single letters.

    >>> sorted(phrases("Slip-on shoes for men 42"))
    ['men', 'shoes', 'slip', 'slip on']
    """
    tokens = words(title)
    single = {word for word in tokens if len(word) > 1 and word not in STOP_WORDS and not word.isdigit()}
    pairs = {
        f"{a} {b}" for a, b in pairwise(tokens) if a in single and a not in NEGATIONS and b in single | PAIR_ENDINGS
    }
    return single | pairs


def phrase_frequencies(titles: Iterable[str], min_titles: int = 2) -> PhraseFrequencies:
    """Count phrases over a catalogue; those of fewer than `min_titles` titles name one product and are left out.

    >>> phrase_frequencies(["red coat", "red hat"]).counts
    {'red': 2}
    """
    counts: Counter[str] = Counter()
    size = 0
    for title in titles:
        counts.update(phrases(title))
        size += 1
    return PhraseFrequencies({phrase: n for phrase, n in counts.items() if n >= min_titles}, size)


def log_likelihood_ratio(inside: int, inside_size: int, outside: int, outside_size: int) -> float:
    """Return G² of a phrase's frequencies inside and outside a set of titles, negative if it is rarer inside.

    >>> round(log_likelihood_ratio(10, 10, 0, 90), 1), log_likelihood_ratio(1, 10, 9, 90)
    (65.0, 0.0)
    """
    total, size = inside + outside, inside_size + outside_size
    if not total or total == size:
        return 0.0
    score = 0.0
    for count, part in ((inside, inside_size), (outside, outside_size)):
        for observed, expected in ((count, part * total / size), (part - count, part * (size - total) / size)):
            score += observed * math.log(observed / expected) if observed else 0.0
    return round(2 * score, 9) * (1 if inside * outside_size >= outside * inside_size else -1)


def keywords(
    query: str, relevant: Sequence[str], retrieved: Sequence[str], catalogue: PhraseFrequencies, count: int = 5
) -> list[str]:
    """Return up to `count` phrases of the relevant titles that the query and the retrieved titles lack, best first.

    A phrase's score is the smaller of its G² against the retrieved titles and its G² against the catalogue: it has to
    separate the relevant items from both. Phrases do not share words.

    Args:
        query: words that are not keywords.
        relevant: titles of the relevant items.
        retrieved: titles of the other items that the query alone retrieves.
        catalogue: frequencies over all titles.
        count: maximum number of keywords.

    >>> titles = ["tea pot", "green tea", "black tea"] * 5 + ["coffee beans", "ground coffee", "iced coffee"]
    >>> keywords("stronger than tea", titles[15:], titles[:3], phrase_frequencies(titles))
    ['coffee']
    """
    kept: list[str] = []
    used_stems: set[str] = set()
    for phrase in _ranked_phrases(query, relevant, retrieved, catalogue):
        stems = _stems(phrase)
        if not stems & used_stems:
            kept.append(phrase)
            used_stems |= stems
        if len(kept) == count:
            break
    return kept


def _ranked_phrases(
    query: str, relevant: Sequence[str], retrieved: Sequence[str], catalogue: PhraseFrequencies
) -> list[str]:
    inside = Counter(phrase for title in relevant for phrase in phrases(title))
    contrast = Counter(phrase for title in retrieved for phrase in phrases(title))
    query_stems = {stem(word) for word in words(query)}
    scored = []
    for phrase, n in inside.items():
        known = catalogue.counts.get(phrase, 0)
        if not known or n < MIN_COVERAGE * len(relevant) or _stems(phrase) <= query_stems:
            continue
        rest = max(known - n, 0), max(catalogue.size - len(relevant), 1)
        against_retrieved = (
            log_likelihood_ratio(n, len(relevant), contrast[phrase], len(retrieved)) if retrieved else math.inf
        )
        score = min(against_retrieved, log_likelihood_ratio(n, len(relevant), *rest))
        if score >= MIN_LOG_LIKELIHOOD:
            scored.append((-score, -len(phrase.split()), phrase))
    return [phrase for _, _, phrase in sorted(scored)]


def _stems(phrase: str) -> set[str]:
    return {stem(word) for word in phrase.split()}
