"""A batch of stage 1 with repeated items and hard negatives, and its gradient by definition."""

import numpy as np
import torch

from lrem.config import ColdStartConfig
from lrem.data.known_positives import KnownPositives
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.sequences import pad
from lrem.training.cold_start_step import ColdStartBatch, collate
from lrem.training.losses import info_nce, sft, truncate
from tests.unit.training.gradients import gradient_of

QUERIES = ["red coat", "a warm hat for long walks", "scarf", "blue", "silk shirt for summer", "coat", "green linen hat"]
REASONINGS = ["wool, winter", "wool", "", "shirt, scarf, hat", "linen", "", "winter, coat"]
TITLES = ["red wool coat", "wool hat", "silk scarf", "blue linen shirt", "silk shirt", "black coat", "green linen hat"]
KNOWN = KnownPositives(np.array([0, 1, 2, 3, 4, 5, 6, 6]), np.array([0, 1, 2, 3, 4, 0, 1, 3]))


def make_rows(model: ReasoningEmbedder) -> list[dict[str, object]]:
    """Return seven tokenised rows; 0 and 5 share their item, 3 has two hard negatives."""
    renderer, rows = model.renderer, []
    for i, (query, reasoning, title) in enumerate(zip(QUERIES, REASONINGS, TITLES, strict=True)):
        hard = [renderer.item_ids("black wool scarf"), renderer.item_ids("green tea")] if i == 3 else []
        rows.append(
            {
                "query_ids": renderer.query_ids(query, reasoning),
                "start": len(renderer.query_prompt(query)),
                "item_ids": renderer.item_ids(title),
                "query_key": i,
                "item_key": i % 5,
                "negative_ids": hard,
                "negative_keys": [70 + j for j in range(len(hard))],
            }
        )
    return rows


def make_batch(model: ReasoningEmbedder, without_thought: bool = False) -> ColdStartBatch:
    """Return the seven rows as a batch."""
    return collate(make_rows(model), KNOWN, without_thought=without_thought)


def plain_gradient(model: ReasoningEmbedder, batch: ColdStartBatch, settings: ColdStartConfig) -> torch.Tensor:
    """Return the gradient by definition: one forward per side, one backward of the joint loss."""
    model.zero_grad()
    sequences = pad(batch.queries, batch.scored_spans)
    encoded, items = model(sequences), model.embed(pad(batch.items))
    contrast = plain_info_nce(encoded.embeddings, items, batch, settings)
    if batch.embedded_without is not None:
        empty = model.embed(pad([model.renderer.query_ids(query, "") for query in QUERIES]))
        contrast = contrast + settings.empty_weight * plain_info_nce(empty, items, batch, settings)
    assert encoded.log_probs is not None
    assert sequences.scored is not None
    loss = settings.info_nce_weight * contrast + settings.sft_weight * sft(encoded.log_probs, sequences.scored)
    loss.backward()
    return gradient_of(model)


def plain_info_nce(
    queries: torch.Tensor, items: torch.Tensor, batch: ColdStartBatch, settings: ColdStartConfig
) -> torch.Tensor:
    """Return the mean of InfoNCE over the whole embeddings and their shortened forms."""
    keys, known = torch.tensor(batch.item_keys), torch.from_numpy(batch.known)
    terms = []
    for d in (queries.shape[1], *settings.matryoshka):
        pair = truncate(queries, d), truncate(items, d)
        terms.append(info_nce(*pair, torch.arange(len(batch.queries)), keys, known, settings.temperature))
    return torch.stack(terms).mean()
