"""The data of the experiment on real shops: the tables to train on, and the queries and catalogues to score on."""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lrem.data.files import write_parquet
from lrem.data.schema import RELEVANT, TRIPLETS
from lrem.data.words import NEGATIONS, content_words, words
from lrem.evaluation.metrics import Qrels
from lrem.retrieval.bm25 import Bm25

FILES = ("items", "queries", "qrels", "gold")
SHOPS = ("home_depot", "esci")
OTHERS = 10_000  # unjudged items in a catalogue to score on
HARD_BELOW = 0.7  # recall of plain BM25 at 100: about a quarter of the queries
ESCI_GRADES = {"E": 3, "S": 2, "C": 1, "I": 0}


class ShopTest(NamedTuple):
    """What the systems are scored on: queries and their judgements, and a catalogue cut to what can be ranked fast.

    `relevant_from` is the lowest grade that counts for recall; nDCG uses the grades as gains. `oracle` has the
    reasoning of a strong teacher, which saw the query alone.
    """

    name: str
    item_ids: list[str]
    titles: list[str]
    queries: dict[str, str]  # query_id → text
    qrels: Qrels
    relevant_from: int
    oracle: dict[str, str]
    slices: dict[str, list[str]]  # name → query ids


def load_test(folder: Path, split: str, seed: int = 0) -> ShopTest:
    """Read a shop's queries of one split (all, where the shop has none), with their judged items and OTHERS more."""
    tables = {name: pq.read_table(folder / f"{name}.parquet") for name in FILES}
    queries, qrels = tables["queries"], tables["qrels"]
    if "split" in queries.column_names:
        queries = queries.filter(pc.equal(queries["split"], split))
    esci = "esci_label" in qrels.column_names
    labels = qrels["esci_label" if esci else "grade"].to_pylist()
    grades = [ESCI_GRADES[label] for label in labels] if esci else labels
    judged: dict[str, dict[str, int]] = {query_id: {} for query_id in queries["query_id"].to_pylist()}
    for query_id, item_id, grade in zip(
        qrels["query_id"].to_pylist(), qrels["item_id"].to_pylist(), grades, strict=True
    ):
        if query_id in judged:
            judged[query_id][item_id] = grade
    relevant_from = 3 if esci else 1
    judged = {query_id: row for query_id, row in judged.items() if max(row.values(), default=0) >= relevant_from}
    texts = dict(zip(queries["query_id"].to_pylist(), queries["query"].to_pylist(), strict=True))
    titles = _catalogue(tables["items"], {item for row in judged.values() for item in row}, seed)
    vocabulary = {word for title in tables["items"]["title"].to_pylist() for word in content_words(title)}
    test = ShopTest(
        name=folder.name,
        item_ids=list(titles),
        titles=list(titles.values()),
        queries={query_id: texts[query_id] for query_id in judged},
        qrels=judged,
        relevant_from=relevant_from,
        oracle=dict(zip(*(tables["gold"][name].to_pylist() for name in ("query_id", "reasoning")), strict=True)),
        slices={},
    )
    return test._replace(slices=_slices(test, vocabulary))


def _catalogue(items: pa.Table, judged: set[str], seed: int) -> dict[str, str]:
    """Return item_id → title of the judged items and of OTHERS drawn ones, in the table's order."""
    ids, titles = items["item_id"].to_pylist(), items["title"].to_pylist()
    others = [i for i, item_id in enumerate(ids) if item_id not in judged]
    drawn = {others[i] for i in np.random.default_rng(seed).permutation(len(others))[:OTHERS]}
    return {ids[i]: titles[i] for i in range(len(ids)) if ids[i] in judged or i in drawn}


def _slices(test: ShopTest, vocabulary: Collection[str]) -> dict[str, list[str]]:
    """Group the queries by what BM25 finds, by unknown words, by negations, and by the words of their items.

    Args:
        vocabulary: the content words of all titles of the shop.
    """
    rankings = Bm25(test.item_ids, test.titles).search(list(test.queries.values()), 100)
    titles = dict(zip(test.item_ids, test.titles, strict=True))
    slices: dict[str, list[str]] = {"all": list(test.queries)}
    for (query_id, text), ranking in zip(test.queries.items(), rankings, strict=True):
        relevant = {item for item, grade in test.qrels[query_id].items() if grade >= test.relevant_from}
        found = relevant.intersection(item for item, _ in ranking)
        terms = set(content_words(text))
        in_items = terms & {word for item in relevant for word in content_words(titles[item])}
        names = ["hard" if len(found) / min(100, len(relevant)) < HARD_BELOW else "easy"]
        names += ["misspelled"] * any(word.isalpha() and word not in vocabulary for word in terms)
        names += ["negation"] * bool(NEGATIONS.intersection(words(text)))
        names.append("overlap below 1" if len(in_items) < len(terms) else "overlap 1")
        for name in names:
            slices.setdefault(name, []).append(query_id)
    return slices


def write_training_data(shop: Path, folder: Path) -> None:
    """Write the tables that curation and training read: the shop's own, its teacher, and the dev queries as `dev`.

    A dev query has one row with an empty reasoning and all its relevant items: training scores it on own thoughts.
    """
    for name in ("items", "queries", "qrels", "teacher"):
        write_parquet(pq.read_table(shop / f"{name}.parquet"), folder / f"{name}.parquet")
    items = pq.read_table(shop / "items.parquet")
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    dev = load_test(shop, "dev")
    rows = []
    for query_id, grades in dev.qrels.items():
        relevant = sorted(item for item, grade in grades.items() if grade >= dev.relevant_from)
        row = {"query_id": query_id, "query": dev.queries[query_id], "reasoning": "", "item_id": relevant[0]}
        rows.append(row | {"title": titles[relevant[0]], "relevant_ids": relevant})
    write_parquet(pa.Table.from_pylist(rows, pa.schema([*TRIPLETS, *RELEVANT])), folder / "dev.parquet")
