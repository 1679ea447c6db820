"""TRL's side of reinforce.py.

TRL is tuned: no gradient checkpointing, no importance-sampling correction (which needs another forward pass), a static
cache in transformers, vLLM without compilation (faster at this size), several micro-batch sizes, and the fastest of
each counts. Its reward function is what a TRL user would write for ours: prompt, completion and `</think><emb>` are
embedded by the model in one forward pass, the positives in another, r = 1 − log rank / log N. TRL has no InfoNCE: our
step also trains the embedding.
"""

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paired_runner import STEPS_ALONE, in_turn
from reinforce import GROUP, LEARNING_RATE, NEW_TOKENS


class Clock:
    """Measures the seconds spent in chosen methods of a trainer."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Wrap a method so that its seconds are added up under `name`."""
        original = getattr(owner, method)
        self.seconds[name] = 0.0

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - started

        setattr(owner, method, timed)

    def split(self, step: float) -> dict[str, float]:
        """Return and reset the seconds of each phase of a step; the rest of the step is training."""
        parts = dict(self.seconds)
        self.seconds = dict.fromkeys(parts, 0.0)
        if "sync" in parts:  # TRL pushes its weights to vLLM at the start of generation
            parts["generation"] -= parts["sync"]
        return parts | {"train": step - sum(parts.values())}


def run_trl(folder: Path, rows: list[dict[str, Any]], backend: str, micro: int) -> None:
    """Train with TRL: one generation, then `micro` rows per forward and backward pass, make one optimiser step."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
    prompts = [row["prompt"] for row in rows]
    assert tokenizer(text=prompts)["input_ids"] == [row["prompt_ids"] for row in rows]
    if backend != "transformers":
        vllm_in_fp32()
    forced = tokenizer.convert_tokens_to_ids(["</think>", "<emb>"])
    data = [{"prompt": row["prompt"], "ids": row["prompt_ids"], "positive": i} for i, row in enumerate(rows)]
    trainer = GRPOTrainer(
        model=str(folder / "model"),
        reward_funcs=reward([row["item_ids"] for row in rows], forced, lambda ids: trainer.model.base_model(ids)),
        args=peer_arguments(backend, len(rows) * GROUP, micro),
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
    )
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    clock = Clock()
    clock.watch(trainer, "_generate", "generation")
    clock.watch(trainer, "_calculate_rewards", "reward")
    if backend == "reloaded":
        by_reload(trainer.vllm_generation)
    if backend != "transformers":
        clock.watch(trainer.vllm_generation, "sync_weights", "sync")
    trainer.add_callback(in_turn(clock.split))
    trainer.train()


def vllm_in_fp32() -> None:
    """Make vLLM under TRL use fp32; it would run an fp32 model in bf16."""
    from functools import partial

    from trl.generation import vllm_generation

    # runner: the folder also describes an embedding model, which vLLM would choose
    vllm_generation.LLM = partial(vllm_generation.LLM, dtype="float32", runner="generate", enforce_eager=True)


def by_reload(generation: Any) -> None:
    """Make TRL send its weights with vLLM's own `reload_weights`.

    TRL copies into vLLM's parameters one by one, but on a CPU vLLM has packed them and dropped the originals.
    """

    def sync_weights() -> None:
        weights = list(generation._iter_named_params())
        generation.llm.collective_rpc(lambda worker: worker.reload_weights(weights_iterator=iter(weights)))
        generation.llm.reset_prefix_cache()

    generation.sync_weights = sync_weights


def peer_arguments(backend: str, samples: int, micro: int) -> Any:
    """Return arguments for one optimiser step per generation, without saving or logging."""
    from trl import GRPOConfig

    micro = math.gcd(micro, samples)  # equal micro-batches for any number of queries
    in_vllm = backend != "transformers"
    forced = {"ignore_eos": True, "detokenize": False} if in_vllm else {"min_new_tokens": NEW_TOKENS}
    return GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=1000,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=samples // micro,
        num_generations=GROUP,
        max_completion_length=NEW_TOKENS,
        generation_kwargs=forced,
        cache_implementation="static",
        temperature=1.0,
        beta=0.0,
        use_vllm=in_vllm,
        vllm_mode="colocate",
        vllm_max_model_length=256,
        vllm_importance_sampling_correction=False,
        gradient_checkpointing=False,
        bf16=False,
        learning_rate=LEARNING_RATE,
        **STEPS_ALONE,
    )


def reward(items: list[list[int]], forced: list[int], forward: Callable[[Any], Any]) -> Callable[..., list[float]]:
    """Return a reward function: r = 1 − log rank / log N of the positive among the N `items`, by the current model."""
    import torch
    import torch.nn.functional as F

    def embed(sequences: list[list[int]]) -> torch.Tensor:
        width = max(map(len, sequences))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in sequences])
        last = torch.tensor([len(row) - 1 for row in sequences])
        return F.normalize(forward(ids).last_hidden_state[torch.arange(len(ids)), last], dim=-1)

    def retrieval(completion_ids: list[list[int]], ids: list[list[int]], positive: list[int], **_: Any) -> list[float]:
        assert {len(sampled) for sampled in completion_ids} == {NEW_TOKENS}
        with torch.no_grad():
            queries = embed([[*prompt, *sampled, *forced] for prompt, sampled in zip(ids, completion_ids, strict=True)])
            scores = queries @ embed(items).T
        own = scores.gather(1, torch.tensor(positive)[:, None])
        return (1 - (1 + (scores > own).sum(1)).log() / math.log(len(items))).tolist()

    return retrieval
