"""BM25 over titles, with bm25s: the conventional retriever of curation, and the lexical baseline of evaluation."""

import bm25s
import numpy as np

from lrem.data.words import content_words, words


class Bm25:
    """An in-memory BM25 index (Lucene variant, k1 1.5, b 0.75) over item titles.

    Args:
        item_ids: one id per item.
        titles: one title per item.
        stems: compare words without their plural endings and without stop words (`lrem.data.words`).
    """

    def __init__(self, item_ids: list[str], titles: list[str], stems: bool = False) -> None:
        self.item_ids = np.array(item_ids, dtype=object)
        self._tokenize = _stems if stems else _tokens
        self._index = bm25s.BM25()
        tokens = self._tokenize(titles)
        self._empty = not any(tokens)  # bm25s cannot index a catalogue without words
        if not self._empty:
            self._index.index(tokens, show_progress=False)

    def search(self, queries: list[str], k: int) -> list[list[tuple[str, float]]]:
        """Return the k best (item_id, score) of each query, best first; items that share no word are left out.

        Items with equal scores keep the order of the catalogue.

        >>> Bm25(["a", "b"], ["red coat", "blue hat"]).search(["hat"], 2)[0][0][0]
        'b'
        """
        return [self._best(tokens, k) for tokens in self._tokenize(queries)]

    def _best(self, tokens: list[str], k: int) -> list[tuple[str, float]]:
        """Rank only the items that share a word: NumPy's partition is slow among many zeros."""
        if not tokens or self._empty:
            return []
        scores = self._index.get_scores(tokens)  # [N] float32
        rows = np.flatnonzero(scores > 0)
        if len(rows) > k:
            kth_score = np.partition(scores[rows], -k)[-k]
            rows = rows[scores[rows] >= kth_score]
        rows = rows[np.argsort(-scores[rows], kind="stable")[:k]]
        return list(zip(self.item_ids[rows].tolist(), scores[rows].tolist(), strict=True))


def _tokens(texts: list[str]) -> list[list[str]]:
    """Return each text's words of two characters or more, as bm25s does by default."""
    return [[word for word in words(text) if len(word) > 1] for text in texts]


def _stems(texts: list[str]) -> list[list[str]]:
    return [content_words(text) for text in texts]
