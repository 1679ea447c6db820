"""The cost of a training step, computed from a decoder's sizes: floating-point operations and bytes."""

from typing import Any, NamedTuple

# Dense bf16 peak, TFLOP/s without sparsity, from the data sheets; the first name in a device's name counts.
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
}


def peak_tflops(device_name: str) -> float | None:
    """Return a device's peak TFLOP/s by its name; None for an unlisted device.

    >>> peak_tflops("NVIDIA A100-SXM4-80GB"), peak_tflops("cpu")
    (312.0, None)
    """
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in device_name), None)


class DecoderShape(NamedTuple):
    """A decoder's sizes. `backbone`: parameters of the layers, embeddings aside; `embedding`: of one V × H table."""

    layers: int
    attention: int  # heads × head size
    backbone: int
    embedding: int
    tied: bool

    @classmethod
    def of(cls, lm: Any) -> "DecoderShape":
        """Return the sizes of a transformers causal LM, on any device, `meta` included."""
        config, table = lm.config, lm.get_input_embeddings().weight
        total = sum(p.numel() for p in lm.parameters())
        tied = bool(config.tie_word_embeddings)
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        embedding = table.numel()
        backbone = total - embedding * (1 if tied else 2)
        return cls(config.num_hidden_layers, config.num_attention_heads * head, backbone, embedding, tied)

    @property
    def parameters(self) -> int:
        """Number of all parameters."""
        return self.backbone + self.embedding * (1 if self.tied else 2)


def step_flops(shape: DecoderShape, tokens: int, squared_lengths: int, scored: int, frozen: int = 0) -> float:
    """Return the floating-point operations of forward and backward for MFU: no recomputation, no padding.

    Args:
        tokens: real tokens of all sequences. squared_lengths: Σ length², for causal attention.
        scored: positions that the language-model head runs on.
        frozen: the lowest layers, which have no backward; with them the head has none for its weights.

    >>> step_flops(DecoderShape(4, 0, 1000, 10, True), tokens=2, squared_lengths=0, scored=1)
    12060.0
    >>> step_flops(DecoderShape(4, 0, 1000, 10, True), tokens=2, squared_lengths=0, scored=1, frozen=2)
    8040.0
    """
    attention = 2 * shape.layers * shape.attention * squared_lengths  # QKᵀ and AV, 2 flops each, half masked
    layers = 2.0 * shape.backbone * tokens + attention
    trained = 1 - frozen / shape.layers
    return layers * (1 + 2 * trained) + 2 * shape.embedding * scored * (2 if frozen else 3)


def mfu(flops: float, seconds: float, peak_tflops: float) -> float:
    """Return the model flops utilisation: the achieved share of the devices' peak.

    >>> mfu(50e12, 1.0, 100.0)
    0.5
    """
    return flops / (seconds * peak_tflops * 1e12)


class MemoryEstimate(NamedTuple):
    """Bytes a worker holds: weights, gradients, optimiser state, activations of the kept graphs, one chunk's logits."""

    weights: float
    gradients: float
    optimiser: float
    activations: float
    logits: float


class StepSize(NamedTuple):
    """A step's peak: padded `tokens` whose activations are kept, and positions `scored` in one chunk."""

    tokens: int
    scored: int


def estimate_memory(
    shape: DecoderShape,
    sizes: Any,
    load: StepSize,
    trainable: int,
    workers: int,
    zero: int,
    bf16: bool,
    checkpointing: bool,
) -> MemoryEstimate:
    """Return an estimate for AdamW with fp32 states; allocator and communication buffers come on top.

    Args:
        sizes: the model's transformers configuration. trainable: parameters that are trained.
        zero: the ZeRO stage over `workers`. checkpointing: a layer's input is kept, the rest is recomputed.

    >>> from types import SimpleNamespace
    >>> sizes = SimpleNamespace(hidden_size=10, intermediate_size=20, vocab_size=50)
    >>> shape = DecoderShape(layers=2, attention=10, backbone=1000, embedding=500, tied=True)
    >>> step = StepSize(tokens=3, scored=2)
    >>> estimate_memory(shape, sizes, step, 1500, workers=2, zero=2, bf16=True, checkpointing=False)
    MemoryEstimate(weights=3000.0, gradients=1500.0, optimiser=9000.0, activations=1920.0, logits=1000.0)
    """
    size = 2 if bf16 else 4
    # per token and layer about 8 H of the attention block and 4 I of a gated MLP (after Korthikanti et al., arXiv
    # 2205.05198); with checkpointing only H
    kept = sizes.hidden_size if checkpointing else 8 * sizes.hidden_size + 4 * sizes.intermediate_size
    states = (12 if bf16 else 8) * trainable  # two moments, and fp32 weights for a bf16 model
    return MemoryEstimate(
        weights=size * shape.parameters / (workers if zero == 3 else 1),
        gradients=float(size * trainable / (workers if zero >= 2 else 1)),
        optimiser=states / (workers if zero >= 1 else 1),
        activations=float(size * load.tokens * shape.layers * kept),
        logits=float((size + 8) * load.scored * sizes.vocab_size),  # the logits, in fp32 too, and their gradient
    )
