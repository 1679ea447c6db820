"""The weight sync: push a policy to every engine of a pool, and prove that each of them samples it.

    trainer's state → packed bytes → Ray's object store → every engine → LoadReport → compared with the trainer

Tensors travel as byte arrays: Ray writes these to shared memory once, and all actors of a node read them there. NCCL
between GPUs would be another module with the same `push`; the project has had no GPU to write it on.

The proof has two parts. The checksum shows that every byte arrived. The probe shows that the engine computes with
them: it samples one token after each of a few fixed prompts, and the trainer scores these tokens with its own weights.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from torch import Tensor

from lrem.config import Config
from lrem.errors import RolloutError
from lrem.modeling.sequences import Sequences, pad
from lrem.modeling.template import Renderer
from lrem.training.distributed import run_on_first_rank
from lrem.training.rollout import LoadReport, Rollout, SyncReport
from ray_apps.rollouts.client import await_pool

PROBE_QUERY, PROBE_REASONING = "red shoes for the rain", "boots, waterproof, leather shoes, rubber sole"

Score = Callable[[Sequences], Tensor | None]  # log-probabilities [B, L] at the rollouts' temperature


class PackedTensor(NamedTuple):
    """A named tensor as bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray  # uint8


PackedState = list[PackedTensor]


class WeightSync:
    """Pushes a trainer's policy to a rollout pool; every rank calls it, and a failure is raised on every rank.

    Args:
        score: the trainer's own policy, for the probe.
    """

    def __init__(self, pool: ActorHandle, config: Config, renderer: Renderer, score: Score) -> None:
        self.pool, self.config, self.renderer, self.score = pool, config, renderer, score

    def push(self, state: dict[str, Tensor], version: int) -> SyncReport:
        """Send the whole state under `version`, and check every engine's report.

        Args:
            state: the policy's weights on rank 0; the other ranks' states are not sent.

        Raises:
            RolloutError: an engine did not take the weights in time, or samples another policy; the message names it.
        """
        packed = pack_state(state)

        def send() -> tuple[int, SyncReport]:
            sync = self.pool.sync.remote([ray.put(packed)], version)
            report = await_pool(self.pool, sync, self.config, f"all engines to load policy version {version}")
            return state_checksum(packed), report

        checksum, report = run_on_first_rank(send)
        for name, loaded, expected in _expected_reports(self.score, self.renderer, report.loaded, version, checksum):
            check_load_report(name, loaded, expected, self.config.rollout.probe_tolerance)
        return report


def pack_state(state: dict[str, Tensor]) -> PackedState:
    """Return a state dict as bytes, in its order; CPU tensors are not copied.

    >>> [(name, kind, shape, len(data)) for name, kind, shape, data in pack_state({"w": torch.zeros(2, 3)})]
    [('w', 'float32', (2, 3), 24)]
    """
    return [
        PackedTensor(
            name,
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(),
        )
        for name, tensor in state.items()
    ]


def unpack_state(packed: PackedState) -> list[tuple[str, Tensor]]:
    """Return the named tensors over the same, read-only memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return [
            (name, torch.from_numpy(data).view(getattr(torch, kind)).reshape(shape))
            for name, kind, shape, data in packed
        ]


def state_checksum(packed: PackedState) -> int:
    """Return the sum of all bytes, each weighted by its tensor's position: any single changed byte changes it.

    >>> one, other = pack_state({"w": torch.tensor([1.0, 2.0])}), pack_state({"w": torch.tensor([1.0, 2.5])})
    >>> state_checksum(one) == state_checksum(one), state_checksum(one) == state_checksum(other)
    (True, False)
    """
    checksum = 0
    for position, tensor in enumerate(packed, start=1):
        data, whole = tensor.data, len(tensor.data) // 4 * 4  # four bytes at a time: memory speed
        checksum += position * (
            int(data[:whole].view(np.uint32).sum(dtype=np.uint64)) + int(data[whole:].sum(dtype=np.uint64))
        )
    return checksum % 2**63


def probe_prompts(renderer: Renderer) -> list[list[int]]:
    """Return a fixed query, followed by beginnings of a fixed reasoning: engine and trainer are compared on these."""
    prompt = renderer.query_prompt(PROBE_QUERY)
    completion = renderer.completion(renderer.reasoning_ids(PROBE_REASONING))
    return [prompt + completion[:end] for end in range(0, len(completion), 2)]


def _expected_reports(
    score: Score, renderer: Renderer, loaded: dict[str, LoadReport], version: int, checksum: int
) -> Iterator[tuple[str, LoadReport, LoadReport]]:
    """Yield each engine's name, its report, and the correct one: its tokens with the trainer's log-probabilities."""
    prompts = probe_prompts(renderer) * len(loaded)
    probes = [rollout for report in loaded.values() for rollout in report.probe]
    rows = [prompt + rollout.tokens for prompt, rollout in zip(prompts, probes, strict=True)]
    log_probs = score(pad(rows, [(len(prompt), len(row)) for prompt, row in zip(prompts, rows, strict=True)]))
    assert log_probs is not None  # every row has a scored token
    own = iter([log_probs[i, len(prompt)].item() for i, prompt in enumerate(prompts)])
    for name, report in loaded.items():
        probe = [Rollout(rollout.tokens, [next(own)], version) for rollout in report.probe]
        yield name, report, LoadReport(version, checksum, probe)


def check_load_report(name: str, loaded: LoadReport, expected: LoadReport, tolerance: float) -> None:
    """Compare an engine's report with the correct one.

    Args:
        name: the engine's. tolerance: nats, `rollout.probe_tolerance`.

    Raises:
        RolloutError: another version or checksum, or a probe that differs by more than `tolerance`.
    """
    if (loaded.version, loaded.checksum) != (expected.version, expected.checksum):
        raise RolloutError(
            f"the weight sync failed: {name} holds policy version {loaded.version} with checksum "
            f"{loaded.checksum:x}, but version {expected.version} with checksum {expected.checksum:x} was sent"
        )
    pairs = list(zip(loaded.probe, expected.probe, strict=True))
    equal = [(sampled, own) for sampled, own in pairs if sampled.tokens == own.tokens]
    worst = max((abs(sampled.log_probs[0] - own.log_probs[0]) for sampled, own in equal), default=0.0)
    # equal seeds draw equal tokens; one draw may fall on the boundary between two tokens
    if worst > tolerance or len(equal) < len(pairs) - 1:
        raise RolloutError(
            f"the weight sync failed: {name} samples another policy than version {expected.version}: {len(equal)} of "
            f"{len(pairs)} probe tokens agree, and their log-probabilities differ by up to {worst:.4f} nats "
            f"(rollout.probe_tolerance={tolerance})"
        )
