"""The overrides of the reasoning."""

import pytest

from lrem.evaluation.overrides import override


def test_overrides() -> None:
    queries, own, words = ["red coat", "tea"], ["wool, warm coat", ""], ["oak", "iron"]
    assert override("own", queries, own, words, 0) == own
    assert override("empty", queries, own, words, 0) == ["", ""]
    assert override("query", queries, own, words, 0) == queries
    drawn = override("random", queries, own, words, 3)
    assert [len(text.split()) for text in drawn] == [3, 1]
    assert set(" ".join(drawn).split()) <= set(words)
    assert drawn == override("random", queries, own, words, 3)
    with pytest.raises(ValueError, match="gold.*own, empty, random, query"):
        override("gold", queries, own, words, 0)
