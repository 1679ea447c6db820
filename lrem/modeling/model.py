"""The reasoning embedder: one causal language model that serves queries with reasoning, and items.

The embedding is the last layer's state at `<emb>`, L2-normalised, the same weights on both sides. Knows
transformers and the template; does not know how it is trained or where it runs. Source: paper, "Idea".
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
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
from lrem.data.files import atomic_folder
from lrem.errors import DataError
from lrem.modeling import sentence_transformers
from lrem.modeling.sequences import Sequences, pad
from lrem.modeling.template import CHAT, CLOSE, COMPACT, EMB, FILE, THINK, Renderer, Template

RECORD = "lrem_training.json"
CPU_TOKENS, GPU_TOKENS = 1024, 65_536  # padded tokens of one forward: what a CPU's caches hold, what keeps a GPU busy


class EncoderOutput(NamedTuple):
    """What one forward gives: embeddings [B, H], and log-probabilities [B, L] in nats, zero where `scored` is
    False (None without `scored`). Of packed groups, R completions: [R, H], and [R, T] by place in the completion.
    """

    embeddings: Tensor
    log_probs: Tensor | None = None


class ReasoningEmbedder(nn.Module):
    """A transformers causal LM with its tokenizer and template."""

    def __init__(self, lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
        super().__init__()
        self.lm, self.tokenizer, self.template = lm, tokenizer, template
        self.renderer = Renderer(template, tokenizer)
        # squared gradients at the last layer's states, by the loss that reads them; whoever reads them clears them
        self.state_gradients: dict[str, Tensor] = {}

    @classmethod
    def from_config(cls, config: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> "ReasoningEmbedder":
        """A small Qwen2 with fresh weights, the compact template and the given tokenizer."""
        torch.manual_seed(seed)
        special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        lm = Qwen2ForCausalLM(small_qwen2_config(config, len(tokenizer), **special))
        return cls(lm, tokenizer, override_limits(COMPACT, config))

    @classmethod
    def load(
        cls, source: str | Path, dtype: torch.dtype = torch.float32, limits: ModelConfig | None = None
    ) -> "ReasoningEmbedder":
        """Load a folder that `save` wrote, or any Hugging Face causal LM by name or folder.

        A model without our tokens gets them, their embeddings set to the mean of the others. `limits` overrides
        the template's token limits where it sets them.

        Raises:
            OSError: no such folder, and no such model on the hub.
        """
        tokenizer = AutoTokenizer.from_pretrained(source)
        lm = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
        folder = Path(source)
        if (folder / FILE).exists():
            return cls(lm, tokenizer, override_limits(Template.load(folder), limits))
        _add_tokens(lm, tokenizer)
        return cls(lm, tokenizer, override_limits(CHAT, limits))

    def save(self, folder: Path, state: dict[str, Tensor] | None = None, record: dict[str, Any] | None = None) -> str:
        """Write a plain Hugging Face folder atomically; returns its fingerprint. See `write`."""
        with atomic_folder(folder) as part:
            self.write(part, state, record)
        return fingerprint(folder)

    def write(self, folder: Path, state: dict[str, Tensor] | None = None, record: dict[str, Any] | None = None) -> None:
        """Write the files of a Hugging Face folder into an existing folder.

        Args:
            state: weights to write in place of the module's own.
            record: how the model was made, kept beside it as lrem_training.json.
        """
        if state and self.lm.config.tie_word_embeddings:
            state = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
        self.lm.save_pretrained(folder, state_dict=state)
        if self.template.matryoshka:  # where vLLM looks for it
            file = folder / "config.json"
            dimensions = {"matryoshka_dimensions": [*self.template.matryoshka, self.dimension]}
            file.write_text(json.dumps(json.loads(file.read_text()) | dimensions, indent=2) + "\n", encoding="utf-8")
        self.tokenizer.save_pretrained(folder)
        self.template.save(folder)
        sentence_transformers.write(folder, self.renderer, self.dimension)
        (folder / RECORD).write_text(json.dumps(record or {}, indent=2) + "\n", encoding="utf-8")

    def with_matryoshka(self, dimensions: Sequence[int]) -> "ReasoningEmbedder":
        """The same weights, to be trained and saved with these shorter embedding lengths.

        Raises:
            DataError: one of them is not between 1 and H-1.
        """
        if any(not 0 < d < self.dimension for d in dimensions):
            raise DataError(f"matryoshka={list(dimensions)}: each has to be below the embedding's {self.dimension}")
        return ReasoningEmbedder(self.lm, self.tokenizer, replace(self.template, matryoshka=tuple(dimensions)))

    @property
    def dimension(self) -> int:
        """Length of an embedding, H."""
        return int(self.lm.config.hidden_size)

    def embed(self, batch: Sequences) -> Tensor:
        """Unit embeddings [B, H] at the last token of each row, in float32."""
        return self.forward(batch._replace(scored=None)).embeddings

    def forward(self, batch: Sequences, temperature: float = 1.0) -> EncoderOutput:
        """One pass over `batch`, see `encode`."""
        return encode(self.lm, batch, temperature, self.state_gradients)

    @torch.inference_mode()
    def chances(self, queries: Sequence[str], at_once: int = 64) -> list[float]:
        """The chance of an empty thought for each query, 0 to 1: that `</think>` follows `<think>` at once."""
        device, found = next(self.parameters()).device, []
        prompts = [self.renderer.thinking_prompt(query) for query in queries]
        for start in range(0, len(prompts), at_once):
            some = prompts[start : start + at_once]
            rows = [[*prompt, self.renderer.close] for prompt in some]
            batch = pad(rows, [(len(prompt), len(prompt) + 1) for prompt in some]).to(device)
            found += self(batch).log_probs.sum(1).exp().tolist()  # one token of each row is scored
        return found

    def encode_items(self, titles: Sequence[str], max_tokens: int | None = None) -> np.ndarray:
        """Unit embeddings [N, H] float32 of item titles; a forward takes `max_tokens`, padding included."""
        return self._encode_rows([self.renderer.item(title) for title in titles], max_tokens)

    def encode_queries(
        self, queries: Sequence[str], reasonings: Sequence[str | None], max_tokens: int | None = None
    ) -> np.ndarray:
        """Unit embeddings [N, H] float32 of queries with their reasonings; None embeds without thinking."""
        rows = [self.renderer.query(q, r) for q, r in zip(queries, reasonings, strict=True)]
        return self._encode_rows(rows, max_tokens)

    @torch.inference_mode()
    def _encode_rows(self, rows: list[list[int]], max_tokens: int | None) -> np.ndarray:
        device = next(self.parameters()).device
        budget = max_tokens or (CPU_TOKENS if device.type == "cpu" else GPU_TOKENS)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # like lengths together: less padding
        out = np.empty((len(rows), self.dimension), dtype=np.float32)
        start = 0
        while start < len(order):
            end = start + 1
            while end < len(order) and (end + 1 - start) * len(rows[order[end]]) <= budget:
                end += 1
            chosen = order[start:end]
            out[chosen] = self.embed(pad([rows[i] for i in chosen]).to(device)).cpu().numpy()
            start = end
        return out


def encode(
    lm: PreTrainedModel, batch: Sequences, temperature: float = 1.0, watched: dict[str, Tensor] | None = None
) -> EncoderOutput:
    """One pass for embeddings and, where `batch.scored` is given, for the scored tokens' log-probabilities.

    The language-model head runs on the scored positions only: 151k logits for every token are what runs a small
    GPU out of memory.

    Args:
        temperature: divides the logits.
        watched: takes the squared gradients that reach the states each loss reads, `info_nce` and `sft`.
    """
    tree = batch.tree
    where = {} if tree is None else {"attention_mask": _block_mask(lm, tree.mask), "position_ids": tree.positions}
    hidden = lm.base_model(input_ids=batch.ids, use_cache=False, **where).last_hidden_state  # [B, L, H]
    rows = torch.arange(len(batch.lengths), device=hidden.device)
    pooled = hidden[rows, batch.lengths - 1] if tree is None else hidden[tree.ends[:, 0], tree.ends[:, 1]]  # [R, H]
    _record_grad_norm(pooled, "info_nce", watched)
    embeddings = F.normalize(pooled.float(), dim=-1)
    if batch.scored is None:
        return EncoderOutput(embeddings)
    row, column = batch.scored.nonzero(as_tuple=True)  # [S]
    states = hidden[row, column - 1 if tree is None else tree.sources]  # [S, H]
    _record_grad_norm(states, "sft", watched)
    logits = lm.get_output_embeddings()(states).float()  # [S, V]
    if temperature != 1.0:
        logits = logits / temperature
    chosen = -F.cross_entropy(logits, batch.ids[row, column], reduction="none")  # [S]
    if tree is not None:
        longest = int(tree.slots[:, 1].max()) + 1 if len(tree.slots) else 1
        log_probs = chosen.new_zeros(len(tree.ends), longest)
        return EncoderOutput(embeddings, log_probs.index_put((tree.slots[:, 0], tree.slots[:, 1]), chosen))
    log_probs = torch.zeros(batch.ids.shape, dtype=chosen.dtype, device=chosen.device)
    return EncoderOutput(embeddings, log_probs.index_put((row, column), chosen))


def _block_mask(lm: PreTrainedModel, mask: Tensor) -> Tensor:
    """A [B, 1, L, L] bool mask as the model's attention takes it: sdpa as it is, eager adds numbers to the scores."""
    kind = lm.config._attn_implementation
    if kind == "sdpa":
        return mask
    if kind != "eager":
        raise ValueError(f"attention '{kind}' takes no block mask: load the model with sdpa or eager attention")
    return torch.where(mask, 0.0, torch.finfo(lm.dtype).min).to(lm.dtype)


def _record_grad_norm(states: Tensor, reader: str, watched: dict[str, Tensor] | None) -> None:
    if watched is None or not states.requires_grad:
        return

    def add(gradient: Tensor) -> None:
        watched[reader] = watched.get(reader, 0) + gradient.float().square().sum()

    states.register_hook(add)


def small_qwen2_config(config: ModelConfig, vocab_size: int | None = None, **special: int) -> Qwen2Config:
    """The transformers configuration of a small Qwen2 with a tied head. special: ids of the special tokens."""
    return Qwen2Config(
        vocab_size=vocab_size or config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        **special,
    )


def override_limits(template: Template, config: ModelConfig | None) -> Template:
    """The template with the limits that a configuration sets."""
    names = ("budget", "max_query_tokens", "max_item_tokens")
    given = {name: getattr(config, name, None) for name in names}
    return replace(template, **{name: value for name, value in given.items() if value is not None})


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
