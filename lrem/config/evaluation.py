"""Settings of the evaluation."""

from typing import Annotated

from pydantic import Field

from lrem.config.llm import JudgeLlmConfig, LlmConfig
from lrem.config.paths import LocalPath, PathOrName
from lrem.config.section import Section


class EvaluateConfig(Section):
    """Metrics, systems and probes. Choose k so that no system reaches 100 %."""

    k: int = Field(30, ge=1)
    """Cutoff of HitRate."""
    precision_k: int = Field(10, ge=1)
    """Cutoff of Precision."""
    primary: str = "nDCG@10"
    """Metric of the intervals, tests and the headline: a name of lrem/evaluation/metrics.py."""
    relevant_from: int = Field(1, ge=1)
    """Lowest grade that counts as relevant."""
    sentence_transformers: list[PathOrName] = Field(default_factory=list)
    """sentence-transformers folders to compare with."""
    llm: LlmConfig = LlmConfig()
    """If its model is set: prompt-only query expansion, searched with BM25."""
    judge_llm: JudgeLlmConfig = JudgeLlmConfig()
    """If its model is set: Precision@judge_k by its judgements."""
    judge_k: int = Field(100, ge=1)
    """Cutoff of the judge's Precision (paper)."""
    runs: dict[str, LocalPath] = Field(default_factory=dict)
    """Runs of other systems in TREC format: name → file."""
    lengths: list[Annotated[int, Field(ge=1)]] = Field(default_factory=lambda: [4, 8, 16])
    """Probe: reasonings cut to this many tokens."""
    fusion: list[Annotated[int, Field(ge=1, le=64)]] = Field(default_factory=lambda: [1, 4])
    """Probe: the mean embedding of this many sampled reasonings."""
    gallery: int = Field(12, ge=0)
    """Queries shown in the report."""
    url: str | None = None
    """Address of a running `lrem serve` to evaluate instead of local models."""
    key_variable: str = "LREM_KEY"
    """Environment variable with an API key of that service."""
    examples: int = Field(3, ge=1)
    """Hard queries that the demo prints."""
