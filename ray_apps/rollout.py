"""vLLM in Ray actors: they sample reasonings, and take new weights in memory.

Every rollout carries its tokens, its log-probabilities and the version of the policy that wrote it.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from ray.actor import ActorHandle

from lrem.config import Config
from lrem.settings import RolloutConfig
from lrem.template import Renderer, Template
from ray_apps.cluster import gpu_plan


class Rollout(NamedTuple):
    """One sampled completion: ids after the prompt, their log-probabilities (nats), the policy's version."""

    tokens: list[int]
    log_probs: list[float]
    version: int


class VllmEngine:
    """One vLLM engine over a model folder, in this process."""

    def __init__(self, folder: str, config: RolloutConfig, seed: int = 0, gpu_memory: float = 0.9) -> None:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(config.kv_cache_gib)
        from transformers import AutoTokenizer
        from vllm import LLM

        self.version = 0
        self.config = config
        self.renderer = Renderer(Template.load(Path(folder)), AutoTokenizer.from_pretrained(folder))
        self.llm = LLM(
            folder,
            runner="generate",  # the folder also describes its item side, which vLLM would take for its only one
            dtype=config.dtype,
            max_model_len=config.max_model_len,
            gpu_memory_utilization=gpu_memory,
            enforce_eager=not torch.cuda.is_available(),
            logprobs_mode="processed_logprobs",  # of the distribution sampled from, temperature included
            enable_prefix_caching=True,
            disable_log_stats=True,
            seed=seed,
        )

    def generate(
        self, prompts: list[list[int]], n: int, temperature: float, max_tokens: int, stop: list[int]
    ) -> list[list[Rollout]]:
        """Sample `n` completions of each prompt; temperature 0 is greedy. The stop token is kept.

        top-p and top-k stay off: truncated sampling would bias the importance ratio.
        """
        from vllm import SamplingParams, TokensPrompt

        params = SamplingParams(
            n=n,
            temperature=temperature,
            max_tokens=max_tokens,
            stop_token_ids=stop,
            ignore_eos=True,
            detokenize=False,
            logprobs=0,
        )
        outputs = self.llm.generate([TokensPrompt(prompt_token_ids=p) for p in prompts], params, use_tqdm=False)
        return [[self._rollout(completion) for completion in output.outputs] for output in outputs]

    def sample(self, queries: list[str], n: int) -> list[list[Rollout]]:
        """n training rollouts of each query, free from the first token on, cut at budget + slack."""
        renderer = self.renderer
        prompts = [renderer.query_prompt(query) for query in queries]
        length = renderer.template.budget + self.config.slack
        return self.generate(prompts, n, self.config.temperature, length, [renderer.emb])

    def reason(self, queries: list[str], temperature: float = 0.0) -> list[str]:
        """One reasoning a query: `<think>` is given, the close is forced at the budget."""
        renderer = self.renderer
        prompts = [[*renderer.query_prompt(query), renderer.think] for query in queries]
        budget = renderer.template.budget
        groups = self.generate(prompts, 1, temperature, budget, [renderer.close, renderer.emb])
        return [self._text(group[0].tokens) for group in groups]

    def update_weights(self, weights: list[tuple[str, torch.Tensor]], version: int) -> int:
        """Replace all weights in one call and forget cached prefixes; returns the version now served."""
        self.llm.collective_rpc(_reload, args=(weights,))
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache after a weight update: requests were still running")
        self.version = version
        return version

    def _text(self, tokens: list[int]) -> str:
        return self.renderer.reasoning_text([t for t in tokens if t not in self.renderer.special])

    def _rollout(self, completion: Any) -> Rollout:
        tokens = list(completion.token_ids)
        log_probs = [step[token].logprob for token, step in zip(tokens, completion.logprobs, strict=True)]
        return Rollout(tokens, log_probs, self.version)


def _reload(worker: Any, weights: list[tuple[str, torch.Tensor]]) -> None:
    worker.reload_weights(weights_iterator=iter(weights))


def start_engines(folder: Path, config: Config, workers: int = 0) -> list[ActorHandle]:
    """Start the configured number of vLLM actors on one model folder, beside `workers` training workers.

    Raises:
        TimeoutError: an actor was not up within ray.start_timeout_s.
    """
    count = config.rollout.actors
    _, gpus = gpu_plan(config, workers, count)
    actor = ray.remote(num_cpus=1, num_gpus=gpus)(VllmEngine)
    share = 0.4 if gpus == 0.5 else 0.9  # of the GPU's memory: half where a training worker has the other
    engines = [actor.remote(str(folder), config.rollout, config.seed + i, share) for i in range(count)]
    ready = [engine.__ray_ready__.remote() for engine in engines]
    wait(ready, config.ray.start_timeout_s, f"{count} vLLM actors to start on {folder}")
    return engines


def wait(references: list[Any], timeout_s: float, what: str) -> list[Any]:
    """ray.get with a deadline whose error says what was waited for."""
    try:
        return list(ray.get(references, timeout=timeout_s))
    except ray.exceptions.GetTimeoutError as error:
        raise TimeoutError(f"waited {timeout_s:.0f} s for {what}: look at `ray status` for what is missing") from error
