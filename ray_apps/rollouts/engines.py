"""Inference engines that sample reasonings: vLLM, or transformers behind the same methods.

An engine serves one version of the policy at a time and marks each rollout with it. Engines know nothing of Ray:
ray_apps.rollouts.pool starts them in actors and replaces those that are lost.
"""

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoTokenizer

from lrem.config import RolloutConfig
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.template import Renderer, Template
from lrem.modeling.thinking import GREEDY, SAMPLED, DecodingPolicy
from lrem.training.rollout import LoadReport, Rollout
from ray_apps.rollouts.weight_sync import PackedState, probe_prompts, state_checksum, unpack_state


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
        decoding: DecodingPolicy,
        seeds: list[int] | None = None,
    ) -> list[list[Rollout]]:
        """Sample `n` completions of each prompt; temperature 0 is greedy. The stop token is kept.

        top-p and top-k stay off: truncated sampling would bias the importance ratio.

        Args:
            seeds: one per prompt; they make the samples of a call repeatable.
        """

    @abstractmethod
    def load(self, weights: PackedState) -> None:
        """Replace all weights, and drop what was computed with the old ones."""

    def sample(self, queries: list[str], n: int, seeds: list[int] | None = None) -> list[list[Rollout]]:
        """Return n training rollouts of each query."""
        prompts = [self.renderer.query_prompt(query) for query in queries]
        decoding = DecodingPolicy.rollout(self.renderer, self.config.slack)
        return self.generate(prompts, n, self.config.temperature, decoding, seeds)

    def reason(
        self,
        queries: list[str],
        temperature: float = 0.0,
        seeds: list[int] | None = None,
        must_think: bool = False,
    ) -> list[str]:
        """Return one reasoning of each query; empty ones are possible unless `must_think`."""
        prompts = [self.renderer.thinking_prompt(query) for query in queries]
        groups = self.generate(prompts, 1, temperature, DecodingPolicy.reasoning(self.renderer, must_think), seeds)
        return [self.renderer.thought_text(group[0].tokens) for group in groups]

    def update_weights(self, weights: PackedState, version: int) -> LoadReport:
        """Load a whole new policy under its version; the sender compares the report with its own weights."""
        checksum = state_checksum(weights)
        self.load(weights)
        self.version = version
        return LoadReport(version, checksum, self.probe())

    def probe(self) -> list[Rollout]:
        """Sample one token after each of `probe_prompts`, as for rollouts: cheap, and it runs through every layer."""
        prompts = probe_prompts(self.renderer)
        groups = self.generate(prompts, 1, self.config.temperature, DecodingPolicy(1), list(range(len(prompts))))
        return [group[0] for group in groups]


class VllmEngine(Engine):
    """vLLM over a model folder, in this process.

    Args:
        logprobs: those of the sampling distribution, temperature included; `raw_logprobs`: before any masking.
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
            runner="generate",  # the folder also describes its item side, which vLLM would take for the only one
            dtype=config.dtype,
            max_model_len=config.max_model_len,
            tensor_parallel_size=config.tensor_parallel,
            # vLLM's default is Ray, whose bundles hold one GPU each; our bundle holds all GPUs of an engine
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
        decoding: DecodingPolicy,
        seeds: list[int] | None = None,
    ) -> list[list[Rollout]]:
        """See `Engine.generate`."""
        from vllm import SamplingParams, TokensPrompt

        params = [
            SamplingParams(
                n=n,
                temperature=temperature,
                logprobs=0,
                seed=None if seeds is None else seeds[i],
                **decoding.vllm_arguments(),
            )
            for i in range(len(prompts))
        ]
        outputs = self.llm.generate([TokensPrompt(prompt_token_ids=p) for p in prompts], params, use_tqdm=False)
        return [[self._rollout(completion) for completion in output.outputs] for output in outputs]

    def load(self, weights: PackedState) -> None:
        """Load all weights in one call: loading them piece by piece would silently corrupt some models.

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
        decoding: DecodingPolicy,
        seeds: list[int] | None = None,
    ) -> list[list[Rollout]]:
        """See `Engine.generate`. One prompt at a time: each has its own seed, and the scores of one fit into memory."""
        groups = []
        for i, prompt in enumerate(prompts):
            if seeds is not None:
                torch.manual_seed(seeds[i])
            ids = torch.tensor([prompt], device=self.device)
            out = self.model.lm.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                num_return_sequences=n,
                pad_token_id=self.model.tokenizer.pad_token_id,
                return_dict_in_generate=True,
                output_scores=True,
                **decoding.transformers_arguments(),
                **(SAMPLED | {"temperature": temperature} if temperature else GREEDY),
            )
            log_probs = torch.stack(out.scores, 1).log_softmax(-1)  # [n, T, V] of the distribution sampled from
            sampled = out.sequences[:, len(prompt) :]
            chosen = log_probs.gather(2, sampled[:, :, None])[:, :, 0]
            rows = zip(sampled.tolist(), chosen.tolist(), strict=True)
            groups.append([self._rollout(*row, decoding.stop) for row in rows])
        return groups

    def _rollout(self, tokens: list[int], log_probs: list[float], stop: tuple[int, ...]) -> Rollout:
        end = next((i + 1 for i, token in enumerate(tokens) if token in stop), len(tokens))
        return Rollout(tokens[:end], log_probs[:end], self.version)

    def load(self, weights: PackedState) -> None:
        """Copy the weights into the module's own parameters."""
        self.model.lm.load_state_dict(dict(unpack_state(weights)))
