"""Settings of language models: the teacher, the judge, and prompt-only query expansion."""

from typing import Literal

from pydantic import Field, model_validator

from lrem.config.paths import PathOrName
from lrem.config.section import Section


class LlmConfig(Section):
    """A language model: vLLM in the cluster, or any server with OpenAI's chat schema."""

    engine: Literal["vllm", "url"] = "vllm"
    """vllm: in the cluster. url: a server."""
    model: PathOrName | None = None
    """A Hugging Face name or folder; for a server, the name that it serves."""
    url: str | None = None
    """Address of the server, such as http://host:8000/v1."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the API key, if the server needs one."""
    temperature: float = Field(0.0, ge=0)
    """Sampling temperature."""
    max_tokens: int = Field(512, ge=1)
    """Maximum tokens per answer."""
    concurrency: int = Field(32, ge=1)
    """Requests sent to the server at the same time."""
    timeout_s: float = Field(120.0, gt=0)
    """Seconds for one request, or for one batch of vLLM."""
    retries: int = Field(4, ge=0)
    """Retries per request; each waits twice as long as the one before."""
    actors: int = Field(1, ge=1)
    """vLLM engines."""
    batch_size: int = Field(64, ge=1)
    """Prompts per vLLM batch."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs per vLLM engine."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """vLLM's data type."""
    max_model_len: int = Field(4096, ge=64)
    """Longest sequence in tokens."""
    kv_cache_gib: int = Field(1, ge=1)
    """vLLM's KV cache on a CPU, in GiB."""
    tokens_a_second: float = Field(2000.0, gt=0)
    """Expected throughput, for the estimate of --dry-run."""
    price_in: float = Field(0.0, ge=0)
    """Price per million prompt tokens, for the estimate of --dry-run."""
    price_out: float = Field(0.0, ge=0)
    """Price per million generated tokens, for the estimate of --dry-run."""

    @model_validator(mode="after")
    def _check_url(self) -> "LlmConfig":
        if self.engine == "url" and self.model is not None and self.url is None:
            raise ValueError("engine url needs an address: set url, such as http://host:8000/v1")
        return self


class JudgeLlmConfig(LlmConfig):
    """A language model that answers with one grade."""

    max_tokens: int = Field(8, ge=1)
    """Maximum tokens per answer; a grade is short."""
