"""Curation on Ray Data: teacher → rules → difference set → judge → triplets and RL pairs.

Reads a catalogue, queries, a teacher's reasonings and judgements; writes triplets.parquet,
rl_pairs.parquet and counters. A query that the retriever serves without help keeps an empty reasoning; one that
the teacher did not reason about, but that has judgements, is left to reinforcement.
"""

import zlib
from collections import Counter
from typing import Any

import pyarrow as pa
import ray
import ray.data

from lrem.config import Config
from lrem.curation.rules import clean, difference, expand
from lrem.files import write_json, write_parquet
from lrem.lexical import Bm25
from lrem.schema import QRELS, QUERIES, REASONINGS, RL_PAIRS, TRIPLETS, DataError, read_items, read_table
from ray_apps.cluster import cluster
from ray_apps.progress import progress

BATCH = 256
UNTAUGHT = "kept without a teacher"


def run(config: Config) -> dict[str, Any]:
    """Write triplets and RL pairs; returns the counters."""
    queries = read_table(config.path("queries"), QUERIES, keep_extra=True)
    if "split" in queries.column_names:
        queries = queries.filter(pa.compute.equal(queries["split"], "train"))
    taught = queries.select(QUERIES.names).join(
        read_table(config.path("teacher"), REASONINGS), "query_id", join_type="left outer"
    )
    with cluster(config), progress("curate") as board:
        rows = ray.data.from_arrow(taught.sort_by("query_id")).repartition(-(-taught.num_rows // BATCH))
        judged = rows.map_batches(
            Curator,
            fn_constructor_args=(config,),
            batch_size=BATCH,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=1),
        )
        tables = []
        for table in judged.iter_batches(batch_size=None, batch_format="pyarrow"):
            tables.append(table)
            board.update.remote(sum(part.num_rows for part in tables), taught.num_rows)
    return _write(pa.concat_tables(tables).sort_by("query_id"), config)


class Curator:
    """Rules, difference set and exact judge over batches of queries; one actor holds the catalogue."""

    def __init__(self, config: Config) -> None:
        items = read_items(config.path("items"))
        self.titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
        self.bm25 = Bm25(list(self.titles), list(self.titles.values()))
        qrels = read_table(config.path("qrels"), QRELS)
        self.relevant: dict[str, set[str]] = {}
        for query_id, item_id, grade in zip(*(qrels[name].to_pylist() for name in QRELS.names), strict=True):
            if grade > 0:
                self.relevant.setdefault(query_id, set()).add(item_id)
        self.config = config.curate

    def __call__(self, batch: pa.Table) -> pa.Table:
        """query_id, query, reasoning? → query_id, query, reasoning, outcome, items (ids of kept triplets)."""
        rows, top_k = batch.to_pylist(), self.config.top_k
        banned = frozenset(self.config.banned)
        for row in rows:
            row["taught"] = row["reasoning"] is not None
            row["reasoning"] = clean(row["reasoning"] or "", row["query"], banned)
        first = self.bm25.search([row["query"] for row in rows], top_k)
        second = self.bm25.search([expand(row["query"], row["reasoning"]) for row in rows], top_k)
        for row, one, two in zip(rows, first, second, strict=True):
            row["outcome"], row["items"] = self._judge(row, [i for i, _ in one], [i for i, _ in two])
        names = ("query_id", "query", "reasoning", "outcome")
        columns: dict[str, Any] = {name: pa.array([row[name] for row in rows], pa.string()) for name in names}
        return pa.table(columns | {"items": pa.array([row["items"] for row in rows], pa.list_(pa.string()))})

    def _judge(self, row: dict[str, Any], one: list[str], two: list[str]) -> tuple[str, list[str]]:
        relevant = self.relevant.get(row["query_id"], set())
        if not row["taught"]:
            lacking = sorted(relevant.difference(one)) if self.config.keep_untaught else []
            return (UNTAUGHT, self._spread(row["query_id"], lacking)) if lacking else ("no teacher", [])
        easy = not row["reasoning"]
        if easy and not self.config.keep_easy:
            return "no reasoning", []
        found = one if easy else difference(one, two)
        if not found:
            return "empty difference set", []
        kept = [item for item in found if item in relevant]
        if not kept:
            return "nothing relevant", []
        return ("kept without reasoning" if easy else "kept"), self._spread(row["query_id"], kept)

    def _spread(self, query_id: str, items: list[str]) -> list[str]:
        """items_per_query of them, from the whole list: the top alone would repeat one kind of product."""
        return sorted(items, key=lambda item: zlib.crc32(f"{query_id} {item}".encode()))[: self.config.items_per_query]


def _write(judged: pa.Table, config: Config) -> dict[str, Any]:
    counts: Counter[str] = Counter(judged["outcome"].to_pylist())
    items = read_items(config.path("items"))
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    triplets: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    dev: list[dict[str, Any]] = []
    for row in judged.to_pylist():
        draw = zlib.crc32(f"{config.seed} {row['query_id']}".encode()) / 2**32
        for item in row["items"]:
            whole = row | {"item_id": item, "title": titles[item]}
            aside = dev if draw >= 1 - config.curate.dev_share else triplets
            (pairs if draw < config.curate.rl_share or row["outcome"] == UNTAUGHT else aside).append(whole)
    if not triplets or not pairs:
        raise DataError(f"nothing left to train on ({dict(counts)}): check the teacher's reasonings and curate.top_k")
    write_parquet(pa.Table.from_pylist(triplets, TRIPLETS), config.path("triplets"))
    write_parquet(pa.Table.from_pylist(pairs, RL_PAIRS), config.path("rl_pairs"))
    if not dev:  # an older one of ours may hold what is trained on now
        config.default_path("dev").unlink(missing_ok=True)
    else:
        write_parquet(pa.Table.from_pylist(dev, TRIPLETS), config.path("dev"))
    summary = {"queries": judged.num_rows, **counts, "triplets": len(triplets), "rl_pairs": len(pairs), "dev": len(dev)}
    write_json(summary, config.path("triplets").with_name("counters.json"))
    return summary
