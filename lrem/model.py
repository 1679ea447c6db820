"""The reasoning embedder: one causal language model that serves queries with reasoning, and items.

The embedding is the last layer's state at `<emb>`, L2-normalised, the same weights on both sides. Knows
transformers and the template; does not know how it is trained or where it runs. Source: paper, "Idea".
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lrem.config import ModelConfig
from lrem.files import atomic_folder
from lrem.template import CHAT, CLOSE, COMPACT, EMB, FILE, THINK, Renderer, Template

RECORD = "lrem_training.json"


class Sequences(NamedTuple):
    """Right-padded token ids. Causal attention makes an attention mask needless: padding comes last.

    ids [B, L] int64; lengths [B] int64; scored [B, L] bool, True on tokens whose log-probability counts.
    """

    ids: Tensor
    lengths: Tensor
    scored: Tensor

    def to(self, device: torch.device) -> "Sequences":
        """The same on another device."""
        return Sequences(*(tensor.to(device) for tensor in self))


class Encoded(NamedTuple):
    """What one forward over queries gives: embeddings [B, H], and log-probabilities [B, L] in nats, zero
    where `scored` is False."""

    embeddings: Tensor
    log_probs: Tensor


def pad(rows: Sequence[list[int]], scored: Sequence[tuple[int, int]] | None = None) -> Sequences:
    """Right-pad `rows` of ids to one length; `scored` gives each row's [start, end) of counted tokens.

    >>> pad([[5, 6, 7], [8]], [(1, 3), (0, 0)]).ids.tolist()
    [[5, 6, 7], [8, 0, 0]]
    """
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        if scored is not None:
            mask[i, scored[i][0] : scored[i][1]] = True
    return Sequences(ids, lengths, mask)


class ReasoningEmbedder(nn.Module):
    """A transformers causal LM with its tokenizer and template."""

    def __init__(self, lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
        super().__init__()
        self.lm, self.tokenizer, self.template = lm, tokenizer, template
        self.renderer = Renderer(template, tokenizer)

    @classmethod
    def from_config(cls, config: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> "ReasoningEmbedder":
        """A small Qwen2 with fresh weights, the compact template and the given tokenizer."""
        torch.manual_seed(seed)
        lm = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads,
                max_position_embeddings=config.max_positions,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        return cls(lm, tokenizer, COMPACT)

    @classmethod
    def load(cls, source: str | Path, dtype: torch.dtype = torch.float32) -> "ReasoningEmbedder":
        """Load a folder that `save` wrote, or any Hugging Face causal LM by name or folder.

        A model without our tokens gets them, their embeddings set to the mean of the others.

        Raises:
            OSError: no such folder, and no such model on the hub.
        """
        tokenizer = AutoTokenizer.from_pretrained(source)
        lm = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
        folder = Path(source)
        if (folder / FILE).exists():
            return cls(lm, tokenizer, Template.load(folder))
        _add_tokens(lm, tokenizer)
        return cls(lm, tokenizer, CHAT)

    def save(self, folder: Path, state: dict[str, Tensor] | None = None, record: dict[str, Any] | None = None) -> str:
        """Write a plain Hugging Face folder atomically; returns its fingerprint.

        Args:
            state: weights to write in place of the module's own.
            record: how the model was made, kept beside it as lrem_training.json.
        """
        if state and self.lm.config.tie_word_embeddings:
            state = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
        with atomic_folder(folder) as part:
            self.lm.save_pretrained(part, state_dict=state)
            self.tokenizer.save_pretrained(part)
            self.template.save(part)
            (part / RECORD).write_text(json.dumps(record or {}, indent=2) + "\n", encoding="utf-8")
        return fingerprint(folder)

    @property
    def dimension(self) -> int:
        """Length of an embedding, H."""
        return int(self.lm.config.hidden_size)

    def embed(self, batch: Sequences) -> Tensor:
        """Unit embeddings [B, H] at the last token of each row, in float32."""
        return _pool(self._hidden(batch), batch.lengths)

    def encode(self, batch: Sequences, temperature: float = 1.0) -> Encoded:
        """One forward for embeddings and for the log-probabilities of the scored tokens.

        The language-model head runs on the scored positions only; `temperature` divides the logits.
        """
        hidden = self._hidden(batch)  # [B, L, H]
        row, column = batch.scored.nonzero(as_tuple=True)  # [S]
        logits = self.lm.get_output_embeddings()(hidden[row, column - 1]).float() / temperature  # [S, V]
        chosen = -F.cross_entropy(logits, batch.ids[row, column], reduction="none")  # [S]
        log_probs = torch.zeros(batch.ids.shape, dtype=chosen.dtype, device=chosen.device)
        return Encoded(_pool(hidden, batch.lengths), log_probs.index_put((row, column), chosen))

    def forward(self, queries: Sequences, items: Sequences, temperature: float = 1.0) -> tuple[Encoded, Tensor]:
        """Both sides in one call, as a wrapped engine needs it: (queries encoded, items [M, H])."""
        return self.encode(queries, temperature), self.embed(items)

    def encode_items(self, titles: Sequence[str], batch_size: int = 256) -> np.ndarray:
        """Unit embeddings [N, H] float32 of item titles."""
        return self._encode_rows([self.renderer.item(title) for title in titles], batch_size)

    def encode_queries(
        self, queries: Sequence[str], reasonings: Sequence[str | None], batch_size: int = 256
    ) -> np.ndarray:
        """Unit embeddings [N, H] float32 of queries with their reasonings; None embeds without thinking."""
        rows = [self.renderer.query(q, r) for q, r in zip(queries, reasonings, strict=True)]
        return self._encode_rows(rows, batch_size)

    @torch.inference_mode()
    def _encode_rows(self, rows: list[list[int]], batch_size: int) -> np.ndarray:
        device = next(self.parameters()).device
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # like lengths together: less padding
        out = np.empty((len(rows), self.dimension), dtype=np.float32)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            out[chosen] = self.embed(pad([rows[i] for i in chosen]).to(device)).cpu().numpy()
        return out

    def _hidden(self, batch: Sequences) -> Tensor:
        return self.lm.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state


def _pool(hidden: Tensor, lengths: Tensor) -> Tensor:
    rows = torch.arange(len(lengths), device=hidden.device)
    return F.normalize(hidden[rows, lengths - 1].float(), dim=-1)


def _add_tokens(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    known = tokenizer.get_vocab()
    missing = [token for token in (THINK, CLOSE, EMB) if token not in known]
    # add_tokens, not add_special_tokens: that one would demote the special tokens the model came with
    tokenizer.add_tokens([AddedToken(token, special=True) for token in missing], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    mean = lm.get_input_embeddings().weight.detach().mean(0)
    if len(tokenizer) > lm.get_input_embeddings().weight.shape[0]:
        lm.resize_token_embeddings(len(tokenizer))
    ids = tokenizer.convert_tokens_to_ids(missing)
    with torch.no_grad():
        lm.get_input_embeddings().weight[ids] = mean
        if not lm.config.tie_word_embeddings:
            head = lm.get_output_embeddings().weight
            head[ids] = head.mean(0)


def fingerprint(folder: Path) -> str:
    """A short hash of the weights, the configuration, the tokenizer and the template.

    Raises:
        FileNotFoundError: the folder holds no safetensors.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise FileNotFoundError(f"{folder} holds no *.safetensors: train a model or pass its folder")
    digest = hashlib.sha256()
    for file in [*weights, *(folder / name for name in ("config.json", "tokenizer.json", FILE))]:
        if file.exists():
            with file.open("rb") as stream:
                digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]
