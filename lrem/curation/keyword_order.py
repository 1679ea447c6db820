"""The canonical order of a keyword list: the most decisive phrase first, so that a budget cuts the least decisive.

A phrase is in a title if all its content words are, in any order and number.
"""

import math
from array import array
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import reduce

import numpy as np

from lrem.curation.contrast import log_likelihood_ratio
from lrem.data.words import content_words

NO_ROWS = np.empty(0, dtype=np.int32)


class StemIndex:
    """The titles of a catalogue by content word; 4 bytes a word."""

    def __init__(self, titles: Iterable[str]) -> None:
        rows: dict[str, array[int]] = defaultdict(lambda: array("i"))
        self.size = 0
        for title in titles:
            for stem in set(content_words(title)):
                rows[stem].append(self.size)
            self.size += 1
        self._rows = {stem: np.frombuffer(numbers, np.int32) for stem, numbers in rows.items()}

    def count(self, stems: Collection[str]) -> int:
        """Return the number of titles with all of these content words; without any word none.

        >>> StemIndex(["red coat", "red hats", "a hat"]).count({"hat", "red"})
        1
        """
        rows = sorted((self._rows.get(stem, NO_ROWS) for stem in stems), key=len)
        return len(reduce(_common, rows)) if rows else 0


def _common(few: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Return the numbers of `few` that are in `many`, both ascending; common words have long lists."""
    if not len(few):
        return few
    places = np.searchsorted(many, few)
    return few[many[np.minimum(places, len(many) - 1)] == few]


def order_keywords(keywords: Sequence[str], relevant: Sequence[str], catalogue: StemIndex) -> list[str]:
    """Return the keywords, the most decisive first; equal ones keep their order.

    With relevant titles, by the G² of a phrase's frequency inside and outside of them, see `contrast`. Without, by its
    inverse document frequency, log N / n, and phrases that are in no title last.

    Args:
        keywords: phrases of one list.
        relevant: titles of the query's relevant items, perhaps none; they are in the catalogue too.
        catalogue: all titles.

    >>> titles = ["red coat", "blue coat", "red wool hat", "blue wool hat", "green hat"]
    >>> order_keywords(["soft", "hat", "wool hats", "red"], titles[2:4], StemIndex(titles))
    ['wool hats', 'hat', 'red', 'soft']
    >>> order_keywords(["soft", "hat", "wool hats", "red"], [], StemIndex(titles))
    ['wool hats', 'red', 'hat', 'soft']
    """
    phrase_stems = [set(content_words(phrase)) for phrase in keywords]
    counts = [catalogue.count(stems) for stems in phrase_stems]
    if relevant:
        titles = [set(content_words(title)) for title in relevant]
        inside = [sum(stems <= title for title in titles) if stems else 0 for stems in phrase_stems]
        size, rest = len(titles), catalogue.size - len(titles)
        scores = [log_likelihood_ratio(n, size, count - n, rest) for n, count in zip(inside, counts, strict=True)]
    else:
        scores = [math.log(catalogue.size / count) if count else -math.inf for count in counts]
    return [keywords[i] for i in sorted(range(len(keywords)), key=lambda i: -scores[i])]
