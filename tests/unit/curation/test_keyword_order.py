"""The order of keywords: counts by definition, scores by hand, a permutation whatever the list."""

import math

from hypothesis import given
from hypothesis import strategies as st

from lrem.curation.contrast import log_likelihood_ratio
from lrem.curation.keyword_order import StemIndex, order_keywords
from lrem.data.words import content_words

WORDS = ["red", "hats", "hat", "wool", "for", "coat", "silk", ""]
TITLES = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join), min_size=1, max_size=8)


@given(TITLES, st.lists(st.sampled_from(WORDS), max_size=3).map(" ".join))
def test_counts_are_those_of_a_scan(titles: list[str], phrase: str) -> None:
    stems = set(content_words(phrase))
    scan = sum(stems <= set(content_words(title)) for title in titles) if stems else 0
    assert StemIndex(titles).count(stems) == scan


@given(TITLES, TITLES, st.integers(0, 3))
def test_the_scores_fall_and_equal_keywords_keep_their_order(
    titles: list[str], keywords: list[str], relevant: int
) -> None:
    index, inside = StemIndex(titles), titles[:relevant]
    ordered = order_keywords(keywords, inside, index)
    assert sorted(ordered) == sorted(keywords)

    def score(phrase: str) -> float:
        stems = set(content_words(phrase))
        count = index.count(stems)
        if not inside:
            return math.log(len(titles) / count) if count else -math.inf
        n = sum(stems <= set(content_words(title)) for title in inside) if stems else 0
        return log_likelihood_ratio(n, len(inside), count - n, len(titles) - len(inside))

    assert ordered == sorted(keywords, key=score, reverse=True)  # stable


def test_phrases_that_no_title_has_come_last_without_judgements() -> None:
    index = StemIndex(["red coat", "blue coat", "coat rack"])
    assert order_keywords(["parka", "coat", "anorak", "racks"], [], index) == ["racks", "coat", "parka", "anorak"]
