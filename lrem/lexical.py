"""BM25 over titles: the conventional retriever of curation, and the lexical baseline. Uses bm25s."""

import bm25s
import numpy as np


class Bm25:
    """An in-memory BM25 index (Lucene variant, k1 1.5, b 0.75) over item titles."""

    def __init__(self, item_ids: list[str], titles: list[str]) -> None:
        self.item_ids = np.array(item_ids, dtype=object)
        self._index = bm25s.BM25()
        self._index.index(_tokens(titles), show_progress=False)

    def search(self, queries: list[str], k: int) -> list[list[tuple[str, float]]]:
        """The k best (item_id, score) of each query, best first; items that share no word are left out.

        >>> Bm25(["a", "b"], ["red coat", "blue hat"]).search(["hat"], 2)[0][0][0]
        'b'
        """
        rows, scores = self._index.retrieve(
            _tokens(queries), k=min(k, len(self.item_ids)), show_progress=False, sorted=True
        )
        return [
            [(self.item_ids[i], float(s)) for i, s in zip(row, score, strict=True) if s > 0]
            for row, score in zip(rows, scores, strict=True)
        ]


def _tokens(texts: list[str]) -> list[list[str]]:
    return bm25s.tokenize(texts, stopwords=None, return_ids=False, show_progress=False)
