"""Settings of the model."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from lrem.config.paths import PathOrName
from lrem.config.section import Section


def pretrained_source(source: str) -> tuple[str, dict[str, str]]:
    """Return what transformers' `from_pretrained` takes for a `model.source`: a name or folder, and further arguments.

    >>> pretrained_source("backbones/small.Q8_0.gguf")
    ('backbones', {'gguf_file': 'small.Q8_0.gguf'})
    >>> pretrained_source("org/name")
    ('org/name', {})
    """
    path = Path(source)
    return (str(path.parent), {"gguf_file": path.name}) if is_gguf(source) else (source, {})


def is_gguf(source: str) -> bool:
    """Return True if a `model.source` is a GGUF file."""
    return source.lower().endswith(".gguf")


class ModelConfig(Section):
    """`source` names a Hugging Face model or folder. Without it, a small Qwen2 of the sizes below is created."""

    source: PathOrName | None = None
    """A Hugging Face name, a local folder, or a .gguf file, which is dequantised once into `run_dir`/backbone."""
    template: Literal["chat", "compact"] | None = None
    """The text around queries and items. chat: ChatML with an instruction. compact: at most five tokens a text. None:
    as stored with the source, otherwise chat for a pretrained model and compact for a fresh one."""
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

    @model_validator(mode="after")
    def _check_template(self) -> "ModelConfig":
        if self.template == "chat" and not self.source:
            raise ValueError("template=chat needs a source: a model that starts from nothing knows no chat format")
        return self
