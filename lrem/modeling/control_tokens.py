"""The control tokens `<think>`, `</think>` and `<emb>` of a model that was trained without them."""

import hashlib

import torch
from torch import Tensor
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from lrem.modeling.template import CLOSE, EMB, THINK

NOISE = 0.1  # of the table's standard deviation: rows apart, yet each still near the mean


def add_control_tokens(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the control tokens that the tokenizer lacks, each with a row of its own in the embeddings and in the head.

    A row is the mean of the others and a little noise, the same at every call. A row equal to another token's would
    leave greedy decoding to choose between the two by their ids, for ever where the embeddings are frozen.
    """
    known = tokenizer.get_vocab()
    missing = [token for token in (THINK, CLOSE, EMB) if token not in known]
    # add_special_tokens would demote the special tokens that the model already has
    tokenizer.add_tokens([AddedToken(token, special=True) for token in missing], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not missing:
        return
    tables = [lm.get_input_embeddings().weight.detach()]
    if not lm.config.tie_word_embeddings:
        tables.append(lm.get_output_embeddings().weight.detach())
    rows = [torch.stack([_new_row(table, token) for token in missing]) for table in tables]
    if len(tokenizer) > len(tables[0]):
        lm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    ids = tokenizer.convert_tokens_to_ids(missing)
    with torch.no_grad():
        for module, new in zip((lm.get_input_embeddings(), lm.get_output_embeddings()), rows, strict=False):
            module.weight[ids] = new


def _new_row(table: Tensor, token: str) -> Tensor:
    """Return the mean row of `table` [V, H] and noise that depends on the token alone, [H]."""
    seed = int.from_bytes(hashlib.sha256(token.encode()).digest()[:4])
    noise = torch.randn(table.shape[1], generator=torch.Generator().manual_seed(seed)).to(table.device)
    row: Tensor = table.float().mean(0) + NOISE * table.float().std(0) * noise
    return row.to(table.dtype)
