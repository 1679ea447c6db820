"""The dev set of a training run: held-out triplets ranked against a part of the catalogue, on all ranks.

In stage 1 queries are embedded with the teacher's reasoning (or without, for the direct baseline): it costs no
generation. In stage 2 they are embedded with the model's own, which is what that stage trains.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from lrem.config import CheckpointConfig, Config
from lrem.data.schema import TRIPLETS, read_items, read_table
from lrem.errors import DataError
from lrem.evaluation.metrics import per_query, summarise
from lrem.training.distributed import gather_rows, rank, world_size
from lrem.training.gradcache import make_chunks


class DevSet(NamedTuple):
    """Queries with their reasoning and relevant item ids, and the items they are ranked among."""

    queries: list[str]
    reasonings: list[str | None]
    relevant: list[set[str]]
    item_ids: list[str]
    titles: list[str]


def load(config: Config, checkpoint: CheckpointConfig, with_reasoning: bool) -> DevSet | None:
    """Read paths.dev and draw the catalogue's part; None where there is no dev set.

    Raises:
        DataError: the file cannot be used, or the catalogue lacks every item of a query.
    """
    path = config.path("dev")
    if not path.exists() and path == config.default_path("dev"):
        return None
    table = read_table(path, TRIPLETS).to_pylist()
    items = read_items(config.path("items"))
    title = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    relevant: dict[str, set[str]] = {}
    for row in table:
        relevant.setdefault(row["query"], set()).update({row["item_id"]} & title.keys())
    lost = [query for query, found in relevant.items() if not found]
    if lost:
        raise DataError(
            f"{path}: query '{lost[0]}' has no positive: none of its items is in {config.path('items')} "
            f"({len(lost)} such queries): drop it, or name the catalogue it belongs to"
        )
    known = sorted(set().union(*relevant.values()))
    others = sorted(title.keys() - set(known))
    drawn = np.random.default_rng(config.seed).permutation(len(others))[: checkpoint.candidates]
    ids = known + [others[i] for i in drawn]
    reasoning = {row["query"]: row["reasoning"] if with_reasoning else None for row in table}
    queries = list(relevant)
    return DevSet(
        queries, [reasoning[q] for q in queries], [relevant[q] for q in queries], ids, [title[i] for i in ids]
    )


def measure(engine: Any, dev: DevSet, k: int, chunk_tokens: int) -> dict[str, float]:
    """HitRate@k and Precision@k on rank 0, nothing on the others; every rank must call."""
    renderer = engine.module.renderer
    queries = _encode(
        engine, [renderer.query(*pair) for pair in zip(dev.queries, dev.reasonings, strict=True)], chunk_tokens
    )
    items = _encode(engine, [renderer.item(title) for title in dev.titles], chunk_tokens)
    if rank() != 0:
        return {}
    scores, found = (queries @ items.T).topk(min(k, len(dev.item_ids)), dim=1)
    run = {
        str(q): [(dev.item_ids[i], score) for i, score in zip(row, values, strict=True)]
        for q, (row, values) in enumerate(zip(found.tolist(), scores.tolist(), strict=True))
    }
    qrels = {str(q): dict.fromkeys(wanted, 1) for q, wanted in enumerate(dev.relevant)}
    means = summarise(per_query(run, qrels, k, k), {"all": list(qrels)})["all"]
    return {name: means[name] for name in ("hit_rate", "precision")}


def _encode(engine: Any, rows: list[list[int]], chunk_tokens: int) -> torch.Tensor:
    """Unit embeddings [N, H] of all rows, each rank embedding a share."""
    mine = list(range(rank(), len(rows), world_size())) or [0]
    embeddings = gather_rows(encode_rows(engine, [rows[i] for i in mine], chunk_tokens))
    places = gather_rows(torch.tensor(mine, device=engine.device))
    return torch.empty(len(rows), embeddings.shape[1], device=engine.device).index_copy_(0, places, embeddings)


@torch.no_grad()
def encode_rows(engine: Any, rows: list[list[int]], chunk_tokens: int) -> torch.Tensor:
    """Unit embeddings [n, H] of this rank's rows, at least one; equally many forwards on every rank."""
    engine.eval()
    parts = make_chunks(rows, None, 0, chunk_tokens, engine.device)
    found = torch.cat([engine(part.sequences).embeddings[: len(part.rows)] for part in parts])
    engine.train()
    return torch.empty_like(found).index_copy_(0, torch.cat([part.rows for part in parts]), found)
