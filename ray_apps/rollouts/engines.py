"""What samples reasonings inside an actor: vLLM, or transformers behind the same methods.

An engine serves one version of the policy at a time, and says with every rollout which. Knows nothing of Ray: who
starts it, and what happens when it is lost, is ray_apps.rollouts.pool's.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoTokenizer

from lrem.config import RolloutConfig
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.sequences import Sequences, pad
from lrem.modeling.template import Renderer, Template
from lrem.training.rollout import LoadReport, Rollout
from ray_apps.rollouts.weight_sync import PackedState, state_checksum, unpack_state

GREEDY, SAMPLED = {"do_sample": False}, {"do_sample": True, "top_k": 0, "top_p": 1.0}
PROBE_QUERY, PROBE_WORDS = "red shoes for the rain", "boots, waterproof, leather shoes, rubber sole"


class Engine(ABC):
    """A policy that can be sampled and given new weights."""

    def __init__(self, folder: str, config: RolloutConfig) -> None:
        self.version, self.config = 0, config
        self.renderer = Renderer(Template.load(Path(folder)), AutoTokenizer.from_pretrained(folder))

    @abstractmethod
    def generate(
        self,
        prompts: list[list[int]],
        n: int,
        temperature: float,
        max_tokens: int,
        stop: list[int],
        seeds: list[int] | None = None,
        at_least: int = 0,
    ) -> list[list[Rollout]]:
        """Sample `n` completions of each prompt; temperature 0 is greedy. The stop token is kept.

        top-p and top-k stay off: truncated sampling would bias the importance ratio. `seeds`, one a prompt, make
        the samples of a call repeatable. No stop token comes before `at_least` others, which are ordinary ones then.
        """

    @abstractmethod
    def load(self, weights: PackedState) -> None:
        """Replace all weights, and forget what was computed with the old ones."""

    def sample(self, queries: list[str], n: int, seeds: list[int] | None = None) -> list[list[Rollout]]:
        """n training rollouts of each query, free from the first token on, cut at budget + slack."""
        renderer = self.renderer
        prompts = [renderer.query_prompt(query) for query in queries]
        length = renderer.template.budget + self.config.slack
        return self.generate(prompts, n, self.config.temperature, length, [renderer.emb], seeds)

    def reason(
        self,
        queries: list[str],
        temperature: float = 0.0,
        seeds: list[int] | None = None,
        must_think: bool = False,
    ) -> list[str]:
        """One reasoning a query: `<think>` is given, the close is forced at the budget, and not allowed at once if it
        must think."""
        renderer = self.renderer
        prompts = [renderer.thinking_prompt(query) for query in queries]
        budget = renderer.template.budget
        stop = [renderer.close, renderer.emb]
        groups = self.generate(prompts, 1, temperature, budget, stop, seeds, int(must_think))
        return [renderer.thought(group[0].tokens) for group in groups]

    def update_weights(self, weights: PackedState, version: int) -> LoadReport:
        """Take a whole new policy under its version; the answer is for the sender to compare with its own."""
        found = state_checksum(weights)
        self.load(weights)
        self.version = version
        return LoadReport(version, found, self.probe())

    def probe(self) -> list[Rollout]:
        """One token after each of `probe_prompts`, sampled as rollouts are: cheap, and it goes through every layer."""
        prompts = probe_prompts(self.renderer)
        groups = self.generate(prompts, 1, self.config.temperature, 1, [], list(range(len(prompts))))
        return [group[0] for group in groups]


def probe_prompts(renderer: Renderer) -> list[list[int]]:
    """A fixed query and beginnings of a fixed reasoning: what engine and trainer are compared on."""
    prompt, words = renderer.query_prompt(PROBE_QUERY), renderer.completion(renderer.reasoning_ids(PROBE_WORDS))
    return [prompt + words[:end] for end in range(0, len(words), 2)]


def expected_reports(
    score: Callable[[Sequences], Tensor], renderer: Renderer, found: dict[str, LoadReport], version: int, sent: int
) -> Iterator[tuple[str, LoadReport, LoadReport]]:
    """Each engine's answer to a sync, and what it should have been: its tokens with our own log-probabilities.

    Args:
        score: the policy's log-probabilities [B, L], at the temperature of rollouts.
        version, sent: under what version and with what checksum the weights went.
    """
    prompts = probe_prompts(renderer) * len(found)
    probes = [rollout for loaded in found.values() for rollout in loaded.probe]
    rows = [prompt + rollout.tokens for prompt, rollout in zip(prompts, probes, strict=True)]
    log_probs = score(pad(rows, [(len(prompt), len(row)) for prompt, row in zip(prompts, rows, strict=True)]))
    own = iter([log_probs[i, len(prompt)].item() for i, prompt in enumerate(prompts)])
    for name, loaded in found.items():
        probe = [Rollout(rollout.tokens, [next(own)], version) for rollout in loaded.probe]
        yield name, loaded, LoadReport(version, sent, probe)


class VllmEngine(Engine):
    """vLLM over a model folder, in this process.

    Args:
        logprobs: of the distribution sampled from, temperature included; `raw_logprobs`: before anything is masked.
    """

    def __init__(
        self,
        folder: str,
        config: RolloutConfig,
        seed: int = 0,
        gpu_memory: float = 0.9,
        logprobs: Literal["processed_logprobs", "raw_logprobs"] = "processed_logprobs",
    ) -> None:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(config.kv_cache_gib)
        super().__init__(folder, config)
        from vllm import LLM

        self.llm = LLM(
            folder,
            runner="generate",  # the folder also describes its item side, which vLLM would take for its only one
            dtype=config.dtype,
            max_model_len=config.max_model_len,
            tensor_parallel_size=config.tensor_parallel,
            # by itself it would take Ray, whose bundles hold a GPU each; ours holds all of an engine's
            distributed_executor_backend="mp" if config.tensor_parallel > 1 else None,
            gpu_memory_utilization=gpu_memory,
            enforce_eager=not torch.cuda.is_available(),
            logprobs_mode=logprobs,
            enable_prefix_caching=True,
            disable_log_stats=True,
            seed=seed,
        )

    def generate(
        self,
        prompts: list[list[int]],
        n: int,
        temperature: float,
        max_tokens: int,
        stop: list[int],
        seeds: list[int] | None = None,
        at_least: int = 0,
    ) -> list[list[Rollout]]:
        """See `Engine.generate`."""
        from vllm import SamplingParams, TokensPrompt

        params = [
            SamplingParams(
                n=n,
                temperature=temperature,
                max_tokens=max_tokens,
                min_tokens=at_least,
                logit_bias=self.renderer.no_specials(stop) if at_least else None,
                stop_token_ids=stop,
                ignore_eos=True,
                detokenize=False,
                logprobs=0,
                seed=None if seeds is None else seeds[i],
            )
            for i in range(len(prompts))
        ]
        outputs = self.llm.generate([TokensPrompt(prompt_token_ids=p) for p in prompts], params, use_tqdm=False)
        return [[self._rollout(completion) for completion in output.outputs] for output in outputs]

    def load(self, weights: PackedState) -> None:
        """In one call: pieces would silently corrupt some models.

        Raises:
            RuntimeError: cached prefixes of the old policy could not be dropped.
        """
        self.llm.collective_rpc(_reload, args=(unpack_state(weights),))
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache after a weight update: requests were still running")

    def _rollout(self, completion: Any) -> Rollout:
        tokens = list(completion.token_ids)
        log_probs = [step[token].logprob for token, step in zip(tokens, completion.logprobs, strict=True)]
        return Rollout(tokens, log_probs, self.version)


def _reload(worker: Any, weights: list[tuple[str, torch.Tensor]]) -> None:
    worker.reload_weights(weights_iterator=iter(weights))


class TransformersEngine(Engine):
    """transformers' own generation: the reference for parity, and for machines without vLLM."""

    def __init__(self, folder: str, config: RolloutConfig, seed: int = 0, gpu_memory: float = 0.9) -> None:
        super().__init__(folder, config)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = ReasoningEmbedder.load(folder, getattr(torch, config.dtype)).eval().to(self.device)
        torch.manual_seed(seed)

    @torch.inference_mode()
    def generate(
        self,
        prompts: list[list[int]],
        n: int,
        temperature: float,
        max_tokens: int,
        stop: list[int],
        seeds: list[int] | None = None,
        at_least: int = 0,
    ) -> list[list[Rollout]]:
        """See `Engine.generate`. A prompt at a time: each has its own seed, and the scores of one fit into memory."""
        groups = []
        for i, prompt in enumerate(prompts):
            if seeds is not None:
                torch.manual_seed(seeds[i])
            ids = torch.tensor([prompt], device=self.device)
            out = self.model.lm.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                num_return_sequences=n,
                max_new_tokens=max_tokens,
                min_new_tokens=at_least or None,
                suppress_tokens=list(self.renderer.no_specials(stop)) if at_least else None,
                eos_token_id=stop or None,
                pad_token_id=self.model.tokenizer.pad_token_id,
                return_dict_in_generate=True,
                output_scores=True,
                repetition_penalty=1.0,  # some models come with one, which would bend the distribution
                **(SAMPLED | {"temperature": temperature} if temperature else GREEDY),
            )
            log_probs = torch.stack(out.scores, 1).log_softmax(-1)  # [n, T, V] of the distribution sampled from
            sampled = out.sequences[:, len(prompt) :]
            chosen = log_probs.gather(2, sampled[:, :, None])[:, :, 0]
            rows = zip(sampled.tolist(), chosen.tolist(), strict=True)
            groups.append([self._rollout(*row, stop) for row in rows])
        return groups

    def _rollout(self, tokens: list[int], log_probs: list[float], stop: list[int]) -> Rollout:
        end = next((i + 1 for i, token in enumerate(tokens) if token in stop), len(tokens))
        return Rollout(tokens[:end], log_probs[:end], self.version)

    def load(self, weights: PackedState) -> None:
        """Into the module's own parameters."""
        self.model.lm.load_state_dict(dict(unpack_state(weights)))
