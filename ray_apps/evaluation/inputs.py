"""The inputs of an evaluation: unseen test queries, their judgements, difficulty and oracle reasonings."""

from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from lrem.config import Config
from lrem.curation.difficulty import is_hard, measure_difficulty, reference_titles
from lrem.data.known_positives import query_identity
from lrem.data.schema import QRELS, QUERIES, REASONINGS, read_batches, read_table, require_unique
from lrem.errors import DataError
from lrem.evaluation.metrics import Qrels
from lrem.evaluation.trec import read_qrels
from ray_apps.cluster.progress import console
from ray_apps.evaluation.baselines import open_bm25

Queries = dict[str, dict[str, Any]]  # query_id → its row
HOW_TO_CREATE = "run `lrem import`, or without a query log `lrem bootstrap curate.test_share=0.1`"


class TestSet(NamedTuple):
    """The test queries, their judgements, and the number of queries left out because they were trained on."""

    queries: Queries
    qrels: Qrels
    left_out: int


def test_file(config: Config) -> Path:
    """Return the file of the test queries: those that curation set aside, else paths.queries."""
    return config.path("test") if config.path("test").exists() else config.path("queries")


def qrels_file(config: Config) -> Path:
    """Return the file of the judgements: paths.qrels, or those of `lrem bootstrap` if there are no others.

    Raises:
        DataError: there are no judgements.
    """
    file, bootstrapped = config.path("qrels"), config.run_dir / "bootstrap" / "qrels.parquet"
    if file.exists() or file != config.default_path("qrels"):
        return file
    if not bootstrapped.exists():
        raise DataError(f"{file} does not exist: {HOW_TO_CREATE}")
    return bootstrapped


def test_set(config: Config) -> TestSet:
    """Read the test queries that have judgements and were not trained on.

    Raises:
        DataError: a file cannot be used, no test query is judged, or all were trained on.
    """
    file, judgements = test_file(config), qrels_file(config)
    if not file.exists() and file == config.default_path("queries"):
        raise DataError(f"{file} does not exist: {HOW_TO_CREATE}")
    table, qrels = read_table(file, QUERIES, keep_extra=True), _read_judgements(judgements)
    require_unique(table, ["query_id"], file)
    rows = {row["query_id"]: row for row in table.to_pylist() if row.get("split", "test") == "test"}
    judged = {query_id: row for query_id, row in rows.items() if query_id in qrels}
    if not judged:
        raise DataError(f"no test query of {file} has a judgement in {judgements}: check that their query ids agree")
    trained = trained_on(config, judged)
    queries = {query_id: row for query_id, row in judged.items() if query_id not in trained}
    if not queries:
        raise DataError(
            f"every test query of {file} was trained on: set some aside (`lrem curate curate.test_share=0.1`, then "
            "train again), or point paths.test to other queries"
        )
    if trained:
        console.print(f"{len(trained)} of {len(judged)} test queries left out: they were trained on", highlight=False)
    return TestSet(queries, {query_id: qrels[query_id] for query_id in queries}, len(trained))


def _read_judgements(file: Path) -> dict[str, dict[str, int]]:
    """Read judgements in TREC's format or as parquet."""
    if file.suffix in (".txt", ".qrels", ".tsv"):
        return read_qrels(file)
    table = read_table(file, QRELS)
    require_unique(table, QRELS.names[:2], file)
    qrels: dict[str, dict[str, int]] = {}
    for row in table.to_pylist():
        qrels.setdefault(row["query_id"], {})[row["item_id"]] = row["grade"]
    return qrels


def trained_on(config: Config, queries: Queries) -> set[str]:
    """Return the ids of queries that are, by id and text, in paths.triplets or paths.rl_pairs if these files exist."""
    ids, trained = pa.array(list(queries)), set[str]()
    for uri in (config.uri("triplets"), config.uri("rl_pairs")):
        for table in read_batches(uri, QUERIES) if _exists(uri) else ():
            same_id = table.filter(pc.is_in(table["query_id"], ids))
            pairs = zip(same_id["query_id"].to_pylist(), same_id["query"].to_pylist(), strict=True)
            trained.update(
                query_id
                for query_id, text in pairs
                if query_identity(queries[query_id]["query"]) == query_identity(text)
            )
    return trained


def trained_folders(config: Config) -> dict[str, Path]:
    """Return name → folder of those of our models that exist."""
    folders = {
        "direct": config.path("direct"),
        "cold_start": config.path("cold_start"),
        "lrem": config.path("model"),
    }
    return {name: folder for name, folder in folders.items() if folder.exists()}


def _exists(uri: str) -> bool:
    if "://" not in uri:
        return Path(uri).exists()
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
        return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)
    except (ValueError, OSError) as error:
        raise DataError(f"{uri} cannot be accessed ({error}): check address, credentials and network") from error


def with_difficulty(config: Config, queries: Queries, qrels: Qrels, items: pa.Table) -> Queries:
    """Add `difficulty`, hard or easy, to the queries by the rules of curation with BM25 as the retriever.

    Returns the queries unchanged if one of them has a difficulty in words already, or if curate.difficulty has no
    threshold.
    """
    limits, k, relevant_from = config.curate.difficulty, config.curate.top_k, config.curate.relevant_from
    unset = all(limit is None for limit in (limits.recall_below, limits.margin_below, limits.overlap_below))
    if unset or any(isinstance(row.get("difficulty"), str) and row["difficulty"] for row in queries.values()):
        return queries
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    rankings = open_bm25(items).search([row["query"] for row in queries.values()], k)
    labelled: Queries = {}
    for (query_id, row), ranking in zip(queries.items(), rankings, strict=True):
        relevant = {item for item, grade in qrels[query_id].items() if grade >= relevant_from and item in titles}
        signals = measure_difficulty(row["query"], ranking, relevant, reference_titles(ranking, relevant, titles), k)
        hard = is_hard(signals, limits.recall_below, limits.margin_below, limits.overlap_below)
        labelled[query_id] = row | {"difficulty": "hard" if hard else "easy"}
    return labelled


def oracle_reasonings(config: Config, queries: Queries) -> dict[str, str]:
    """Return query_id → oracle reasoning, from paths.gold or else from the column `reasoning` of the test queries.

    Raises:
        DataError: the file at paths.gold cannot be used.
    """
    if not config.path("gold").exists() and config.path("gold") == config.default_path("gold"):
        return {query_id: text for query_id, row in queries.items() if (text := row.get("reasoning"))}
    table = read_table(config.path("gold"), REASONINGS)
    require_unique(table, ["query_id"], config.path("gold"))
    return {row["query_id"]: row["reasoning"] for row in table.to_pylist() if row["query_id"] in queries}
