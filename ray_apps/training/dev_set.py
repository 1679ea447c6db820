"""The dev set of a training run: held-out triplets ranked among a sample of the catalogue, on all ranks.

Both stages embed the queries with the model's own greedy thoughts, as the service will, and with empty ones: the
difference is what thinking gains. The direct baseline embeds them without thoughts.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from lrem.config import CheckpointConfig, Config
from lrem.data.schema import RELEVANT, TRIPLETS, read_items, read_table
from lrem.errors import DataError
from lrem.evaluation.metrics import DEPTH, per_query, summarise
from lrem.training.distributed import gather_objects, gather_rows, rank, world_size
from lrem.training.gradcache import make_chunks
from ray_apps.training.deepspeed_engine import TrainingEngine
from ray_apps.training.step_thoughts import write_with_engine

METRICS = {"hit_rate": "hit_rate", "precision": "precision", "nDCG@10": "ndcg_10", "AP": "ap"}  # name → name in logs


class DevSet(NamedTuple):
    """Queries with their relevant item ids, and the items they are ranked among."""

    queries: list[str]
    relevant: list[set[str]]
    item_ids: list[str]
    titles: list[str]


def load(config: Config, checkpoint: CheckpointConfig) -> DevSet | None:
    """Read paths.dev and sample the catalogue; return None if there is no dev set.

    Relevant to a query are its rows' items and all `relevant_ids`.

    Raises:
        DataError: the file cannot be used, or none of a query's items is in the catalogue.
    """
    path = config.path("dev")
    if not path.exists() and path == config.default_path("dev"):
        return None
    rows = read_table(path, TRIPLETS, optional=RELEVANT).to_pylist()
    items = read_items(config.path("items"))
    title = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    relevant: dict[str, set[str]] = {}
    for row in rows:
        judged = {row["item_id"], *(row.get("relevant_ids") or [])}
        relevant.setdefault(row["query"], set()).update(judged & title.keys())
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
    return DevSet(list(relevant), list(relevant.values()), item_ids, [title[item_id] for item_id in item_ids])


def own_thoughts(engine: TrainingEngine, queries: Sequence[str]) -> list[str]:
    """Return the model's greedy thought on each query, at least one token long; every rank writes a share."""
    renderer = engine.module.renderer
    share = write_with_engine(engine, [renderer.thinking_prompt(query) for query in queries[rank() :: world_size()]])
    thoughts = [""] * len(queries)
    for number, texts in enumerate(gather_objects(share)):
        thoughts[number :: world_size()] = texts
    return thoughts


def evaluate(
    engine: TrainingEngine, dev_set: DevSet, reasonings: Mapping[str, Sequence[str | None]], k: int, chunk_tokens: int
) -> dict[str, float]:
    """Return METRICS on rank 0, nothing on the others; every rank must call.

    AP is over the first max(k, 100) items.

    Args:
        reasonings: suffix of the metrics' names → the reasoning of each query, see `Renderer.query_ids`.
        k: cutoff of HitRate and Precision.
    """
    renderer = engine.module.renderer
    items = _encode(engine, [renderer.item_ids(title) for title in dev_set.titles], chunk_tokens)  # [N, H]
    values: dict[str, float] = {}
    for suffix, texts in reasonings.items():
        query_ids = [renderer.query_ids(*pair) for pair in zip(dev_set.queries, texts, strict=True)]
        queries = _encode(engine, query_ids, chunk_tokens)  # [Q, H]
        if rank() == 0:
            values |= {f"{name}{suffix}": value for name, value in _score(queries, items, dev_set, k).items()}
    return values


def _score(queries: torch.Tensor, items: torch.Tensor, dev_set: DevSet, k: int) -> dict[str, float]:
    scores, columns = (queries @ items.T).topk(min(max(k, DEPTH), len(dev_set.item_ids)), dim=1)
    run = {
        str(query): [(dev_set.item_ids[i], score) for i, score in zip(row, row_scores, strict=True)]
        for query, (row, row_scores) in enumerate(zip(columns.tolist(), scores.tolist(), strict=True))
    }
    qrels = {str(query): dict.fromkeys(item_ids, 1) for query, item_ids in enumerate(dev_set.relevant)}
    means = summarise(per_query(run, qrels, k, k), {"all": list(qrels)})["all"]
    return {logged: means[name] for name, logged in METRICS.items()}


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
