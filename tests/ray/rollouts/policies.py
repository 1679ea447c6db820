"""Is an engine's policy the trainer's? Compared by greedy tokens, and by the log-probabilities of samples."""

import ray
import torch
from ray.actor import ActorHandle

from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.sequences import pad
from lrem.modeling.thinking import DecodingPolicy
from lrem.training.rollout import Rollout

QUERIES = ["red coat", "warm hat, not silk", "blue", "something for the winter"]


def greedy(model: ReasoningEmbedder, prompt: list[int], length: int) -> list[int]:
    """Return the greedy completion by transformers' own generation."""
    ids = torch.tensor([prompt])
    out = model.lm.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=length,
        eos_token_id=None,
        pad_token_id=model.tokenizer.pad_token_id,
    )
    return [int(token) for token in out[0, len(prompt) :]]


def assert_same_policy(engine: ActorHandle, model: ReasoningEmbedder) -> None:
    """Compare an engine actor's greedy completions with the model's."""
    prompts = [model.renderer.query_prompt(query) for query in QUERIES]
    decoding = DecodingPolicy(16, (model.renderer.emb,))
    groups = ray.get(engine.call.remote("generate", prompts, 1, 0.0, decoding), timeout=60)
    for prompt, [rollout] in zip(prompts, groups, strict=True):
        expected = greedy(model, prompt, 16)
        stop = expected.index(model.renderer.emb) + 1 if model.renderer.emb in expected else 16
        assert rollout.tokens == expected[:stop]


def log_probs_of(model: ReasoningEmbedder, prompts: list[list[int]], rollouts: list[Rollout]) -> list[torch.Tensor]:
    """Return the model's log-probabilities of each rollout's tokens."""
    rows = [prompt + rollout.tokens for prompt, rollout in zip(prompts, rollouts, strict=True)]
    spans = [(len(prompt), len(row)) for prompt, row in zip(prompts, rows, strict=True)]
    with torch.no_grad():
        log_probs = model(pad(rows, spans)).log_probs
    return [log_probs[i, start:end] for i, (start, end) in enumerate(spans)]
