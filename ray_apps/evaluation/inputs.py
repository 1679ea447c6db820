"""What evaluation reads: the test queries, none that was trained on, their judgements and what is known of them."""

from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from lrem.config import Config
from lrem.curation.difficulty import is_hard, measure_difficulty, reference_titles
from lrem.data.schema import QRELS, QUERIES, REASONINGS, read_batches, read_table
from lrem.errors import DataError
from lrem.evaluation.metrics import Qrels
from lrem.evaluation.trec import read_qrels
from ray_apps.cluster.progress import console
from ray_apps.evaluation.systems import open_bm25

Queries = dict[str, dict[str, Any]]  # query_id → its row
NO_LOG = "run `lrem import`, or without a query log `lrem bootstrap curate.test_share=0.1`"


class TestSet(NamedTuple):
    """The queries to ask, their judgements, and how many queries were left out as they were trained on."""

    queries: Queries
    qrels: Qrels
    left_out: int


def test_file(config: Config) -> Path:
    """The queries to ask: those that curation kept for the test, or paths.queries."""
    return config.path("test") if config.path("test").exists() else config.path("queries")


def qrels_file(config: Config) -> Path:
    """The judgements: paths.qrels or, where there are none but of bootstrapped queries, these.

    Raises:
        DataError: there are none.
    """
    file, made = config.path("qrels"), config.run_dir / "bootstrap" / "qrels.parquet"
    if file.exists() or file != config.default_path("qrels"):
        return file
    if not made.exists():
        raise DataError(f"{file} does not exist: {NO_LOG}")
    return made


def test_set(config: Config) -> TestSet:
    """The test queries that have judgements, which may be in TREC's format, and were not trained on.

    Raises:
        DataError: a file cannot be used, no test query is judged, or all were trained on.
    """
    file, judged = test_file(config), qrels_file(config)
    if not file.exists() and file == config.default_path("queries"):
        raise DataError(f"{file} does not exist: {NO_LOG}")
    table = read_table(file, QUERIES, keep_extra=True)
    qrels: dict[str, dict[str, int]] = {}
    if judged.suffix in (".txt", ".qrels", ".tsv"):
        qrels = read_qrels(judged)
    else:
        for row in read_table(judged, QRELS).to_pylist():
            qrels.setdefault(row["query_id"], {})[row["item_id"]] = row["grade"]
    rows = {row["query_id"]: row for row in table.to_pylist() if row.get("split", "test") == "test"}
    asked = {query_id: row for query_id, row in rows.items() if query_id in qrels}
    if not asked:
        raise DataError(f"no test query of {file} has a judgement in {judged}")
    known = trained_on(config, asked)
    queries = {query_id: row for query_id, row in asked.items() if query_id not in known}
    if not queries:
        raise DataError(
            f"every test query of {file} was trained on: keep some apart (`lrem curate curate.test_share=0.1`, and "
            "train again), or set paths.test to others"
        )
    if known:
        console.print(f"{len(known)} of {len(asked)} test queries left out: they were trained on", highlight=False)
    return TestSet(queries, {query_id: qrels[query_id] for query_id in queries}, len(known))


def trained_on(config: Config, queries: Queries) -> set[str]:
    """Ids of the queries that stand, by id and text, in paths.triplets or paths.rl_pairs, as far as these are there."""
    ids, found = pa.array(list(queries)), set[str]()
    for uri in (config.uri("triplets"), config.uri("rl_pairs")):
        for table in read_batches(uri, QUERIES) if _is_there(uri) else ():
            same = table.filter(pc.is_in(table["query_id"], ids))
            pairs = zip(same["query_id"].to_pylist(), same["query"].to_pylist(), strict=True)
            found.update(query_id for query_id, text in pairs if queries[query_id]["query"] == text)
    return found


def _is_there(uri: str) -> bool:
    if "://" not in uri:
        return Path(uri).exists()
    try:
        place, path = fs.FileSystem.from_uri(uri)
        return bool(place.get_file_info(path).type != fs.FileType.NotFound)
    except (ValueError, OSError) as error:
        raise DataError(f"{uri} cannot be looked at ({error}): look at address, credentials and network") from error


def with_difficulty(config: Config, queries: Queries, qrels: Qrels, items: pa.Table) -> Queries:
    """The queries with `difficulty`, hard or easy, as curation tells it with BM25; as they are where some have one.

    So they are too where no threshold of curate.difficulty is set.
    """
    limits, k, least = config.curate.difficulty, config.curate.top_k, config.curate.relevant_from
    unset = all(limit is None for limit in (limits.recall_below, limits.margin_below, limits.overlap_below))
    if unset or any(row.get("difficulty") for row in queries.values()):
        return queries
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    rankings = open_bm25(items).search([row["query"] for row in queries.values()], k)
    told: Queries = {}
    for (query_id, row), ranking in zip(queries.items(), rankings, strict=True):
        relevant = {item for item, grade in qrels[query_id].items() if grade >= least and item in titles}
        found = measure_difficulty(row["query"], ranking, relevant, reference_titles(ranking, relevant, titles), k)
        hard = is_hard(found, limits.recall_below, limits.margin_below, limits.overlap_below)
        told[query_id] = row | {"difficulty": "hard" if hard else "easy"}
    return told


def gold_reasonings(config: Config, queries: Queries) -> dict[str, str]:
    """Reasonings of test queries by someone who knows: of paths.gold, or those that the queries bring themselves.

    Raises:
        DataError: the file that is named cannot be used.
    """
    if not config.path("gold").exists() and config.path("gold") == config.default_path("gold"):
        return {query_id: said for query_id, row in queries.items() if (said := row.get("reasoning"))}
    rows = read_table(config.path("gold"), REASONINGS).to_pylist()
    return {row["query_id"]: row["reasoning"] for row in rows if row["query_id"] in queries}
