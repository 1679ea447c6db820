"""The dev set of a training run: held-out triplets ranked among a sample of the catalogue, on all ranks.

Stage 1 embeds the queries with the teacher's reasoning, or without for the direct baseline: it costs no generation.
Stage 2 embeds them with the model's own reasoning, which is what that stage trains.
"""

from typing import NamedTuple

import numpy as np
import torch

from lrem.config import CheckpointConfig, Config
from lrem.data.schema import TRIPLETS, read_items, read_table
from lrem.errors import DataError
from lrem.evaluation.metrics import per_query, summarise
from lrem.training.distributed import gather_rows, rank, world_size
from lrem.training.gradcache import make_chunks
from ray_apps.training.deepspeed_engine import TrainingEngine


class DevSet(NamedTuple):
    """Queries with their reasonings and relevant item ids, and the items they are ranked among."""

    queries: list[str]
    reasonings: list[str | None]
    relevant: list[set[str]]
    item_ids: list[str]
    titles: list[str]


def load(config: Config, checkpoint: CheckpointConfig, with_reasoning: bool) -> DevSet | None:
    """Read paths.dev and sample the catalogue; return None if there is no dev set.

    Raises:
        DataError: the file cannot be used, or none of a query's items is in the catalogue.
    """
    path = config.path("dev")
    if not path.exists() and path == config.default_path("dev"):
        return None
    rows = read_table(path, TRIPLETS).to_pylist()
    items = read_items(config.path("items"))
    title = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    relevant: dict[str, set[str]] = {}
    for row in rows:
        relevant.setdefault(row["query"], set()).update({row["item_id"]} & title.keys())
    without_positive = [query for query, item_ids in relevant.items() if not item_ids]
    if without_positive:
        raise DataError(
            f"{path}: query '{without_positive[0]}' has no positive: none of its items is in {config.path('items')} "
            f"({len(without_positive)} such queries): drop the query, or set paths.items to its catalogue"
        )
    positives = sorted(set().union(*relevant.values()))
    others = sorted(title.keys() - set(positives))
    sample = np.random.default_rng(config.seed).permutation(len(others))[: checkpoint.candidates]
    item_ids = positives + [others[i] for i in sample]
    reasoning = {row["query"]: row["reasoning"] if with_reasoning else None for row in rows}
    queries = list(relevant)
    return DevSet(
        queries,
        [reasoning[query] for query in queries],
        [relevant[query] for query in queries],
        item_ids,
        [title[item_id] for item_id in item_ids],
    )


def evaluate(engine: TrainingEngine, dev_set: DevSet, k: int, chunk_tokens: int) -> dict[str, float]:
    """Return HitRate@k and Precision@k on rank 0, nothing on the others; every rank must call."""
    renderer = engine.module.renderer
    query_ids = [renderer.query_ids(*pair) for pair in zip(dev_set.queries, dev_set.reasonings, strict=True)]
    queries = _encode(engine, query_ids, chunk_tokens)  # [Q, H]
    items = _encode(engine, [renderer.item_ids(title) for title in dev_set.titles], chunk_tokens)  # [N, H]
    if rank() != 0:
        return {}
    scores, columns = (queries @ items.T).topk(min(k, len(dev_set.item_ids)), dim=1)
    run = {
        str(query): [(dev_set.item_ids[i], score) for i, score in zip(row, row_scores, strict=True)]
        for query, (row, row_scores) in enumerate(zip(columns.tolist(), scores.tolist(), strict=True))
    }
    qrels = {str(query): dict.fromkeys(item_ids, 1) for query, item_ids in enumerate(dev_set.relevant)}
    means = summarise(per_query(run, qrels, k, k), {"all": list(qrels)})["all"]
    return {name: means[name] for name in ("hit_rate", "precision")}


def _encode(engine: TrainingEngine, rows: list[list[int]], chunk_tokens: int) -> torch.Tensor:
    """Return unit embeddings [N, H] of all rows on every rank; each rank embeds a share."""
    share = list(range(rank(), len(rows), world_size())) or [0]
    embeddings = gather_rows(encode_rows(engine, [rows[i] for i in share], chunk_tokens))
    positions = gather_rows(torch.tensor(share, device=engine.device))
    return torch.empty(len(rows), embeddings.shape[1], device=engine.device).index_copy_(0, positions, embeddings)


@torch.no_grad()
def encode_rows(engine: TrainingEngine, rows: list[list[int]], chunk_tokens: int) -> torch.Tensor:
    """Return unit embeddings [n, H] of this rank's rows, n ≥ 1; every rank must call, and takes as many forwards."""
    engine.eval()
    chunks = make_chunks(rows, None, 0, chunk_tokens, engine.device)
    embeddings = torch.cat([engine(chunk.sequences).embeddings[: len(chunk.rows)] for chunk in chunks])
    engine.train()
    return torch.empty_like(embeddings).index_copy_(0, torch.cat([chunk.rows for chunk in chunks]), embeddings)
