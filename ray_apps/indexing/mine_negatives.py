"""Mining of hard negatives for a triplet file, with the current model and its index.

Every triplet keeps its row and gets `negative_ids` and `negative_titles`, best first, perhaps empty. No item that a
triplet pairs with the query, or lists in its `relevant_ids`, is a negative.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import ray.data
import torch

from lrem.config import Config, MineConfig
from lrem.curation.negatives import select_hard_negatives
from lrem.data.files import write_parquet
from lrem.data.known_positives import query_identity
from lrem.data.schema import NEGATIVES, RELEVANT, TRIPLETS, read_table
from lrem.errors import DataError
from lrem.index import Hit
from lrem.index.snapshot import open_snapshot, read_manifest
from lrem.modeling.model import ReasoningEmbedder, fingerprint
from ray_apps.cluster.actor_pool import actor_pool
from ray_apps.cluster.progress import progress
from ray_apps.cluster.session import cluster


class Miner:
    """A model actor with the index, which adds negatives to batches of triplets."""

    def __init__(self, folder: str, index: str, relevant: dict[int, set[str]], mine: MineConfig) -> None:
        faiss.omp_set_num_threads(1)
        self.model = ReasoningEmbedder.load(folder).eval()
        if torch.cuda.is_available():
            self.model.cuda()
        self.index, self.relevant, self.mine = open_snapshot(index, fingerprint(Path(folder))), relevant, mine

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Triplets → triplets with `negative_ids` and `negative_titles`."""
        rows = batch.to_pylist()
        queries = self.model.encode_queries([row["query"] for row in rows], [row["reasoning"] for row in rows])
        positives = self.model.encode_items([row["title"] for row in rows])
        scores = (queries * positives).sum(axis=1)
        results = self.index.search(np.ascontiguousarray(queries), self.mine.window[1])
        ids = [self._choose(*arguments) for arguments in zip(rows, results, scores, strict=True)]
        title = {hit.item_id: hit.payload["title"] for hits in results for hit in hits}
        columns = {"negative_ids": ids, "negative_titles": [[title[item] for item in row] for row in ids]}
        return pa.table(
            {name: batch[name] for name in batch.column_names}
            | {name: pa.array(values, NEGATIVES.field(name).type) for name, values in columns.items()}
        )

    def _choose(self, row: dict[str, Any], hits: list[Hit], score: float) -> list[str]:
        relevant = self.relevant[query_identity(row["query"])] | {row["item_id"]}
        ranking = [(hit.item_id, hit.score) for hit in hits]
        settings = self.mine
        return select_hard_negatives(ranking, float(score), relevant, settings.window, settings.margin, settings.count)


def run(config: Config) -> dict[str, Any]:
    """Mine negatives for paths.triplets, write paths.mined, and return counts for the report.

    Raises:
        DataError: no triplet got a negative, or the triplets cannot be read.
        SnapshotError: the index is missing, or belongs to another model.
    """
    table = read_table(config.uri("triplets"), TRIPLETS, optional=RELEVANT)
    read_manifest(config.uri("index"), fingerprint(config.path("model")))
    relevant = relevant_items(table)
    with cluster(config), progress("mine-negatives", config.run_dir.name) as board:
        mined = pa.concat_tables(_mine(config, table, relevant, board))
    sizes = np.array([len(ids) for ids in mined["negative_ids"].to_pylist()])
    if not sizes.any():
        raise DataError("no triplet got a negative: widen mine.window or lower mine.margin")
    write_parquet(mined, config.path("mined"))
    return {"rows": mined.num_rows, "without": int((sizes == 0).sum()), "per row": round(float(sizes.mean()), 2)}


def relevant_items(triplets: pa.Table) -> dict[int, set[str]]:
    """Return query identity → ids of all items that are known to be relevant to it."""
    relevant: dict[int, set[str]] = {}
    columns = [triplets["query"], triplets["item_id"]]
    columns += [triplets["relevant_ids"]] if "relevant_ids" in triplets.column_names else []
    for query, item, *judged in zip(*(column.to_pylist() for column in columns), strict=True):
        known = relevant.setdefault(query_identity(query), set())
        known.update([item], *(ids or [] for ids in judged))
    return relevant


def _mine(config: Config, table: pa.Table, relevant: dict[int, set[str]], board: Any) -> Iterator[pa.Table]:
    settings = (str(config.path("model")), config.uri("index"), relevant, config.mine)
    rows = ray.data.from_arrow(table).repartition(-(-table.num_rows // config.embed.batch_size))
    pool = actor_pool(config, "mine-negatives", config.embed.actors)
    mined = pool.map(rows, Miner, settings, config.embed.batch_size, "pyarrow")
    done = 0
    for part in mined.iter_batches(batch_size=None, batch_format="pyarrow"):
        done += part.num_rows
        board.update.remote(done, table.num_rows)
        yield part.cast(pa.schema([*table.schema, *NEGATIVES]))
