"""The reasoning embedder: one causal language model that reasons over queries, and embeds queries and items.

The embedding is the last layer's state at `<emb>`, L2-normalised, with the same weights on both sides. Source: paper,
"Idea".
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
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
from lrem.modeling.control_tokens import add_control_tokens
from lrem.modeling.encoding import EncoderOutput, StateObserver, encode
from lrem.modeling.sequences import Sequences, pad
from lrem.modeling.template import COMPACT, FILE, Renderer, Template, pretrained_template
from lrem.modeling.thinking import generate_reasonings, needs_thinking

RECORD = "lrem_training.json"
CPU_TOKENS, GPU_TOKENS = 1024, 65_536  # padded tokens of one forward: they fit a CPU's caches, they keep a GPU busy


class ReasoningEmbedder(nn.Module):
    """A transformers causal LM with its tokenizer and template."""

    def __init__(self, lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
        super().__init__()
        self.lm, self.tokenizer, self.template = lm, tokenizer, template
        self.renderer = Renderer(template, tokenizer)
        self.autocast = False  # whether to compute in bfloat16, whatever the type of the weights

    @classmethod
    def from_config(cls, config: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> "ReasoningEmbedder":
        """Create a small Qwen2 with fresh weights, the compact template and the given tokenizer."""
        torch.manual_seed(seed)
        special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        lm = Qwen2ForCausalLM(small_qwen2_config(config, len(tokenizer), **special))
        return cls(lm, tokenizer, override_limits(COMPACT, config))

    @classmethod
    def load(
        cls, source: str | Path, dtype: torch.dtype = torch.float32, limits: ModelConfig | None = None
    ) -> "ReasoningEmbedder":
        """Load a folder that `save` wrote, or any Hugging Face causal LM by name or folder.

        A model without `<think>`, `</think>` or `<emb>` gets them, see `add_control_tokens`.

        Args:
            limits: its template and token limits override those stored with the model.

        Raises:
            OSError: no such folder, and no such model on the hub.
        """
        tokenizer = AutoTokenizer.from_pretrained(source)
        lm = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
        add_control_tokens(lm, tokenizer)
        form, file = limits.template if limits else None, Path(source) / FILE
        template = Template.load(file.parent) if file.exists() else pretrained_template(form, tokenizer)
        if form:
            template = _with_form(template, pretrained_template(form, tokenizer))
        return cls(lm, tokenizer, override_limits(template, limits))

    def save(self, folder: Path, state: dict[str, Tensor] | None = None, record: dict[str, Any] | None = None) -> str:
        """Write a plain Hugging Face folder atomically and return its fingerprint. Arguments as for `write`."""
        with atomic_folder(folder) as part:
            self.write(part, state, record)
        return fingerprint(folder)

    def write(self, folder: Path, state: dict[str, Tensor] | None = None, record: dict[str, Any] | None = None) -> None:
        """Write the files of a Hugging Face folder into an existing folder.

        Args:
            state: weights to write in place of the module's own.
            record: how the model was trained, kept in the folder as lrem_training.json.
        """
        if state and self.lm.config.tie_word_embeddings:
            state = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
        self.lm.save_pretrained(folder, state_dict=state)
        if self.template.matryoshka:  # vLLM reads them from config.json
            file = folder / "config.json"
            dimensions = {"matryoshka_dimensions": [*self.template.matryoshka, self.dimension]}
            file.write_text(json.dumps(json.loads(file.read_text()) | dimensions, indent=2) + "\n", encoding="utf-8")
        self.tokenizer.save_pretrained(folder)
        self.template.save(folder)
        sentence_transformers.write(folder, self.renderer, self.dimension)
        (folder / RECORD).write_text(json.dumps(record or {}, indent=2) + "\n", encoding="utf-8")

    def with_matryoshka(self, dimensions: Sequence[int]) -> "ReasoningEmbedder":
        """Return a model on the same weights that is trained and saved with these shorter embedding lengths.

        Raises:
            DataError: a length is not between 1 and H-1.
        """
        if any(not 0 < d < self.dimension for d in dimensions):
            raise DataError(f"matryoshka={list(dimensions)}: each must be below the embedding's {self.dimension}")
        return ReasoningEmbedder(self.lm, self.tokenizer, replace(self.template, matryoshka=tuple(dimensions)))

    @property
    def dimension(self) -> int:
        """Length of an embedding, H."""
        return int(self.lm.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def embed(self, batch: Sequences) -> Tensor:
        """Return unit embeddings [B, H] at the last token of each row, in float32."""
        return self.forward(batch._replace(scored=None)).embeddings

    def forward(
        self, batch: Sequences, temperature: float = 1.0, observe: StateObserver | None = None
    ) -> EncoderOutput:
        """Run one pass over `batch`, see `encode`."""
        with torch.autocast(self.device.type, torch.bfloat16) if self.autocast else nullcontext():
            return encode(self.lm, batch, temperature, observe)

    def reason(self, queries: Sequence[str], think_below: float | None = None, batch_size: int = 32) -> list[str]:
        """Generate the greedy reasoning of each query; "" for queries that need none.

        Args:
            think_below: reason only if an empty reasoning is less probable than this, as the service does for
                `reason: auto`. None: reason over every query, with at least one token.
            batch_size: queries generated together; queries of similar length share a batch.
        """
        prompts = [self.renderer.thinking_prompt(query) for query in queries]
        order = sorted(range(len(queries)), key=lambda i: len(prompts[i]))
        reasonings = [""] * len(queries)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            if think_below is not None:
                probabilities = self.empty_reasoning_probabilities([queries[i] for i in chosen])
                chosen = [i for i, p in zip(chosen, probabilities, strict=True) if needs_thinking(p, think_below)]
            texts = generate_reasonings(self.lm, self.renderer, [prompts[i] for i in chosen])
            for i, text in zip(chosen, texts, strict=True):
                reasonings[i] = text
        return reasonings

    @torch.inference_mode()
    def empty_reasoning_probabilities(self, queries: Sequence[str], batch_size: int = 64) -> list[float]:
        """Return, for each query, the probability that `</think>` follows `<think>` at once."""
        prompts, probabilities = [self.renderer.thinking_prompt(query) for query in queries], []
        for start in range(0, len(prompts), batch_size):
            part = prompts[start : start + batch_size]
            rows = [[*prompt, self.renderer.close] for prompt in part]
            batch = pad(rows, [(len(prompt), len(prompt) + 1) for prompt in part]).to(self.device)
            probabilities += self(batch).log_probs.sum(1).exp().tolist()  # one token of each row is scored
        return probabilities

    def encode_items(self, titles: Sequence[str], max_tokens: int | None = None) -> np.ndarray:
        """Return unit embeddings [N, H] float32 of item titles.

        Args:
            max_tokens: tokens of one forward, padding included.
        """
        return self._encode_rows([self.renderer.item_ids(title) for title in titles], max_tokens)

    def encode_queries(
        self, queries: Sequence[str], reasonings: Sequence[str | None], max_tokens: int | None = None
    ) -> np.ndarray:
        """Return unit embeddings [N, H] float32 of queries with their reasonings.

        Args:
            reasonings: see `reason`; "" is an empty thought. None has no think block at all: it embeds straight after
                the query, for a model trained without reasoning.
            max_tokens: tokens of one forward, padding included.
        """
        rows = [self.renderer.query_ids(q, r) for q, r in zip(queries, reasonings, strict=True)]
        return self._encode_rows(rows, max_tokens)

    @torch.inference_mode()
    def _encode_rows(self, rows: list[list[int]], max_tokens: int | None) -> np.ndarray:
        device = self.device
        budget = max_tokens or (CPU_TOKENS if device.type == "cpu" else GPU_TOKENS)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # similar lengths together: less padding
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


def small_qwen2_config(config: ModelConfig, vocab_size: int | None = None, **special: int) -> Qwen2Config:
    """Return the transformers configuration of a small Qwen2 with a tied head. special: ids of the special tokens."""
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
    """Return the template with the token limits that a configuration sets."""
    names = ("budget", "max_query_tokens", "max_item_tokens")
    limits = {name: getattr(config, name, None) for name in names}
    return replace(template, **{name: value for name, value in limits.items() if value is not None})


def _with_form(template: Template, form: Template) -> Template:
    """Return `template` with the texts of `form`."""
    names = ("query_prefix", "query_suffix", "item_prefix", "item_suffix")
    return replace(template, **{name: getattr(form, name) for name in names})


def fingerprint(folder: Path) -> str:
    """Return a short hash of a model folder: weights, configuration, tokenizer and template.

    Raises:
        FileNotFoundError: the folder has no safetensors.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise FileNotFoundError(f"{folder} has no *.safetensors: train a model, or pass a model folder")
    digest = hashlib.sha256()
    for file in [*weights, *(folder / name for name in ("config.json", "tokenizer.json", FILE))]:
        if file.exists():
            with file.open("rb") as stream:
                digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]
