"""The DeepSpeed engine around a model: make it, go back through it, step it, and gather its weights."""

import logging
import os
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.optim.lr_scheduler import LambdaLR

from lrem.config import OptimConfig
from lrem.modeling.encoding import EncoderOutput, StateObserver
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.sequences import Sequences
from lrem.training.distributed import rank
from lrem.training.schedule import cosine_with_warmup


class TrainingEngine(Protocol):
    """The part of `deepspeed.DeepSpeedEngine` that training uses. Calling it runs `ReasoningEmbedder.forward`."""

    module: ReasoningEmbedder
    device: torch.device

    def __call__(
        self, batch: Sequences, temperature: float = 1.0, observe: StateObserver | None = None
    ) -> EncoderOutput: ...
    def backward(self, loss: torch.Tensor) -> object: ...
    def step(self) -> None: ...
    def train(self) -> object: ...
    def eval(self) -> object: ...
    def get_lr(self) -> list[float]: ...
    def get_global_grad_norm(self) -> float: ...
    def zero_optimization_stage(self) -> int: ...
    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None: ...
    def save_checkpoint(self, save_dir: str, tag: str, save_latest: bool) -> object: ...
    def load_checkpoint(self, load_dir: str, tag: str) -> tuple[str | None, Any]: ...


def make_engine(model: ReasoningEmbedder, optim: OptimConfig, batch_size: int, steps: int) -> TrainingEngine:
    """Wrap the model in an engine: AdamW, cosine schedule with warm-up, clipping, and the configured ZeRO stage."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    # Only tensor-parallel inference uses this op. On a CPU every start with other build flags would compile it for
    # minutes, and a process killed meanwhile leaves a lock on which all later ones wait without end.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    settings = {
        "train_micro_batch_size_per_gpu": batch_size,
        "gradient_accumulation_steps": 1,  # `engine_backward` sets the boundary
        "gradient_clipping": optim.clip,
        "bf16": {"enabled": optim.bf16},
        "zero_optimization": {"stage": optim.zero_stage},
        "optimizer": {
            "type": "AdamW",
            # torch's own AdamW: DeepSpeed's CPU op needs a compiler on every node
            "params": {"lr": optim.lr, "weight_decay": optim.weight_decay, "torch_adam": True},
        },
        "steps_per_print": 10**9,
    }
    warmup = max(1, round(optim.warmup * steps))
    engine: TrainingEngine
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        config=settings,
        lr_scheduler=lambda optimizer: LambdaLR(optimizer, lambda step: cosine_with_warmup(step, warmup, steps)),
    )
    return engine


def engine_backward(engine: TrainingEngine) -> Callable[[torch.Tensor, bool], None]:
    """Return the backward of one chunk of a new step: gradients add up, and are final with the step's last chunk.

    With an accumulation of 1 and no boundary set by hand, ZeRO-2 keeps only the last backward (open-instruct#1498).
    ZeRO-3 starts to accumulate at the next *forward* after a backward: without a forward between two backwards the
    second overwrites the first. And it adds to the last step's gradient of a weight that the first backward does not
    reach, such as a head that only some chunks use; so all gradients are set to zero here.
    """
    if engine.zero_optimization_stage() == 3:
        _clear_gradients(engine)

    def backward(loss: torch.Tensor, last: bool) -> None:
        engine.set_gradient_accumulation_boundary(last)
        engine.backward(loss)

    return backward


def _clear_gradients(engine: TrainingEngine) -> None:
    """Set this rank's parts of all gradients to zero under ZeRO-3."""
    from deepspeed.utils import safe_get_local_grad, safe_set_local_grad

    for parameter in engine.module.parameters():
        if parameter.requires_grad:
            safe_set_local_grad(parameter, torch.zeros_like(safe_get_local_grad(parameter)))


def update(engine: TrainingEngine) -> float:
    """Take one optimiser step; return the norm of the accumulated gradient over all parameters, before clipping."""
    norm = None
    if engine.zero_optimization_stage() == 0:  # DeepSpeed records no norm there
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
    engine.step()
    return float(engine.get_global_grad_norm() if norm is None else norm)


def full_state(engine: TrainingEngine) -> dict[str, torch.Tensor]:
    """Return all weights of the language model on the CPU of rank 0, under any ZeRO stage; every rank must call.

    A tied head is included under its own name too: vLLM's CPU build keeps a packed copy of it, which goes stale
    silently when a weight sync leaves it out (tests/ray/rollouts/test_pool.py).
    """
    import deepspeed

    lm = engine.module.lm
    with deepspeed.zero.GatheredParameters(list(lm.parameters()), enabled=engine.zero_optimization_stage() == 3):
        state = lm.state_dict() if rank() == 0 else {}
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
