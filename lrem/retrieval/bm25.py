"""BM25 over titles: the conventional retriever of curation, and the lexical baseline. Uses bm25s."""

import bm25s
import numpy as np

from lrem.data.words import content_words, space_bigrams


class Bm25:
    """An in-memory BM25 index (Lucene variant, k1 1.5, b 0.75) over item titles.

    Args:
        stems: compare words without their plural endings, and leave stop words out (`lrem.data.words`).
    """

    def __init__(self, item_ids: list[str], titles: list[str], stems: bool = False) -> None:
        self.item_ids = np.array(item_ids, dtype=object)
        self._tokens = _stems if stems else _tokens
        self._index = bm25s.BM25()
        found = self._tokens(titles)
        self._empty = not any(found)  # bm25s cannot index a catalogue without a word
        if not self._empty:
            self._index.index(found, show_progress=False)

    def search(self, queries: list[str], k: int) -> list[list[tuple[str, float]]]:
        """The k best (item_id, score) of each query, best first; items that share no word are left out.

        Of equal scores the item that comes first in the catalogue is the better.

        >>> Bm25(["a", "b"], ["red coat", "blue hat"]).search(["hat"], 2)[0][0][0]
        'b'
        """
        return [self._best(tokens, k) for tokens in self._tokens(queries)]

    def _best(self, tokens: list[str], k: int) -> list[tuple[str, float]]:
        """Of one query. Only items that share a word are sorted: NumPy's partition is slow among many zeros."""
        if not tokens or self._empty:
            return []
        scores = self._index.get_scores(tokens)  # [N] float32
        places = np.flatnonzero(scores > 0)
        if len(places) > k:
            least = np.partition(scores[places], -k)[-k]
            places = places[scores[places] >= least]
        places = places[np.argsort(-scores[places], kind="stable")[:k]]
        return list(zip(self.item_ids[places].tolist(), scores[places].tolist(), strict=True))


def _tokens(texts: list[str]) -> list[list[str]]:
    texts = [space_bigrams(text) for text in texts]
    return bm25s.tokenize(texts, stopwords=None, return_ids=False, show_progress=False)


def _stems(texts: list[str]) -> list[list[str]]:
    return [content_words(text) for text in texts]
