"""Inputs of the curation benchmark: a made-up catalogue, queries, judgements and teacher's reasonings.

Families of items share some words. A query looks for one family: a served query in the words of its titles, any other
in words of its own. The same numbers give the same files.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lrem.data.files import write_parquet
from lrem.data.schema import ITEMS, QRELS, QUERIES, REASONINGS

INPUTS = {"queries": QUERIES, "qrels": QRELS, "teacher": REASONINGS}
CHUNK = 50_000  # queries generated at a time
VOCABULARY = 20_000
FAMILY = 4  # items
SHARED, OWN = 3, 5  # words of all titles of a family; maximum number of words of one item alone
EASY = 0.3  # share of queries that are served without reasoning
SILENT = 0.05  # share of queries without a reasoning
WRONG = 0.05  # share of queries whose reasoning is about another family
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprtvz" for vowel in "aeiou"]


class Shop(NamedTuple):
    """The word numbers of all titles."""

    shared: np.ndarray  # [families, SHARED]
    own: np.ndarray  # [items, OWN]; -1: no word


def make_inputs(rows: int, items: int, folder: Path) -> None:
    """Write items, queries, qrels and teacher as parquet files, a chunk at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    words = make_words()
    shop = make_shop(words, items, folder / "items.parquet")
    writers = {name: pq.ParquetWriter(folder / f"{name}.parquet", schema) for name, schema in INPUTS.items()}
    for start in range(0, rows, CHUNK):
        chunk = make_chunk(words, shop, np.arange(start, min(start + CHUNK, rows)))
        for name, writer in writers.items():
            writer.write_table(chunk[name].cast(INPUTS[name]))
    for writer in writers.values():
        writer.close()


def make_words() -> pa.Array:
    """Return VOCABULARY different words of three syllables, so that none is a stop word."""
    base = len(SYLLABLES)
    return pa.array(
        [SYLLABLES[i // base**2] + SYLLABLES[i // base % base] + SYLLABLES[i % base] for i in range(VOCABULARY)]
    )


def make_shop(words: pa.Array, items: int, file: Path) -> Shop:
    """Write the catalogue and return its words."""
    random = np.random.default_rng(0)
    families = -(-items // FAMILY)
    shop = Shop(
        sample_words(random, (families, SHARED), 100), keep_some(random, sample_words(random, (items, OWN), 2.7), 2)
    )
    titles = join_words(words, np.hstack([shop.shared[np.arange(items) // FAMILY], shop.own]))
    write_parquet(pa.table({"item_id": make_ids("i", np.arange(items)), "title": titles}).cast(ITEMS), file)
    return shop


def make_chunk(words: pa.Array, shop: Shop, rows: np.ndarray) -> dict[str, pa.Table]:
    """Return the queries of these numbers, with one to three judged items each, and most with a reasoning."""
    random, count, items = np.random.default_rng([1, int(rows[0])]), len(rows), len(shop.own)
    first = random.integers(items, size=count)
    family, kind = first // FAMILY, random.random(count)
    shared, ids = shop.shared[family], make_ids("q", rows)
    # a served query: two words of the family, one of the item, one of any; another: two to five of any
    served = np.column_stack(
        [shared[:, :2], shop.own[first, 0], sample_words(random, (count,), 2.7), np.full(count, -1)]
    )
    query_words = np.where(
        (kind < EASY)[:, None],
        keep_some(random, served, 3),
        keep_some(random, sample_words(random, (count, 5), 100), 2),
    )
    judged = family[:, None] * FAMILY + (first[:, None] + np.arange(3)) % FAMILY  # [count, 3]
    present = (np.arange(3) < random.integers(1, 4, size=count)[:, None]) & (judged < items)
    grades = random.choice([3, 2, 1, 0], p=[0.4, 0.3, 0.2, 0.1], size=judged.shape)
    grades[:, 0] = np.maximum(grades[:, 0], 1)
    subject = np.where(random.random(count) < WRONG, random.integers(len(shop.shared), size=count), family)
    phrases = [join_words(words, shop.shared[subject][:, places]) for places in ([0, 1], [2])]
    reasonings = pc.binary_join_element_wise(*phrases, join_words(words, sample_words(random, (count, 1), 2.7)), ", ")
    return {
        "queries": pa.table({"query_id": ids, "query": join_words(words, query_words)}),
        "qrels": pa.table(
            {
                "query_id": ids.take(np.nonzero(present)[0]),
                "item_id": make_ids("i", judged[present]),
                "grade": grades[present],
            }
        ),
        "teacher": pa.table({"query_id": ids, "reasoning": reasonings}).filter(kind < 1 - SILENT),
    }


def sample_words(random: np.random.Generator, shape: tuple[int, ...], offset: float) -> np.ndarray:
    """Draw word numbers by the Zipf-Mandelbrot law, p ~ 1/(rank + offset); a large offset flattens the head."""
    weights = np.cumsum(1 / (np.arange(VOCABULARY) + offset))
    return np.searchsorted(weights, random.random(shape) * weights[-1], side="right")


def keep_some(random: np.random.Generator, numbers: np.ndarray, minimum: int) -> np.ndarray:
    """Keep between `minimum` and all words of each row, from the left; the rest become -1."""
    kept = random.integers(minimum, numbers.shape[1] + 1, size=len(numbers))
    return np.where(np.arange(numbers.shape[1]) < kept[:, None], numbers, -1)


def join_words(words: pa.Array, numbers: np.ndarray) -> pa.Array:
    """Return the texts [N] of word numbers [N, W]; -1 is skipped."""
    columns = [words.take(pa.array(numbers[:, i], mask=numbers[:, i] < 0)) for i in range(numbers.shape[1])]
    return pc.binary_join_element_wise(*columns, " ", null_handling="skip")


def make_ids(prefix: str, numbers: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), "")
