"""Thinking, written once: how a reasoning is decoded, and which queries get one.

Serving, rollouts, evaluation, MTEB and `ReasoningEmbedder.reason` decode by the same policies, whatever engine samples:

    reasoning   the prompt ends in `<think>`; stop at `</think>` or `<emb>`, or close at `budget` tokens. A query that
                must think writes at least one token, and no special tokens. `Renderer.thought_text` reads it: repeated
                phrases, and the phrase that the budget has cut, are dropped.
    rollout     the policy writes `<think>` itself and is free from the first token, so that training sees malformed
                output too; stop at `<emb>`, or cut at budget + slack tokens.

Routing: a query is reasoned over only if an empty reasoning, `</think>` right after `<think>`, is improbable enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lrem.modeling.template import Renderer

BANNED_BIAS = -100.0  # added to a banned token's logit
# transformers' arguments; nothing is truncated: samples are the model's own distribution
GREEDY, SAMPLED = {"do_sample": False}, {"do_sample": True, "top_k": 0, "top_p": 1.0}


@dataclass(frozen=True)
class DecodingPolicy:
    """When a completion ends, and which tokens it may not contain.

    max_tokens: the completion is cut there. stop: token ids that end it; the stop token is kept. min_tokens: no stop
    token before this many others. banned: token ids that are never sampled.
    """

    max_tokens: int
    stop: tuple[int, ...] = ()
    min_tokens: int = 0
    banned: tuple[int, ...] = ()

    @classmethod
    def reasoning(cls, renderer: Renderer, must_think: bool = True) -> "DecodingPolicy":
        """Return the policy that continues `Renderer.thinking_prompt`."""
        stop = (renderer.close, renderer.emb)
        if not must_think:
            return cls(renderer.template.budget, stop)
        return cls(renderer.template.budget, stop, 1, tuple(sorted(renderer.special.difference(stop))))

    @classmethod
    def rollout(cls, renderer: Renderer, slack: int) -> "DecodingPolicy":
        """Return the policy that continues `Renderer.query_prompt` in training."""
        return cls(renderer.template.budget + slack, (renderer.emb,))

    def vllm_arguments(self) -> dict[str, Any]:
        """Return the arguments for vLLM's `SamplingParams`.

        >>> DecodingPolicy(8, stop=(2,), banned=(5,)).vllm_arguments()["logit_bias"]
        {5: -100.0}
        """
        return {
            "max_tokens": self.max_tokens,
            "min_tokens": self.min_tokens,
            "stop_token_ids": list(self.stop),
            "logit_bias": dict.fromkeys(self.banned, BANNED_BIAS) or None,
            "ignore_eos": True,
            "detokenize": False,
        }

    def transformers_arguments(self) -> dict[str, Any]:
        """Return the arguments for transformers' `generate`.

        >>> DecodingPolicy(8, stop=(2,)).transformers_arguments()["eos_token_id"]
        [2]
        """
        return {
            "max_new_tokens": self.max_tokens,
            "min_new_tokens": self.min_tokens or None,
            "suppress_tokens": list(self.banned) or None,
            "eos_token_id": list(self.stop) or None,
            "repetition_penalty": 1.0,  # some models set another one, which would change the distribution
        }


def needs_thinking(empty_probability: float, think_below: float) -> bool:
    """Return True if a query is to be reasoned over.

    Args:
        empty_probability: the model's probability that `</think>` follows `<think>` at once.
        think_below: the threshold, `serve.think_below`.

    >>> needs_thinking(0.2, think_below=0.5), needs_thinking(0.9, think_below=0.5)
    (True, False)
    """
    return empty_probability < think_below


def best_think_below(empty_probabilities: Sequence[float], gains: Sequence[float]) -> float:
    """Return the `think_below` with which reasoning gains most in sum over these queries; 0.0 if none gains.

    Args:
        empty_probabilities: as for `needs_thinking`, of each query. gains: a query's measure with reasoning minus that
            without. Take the queries of a dev set.

    >>> best_think_below([0.5, 0.1, 0.2, 0.9], [0.2, 0.3, -0.1, -0.2])
    0.7
    """
    order = np.argsort(empty_probabilities, kind="stable")
    edges = np.array([0.0, *np.array(empty_probabilities)[order], 1.0])
    sums = np.cumsum([0.0, *np.array(gains)[order]])  # [n]: of the n queries with the lowest probabilities
    parts = np.append(True, edges[1:-1] < edges[2:])  # no threshold lies between equal probabilities
    count = int(np.argmax(np.where(parts, sums, -np.inf)))
    return 0.0 if count == 0 else float((edges[count] + edges[count + 1]) / 2)


def generate_reasonings(
    lm: PreTrainedModel, renderer: Renderer, prompts: list[list[int]], seed: int | None = None, in_step: bool = False
) -> list[str]:
    """Generate one reasoning of each prompt, all in one batch, with transformers.

    Args:
        prompts: see `Renderer.thinking_prompt`; padded on the left here.
        seed: sample at temperature 1 from this seed; the global random state stays as it is. None: greedy.
        in_step: all ranks call with a batch each and take equally many forwards, as ZeRO-3 needs.
    """
    if not prompts:
        return []
    pad_id, longest = renderer.tokenizer.pad_token_id, max(map(len, prompts))
    gaps = [longest - len(prompt) for prompt in prompts]
    ids = torch.tensor([[pad_id] * gap + prompt for gap, prompt in zip(gaps, prompts, strict=True)])  # [N, L]
    mask = torch.arange(longest) >= torch.tensor(gaps)[:, None]  # [N, L]
    decoding = GREEDY if seed is None else SAMPLED | {"temperature": 1.0}
    with torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else [], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        # no inference mode around it: weights that ZeRO-3 gathers there could not be trained afterwards
        with torch.compiler.set_stance("force_eager"):  # compiled layers would be compiled again for the cache
            out = lm.generate(
                ids.to(lm.device),
                attention_mask=mask.long().to(lm.device),
                pad_token_id=pad_id,
                synced_gpus=in_step,
                **decoding,
                **DecodingPolicy.reasoning(renderer).transformers_arguments(),
            )
    return [renderer.thought_text(row) for row in out[:, longest:].tolist()]
