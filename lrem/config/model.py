"""Settings of the model."""

from pydantic import Field

from lrem.config.section import Section


class ModelConfig(Section):
    """`source` names a Hugging Face model or folder. Without it, a small Qwen2 of the sizes below is created."""

    source: str | None = None
    """A Hugging Face name or a local folder."""
    budget: int | None = Field(None, ge=1)
    """Maximum tokens of reasoning. None: as stored with the source, otherwise 16 (paper)."""
    max_query_tokens: int | None = Field(None, ge=1)
    """None: as stored with the source, otherwise 64."""
    max_item_tokens: int | None = Field(None, ge=1)
    """Longer titles are cut. None: as stored with the source, otherwise 96."""
    vocab_size: int = Field(2048, ge=300)
    """Tokens of the trained tokenizer."""
    hidden_size: int = 128
    """Numbers per hidden state, and so per embedding."""
    intermediate_size: int = 384
    """Width of the MLP."""
    layers: int = 3
    """Transformer layers."""
    heads: int = 4
    """Attention heads. A head size of 32 is the smallest that vLLM's CPU attention supports."""
    kv_heads: int = 4
    """Key-value heads."""
    max_positions: int = 256
    """Longest sequence in tokens."""
