"""The settings of each stage: names, types, defaults and their reasons.

Does not know where they come from, nor what the stages do with them.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of the tree: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class WorldConfig(Section):
    """The demo world."""

    products: int = Field(6000, ge=200)
    train_queries: int = Field(7000, ge=50)
    test_queries: int = Field(600, ge=25)
    bridged_train: int = Field(0, ge=0)  # queries more, of facts of two steps (oslo is cold, cold asks for a coat)
    bridged_test: int = Field(0, ge=0)  # of these, asked as training never does
    unexplained: float = Field(0.0, ge=0, lt=1)  # share of the facts that the teacher does not know

    @model_validator(mode="after")
    def _taught(self) -> "WorldConfig":
        if self.bridged_test and not self.bridged_train:
            raise ValueError("bridged_test asks what bridged_train has to teach: set bridged_train too")
        return self


class ModelConfig(Section):
    """`source` names a Hugging Face model or folder; without it a small Qwen2 of the sizes below is made."""

    source: str | None = None
    budget: int | None = Field(None, ge=1)  # tokens of reasoning; None: the source's own, 16 for another (paper)
    max_query_tokens: int | None = Field(None, ge=1)  # None: the source's own, 64 for another
    max_item_tokens: int | None = Field(None, ge=1)  # None: the source's own, 96 for another; longer titles are cut
    vocab_size: int = Field(2048, ge=300)
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 3
    heads: int = 4  # head size 32 is the smallest that vLLM's CPU attention supports
    kv_heads: int = 4
    max_positions: int = 256


class OptimConfig(Section):
    """AdamW with cosine decay and warm-up."""

    lr: float = Field(1e-5, gt=0)
    warmup: float = Field(0.03, ge=0, lt=1)  # share of the steps (paper)
    weight_decay: float = 0.0
    clip: float = 1.0
    zero_stage: Literal[0, 1, 2, 3] = 2
    bf16: bool = False


class LoraConfig(Section):
    """Low-rank adapters in place of full training; rank 0 trains all parameters (paper)."""

    rank: int = Field(0, ge=0)
    alpha: float = 32.0
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | list[str] = "all-linear"  # module names, as peft takes them


class CheckpointConfig(Section):
    """What is kept while a run goes on, and how a dev set (paths.dev) is measured."""

    every: int = Field(500, ge=1)  # steps; the last step is always kept
    keep: int = Field(1, ge=1)  # how many of the best stay, by HitRate@k of the dev set (without one: the newest)
    k: int = Field(10, ge=1)
    candidates: int = Field(2000, ge=1)  # catalogue items ranked with the dev set's own


class TrainConfig(Section):
    """What both training stages are told."""

    workers: int = Field(2, ge=1)
    temperature: float = Field(0.03, gt=0)  # τ of InfoNCE; not stated in the paper, 0.02 to 0.05 is usual
    chunk_tokens: int = Field(16384, ge=1)  # padded tokens of one forward
    graph_tokens: int | None = Field(None, ge=1)  # of which activations are kept at once; None: the whole step's
    gradient_checkpointing: bool = False
    checkpoint: CheckpointConfig = CheckpointConfig()
    restarts: int = Field(3, ge=0)  # how often lost workers are replaced
    trackers: list[Literal["mlflow", "wandb"]] = Field(default_factory=list)  # besides JSON lines and TensorBoard
    log_rows: bool = False  # each rank also writes the row ids of every step, to account for what was consumed
    optim: OptimConfig = OptimConfig()


class ColdStartConfig(TrainConfig):
    """Stage 1. `objective: direct` means no reasoning and InfoNCE alone."""

    objective: Literal["joint", "direct"] = "joint"
    batch_size: int = Field(128, ge=2)  # per worker (paper)
    epochs: int = Field(1, ge=1)
    sft_weight: float = 1.0  # of a mean over tokens; the paper's 0.1 is of a sum over a sequence's ten or so
    sft_mean: Literal["token", "sequence"] = "token"  # over tokens: no weight to length; paper: over sequences
    info_nce_weight: float = 1.0
    max_negatives: int = Field(7, ge=0)  # hard negatives taken of each triplet that has some
    thought_dropout: float = Field(0.0, ge=0, lt=1)  # share of rows embedded with an empty reasoning; O1 Embedder: 0.1
    matryoshka: list[int] = Field(default_factory=list)  # shorter embeddings trained along, e.g. [64, 32]
    too_long: Literal["error", "cut"] = "error"  # a query beyond its limit, a reasoning beyond the budget
    lora: LoraConfig = LoraConfig()
    peak_tflops: float | None = Field(None, gt=0)  # of a worker's device, for MFU; None: known GPUs by their name


class MineConfig(Section):
    """Hard negatives for triplets."""

    window: tuple[int, int] = (1, 100)  # first and last rank, from 1, that is looked at
    margin: float = Field(0.05, ge=0)  # cosine below the positive's; nearer ones are often unknown positives
    count: int = Field(7, ge=1)  # negatives of a triplet

    @model_validator(mode="after")
    def _ordered(self) -> "MineConfig":
        if not 1 <= self.window[0] <= self.window[1]:
            raise ValueError(f"window {list(self.window)} has to be [first, last] with 1 ≤ first ≤ last")
        return self


class DirectConfig(ColdStartConfig):
    """The baseline: the same trainer without reasoning."""

    objective: Literal["joint", "direct"] = "direct"


class ReinforceOptimConfig(OptimConfig):
    """A tenth of stage 1's learning rate (paper)."""

    lr: float = Field(1e-6, gt=0)


class RewardWeights(Section):
    """Weights of the reward's parts, by the names of lrem.training.rewards; the first three are the paper's."""

    format: float = 0.5
    length: float = 0.2
    accuracy: float = 1.0
    top_ranks: float = 0.0
    margin: float = 0.0
    exclusivity: float = 0.0
    literals: float = 0.0
    own: dict[str, float] = Field(default_factory=dict)  # a reward of your own, package.module:function → its weight

    @model_validator(mode="after")
    def _apart(self) -> "RewardWeights":
        wrong = [name for name in self.own if ":" not in name]
        if wrong:
            raise ValueError(f"own reward '{wrong[0]}' has to be named as package.module:function")
        return self

    def weights(self) -> dict[str, float]:
        """Name → weight, your own included."""
        return self.model_dump(exclude={"own"}) | self.own


class ReinforceConfig(TrainConfig):
    """Stage 2."""

    batch_size: int = Field(256, ge=1)  # queries per worker and step (paper)
    steps: int | None = Field(None, ge=1)  # None: one epoch over the pairs (paper)
    group_size: int = Field(8, ge=2)  # G
    grpo_weight: float = 1.0
    info_nce_weight: float = 0.1
    kl_weight: float = Field(0.0, ge=0)  # of KL to the cold start; the paper has none, and it costs a forward
    rewards: RewardWeights = RewardWeights()
    extra_candidates: int = Field(1024, ge=0)  # random items a step: a small batch's rank has no resolution
    hard_candidates: int = Field(0, ge=0)  # of each query and rank, the nearest of the catalogue; costs its embedding
    refresh: int = Field(50, ge=1)  # steps between two embeddings of the catalogue, for hard_candidates
    advantage: Literal["std", "mean", "leave_one_out"] = "std"  # paper: std
    zero_variance: Literal["keep", "drop"] = "keep"  # groups of equal rewards: count in the loss's mean, or not
    ratio: Literal["token", "sequence"] = "token"  # one long sample must not swing a step; paper: sequence
    aggregate: Literal["token", "sequence", "constant"] = "token"  # what counts alike, see policy.token_weights
    clip_low: float = Field(0.2, ge=0)
    clip_high: float = Field(0.2, ge=0)
    staleness: Literal[0, 1] = 0  # steps that rollouts may lag behind; 1: sampled while the step before trains
    correction: Literal["none", "token", "sequence"] = "none"  # of stale rollouts; none: the clipped ratio alone
    correction_cap: float = Field(3.0, gt=0)
    samples: int = Field(2, ge=0)  # groups of each step and worker written to logs/reinforce.rollouts-RANK.jsonl
    optim: ReinforceOptimConfig = ReinforceOptimConfig()


class RolloutConfig(Section):
    """The actors that sample reasonings."""

    engine: str = "vllm"  # or transformers: slower, for machines without vLLM; or package.module:Class of your own
    actors: int = Field(1, ge=1)
    tensor_parallel: int = Field(1, ge=1)  # GPUs of one actor
    batch_size: int = Field(256, ge=1)  # queries of one call; what a lost actor has to sample again
    queue: int = Field(64, ge=1)  # calls that wait or run at once; beyond that whoever asks has to wait
    temperature: float = Field(1.0, gt=0)  # of training rollouts; 1 samples the policy itself
    slack: int = Field(8, ge=3)  # tokens beyond the budget before a sample is cut: r_length must be reachable
    dtype: Literal["float32", "bfloat16"] = "float32"  # as the trainer's, or the ratio is not 1 on-policy
    kv_cache_gib: int = Field(1, ge=1)
    max_model_len: int = 256
    timeout_s: float = Field(300.0, gt=0)  # for one call of an actor; one that takes longer hangs, and is replaced
    sync_timeout_s: float = Field(120.0, gt=0)  # for an actor to take new weights
    restarts: int = Field(20, ge=0)  # lost or hung actors that are replaced in a run
    probe_tolerance: float = Field(0.01, gt=0)  # nats between actor and trainer after a sync; bf16 wants 0.2


class EmbedConfig(Section):
    """Offline embedding of a catalogue."""

    actors: int = Field(1, ge=1)
    batch_size: int = Field(1024, ge=1)  # items that an actor takes at once, to put like lengths together


class IndexConfig(Section):
    """The Faiss index."""

    factory: str | None = None  # any Faiss factory string; None chooses by the number of items, and logs why


class LlmConfig(Section):
    """A language model that is asked: vLLM in the cluster, or anything that speaks OpenAI's chat schema."""

    engine: Literal["vllm", "url"] = "vllm"
    model: str | None = None  # a Hugging Face name or folder; at a URL the name that it serves
    url: str | None = None  # as http://host:8000/v1
    key_variable: str = "OPENAI_API_KEY"  # the environment variable that holds the key, if it needs one
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(512, ge=1)  # of one answer
    concurrency: int = Field(32, ge=1)  # requests to a URL at once
    timeout_s: float = Field(120.0, gt=0)  # of one request, or of one batch of vLLM
    retries: int = Field(4, ge=0)  # of one request, waiting twice as long each time
    actors: int = Field(1, ge=1)  # vLLM engines
    batch_size: int = Field(64, ge=1)  # questions that an engine takes at once
    tensor_parallel: int = Field(1, ge=1)
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    max_model_len: int = Field(4096, ge=64)
    kv_cache_gib: int = Field(1, ge=1)  # on a CPU
    tokens_a_second: float = Field(2000.0, gt=0)  # what --dry-run reckons with
    price_in: float = Field(0.0, ge=0)  # of a million prompt tokens, for --dry-run
    price_out: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _reachable(self) -> "LlmConfig":
        if self.engine == "url" and self.model is not None and self.url is None:
            raise ValueError("engine url needs the address too: set url, as http://host:8000/v1")
        return self


class JudgeLlmConfig(LlmConfig):
    """A grade is short."""

    max_tokens: int = Field(8, ge=1)


class EvaluateConfig(Section):
    """Metrics, systems and probes; k is chosen so that no system is saturated."""

    k: int = Field(30, ge=1)
    precision_k: int = Field(10, ge=1)
    primary: str = "nDCG@10"  # the measure of intervals, tests and the headline: a name of lrem.evaluation.metrics
    relevant_from: int = Field(1, ge=1)  # the grade from which an item counts as relevant
    sentence_transformers: list[str] = Field(default_factory=list)  # model folders to compare with
    llm: LlmConfig = LlmConfig()  # with a model: its prompt-only expansion of the query, into BM25
    judge_llm: JudgeLlmConfig = JudgeLlmConfig()  # with a model: Precision@judge_k by its judgement
    judge_k: int = Field(100, ge=1)  # of its Precision@k (paper)
    runs: dict[str, Path] = Field(default_factory=dict)  # other systems' runs in TREC's format, name → file
    lengths: list[Annotated[int, Field(ge=1)]] = Field(default_factory=lambda: [4, 8, 16])  # tokens kept of a reasoning
    fusion: list[Annotated[int, Field(ge=1, le=64)]] = Field(default_factory=lambda: [1, 4])  # reasonings averaged
    gallery: int = Field(12, ge=0)  # queries shown in the report
    url: str | None = None  # a running `lrem serve` to ask in place of the files' models
    key_variable: str = "LREM_KEY"  # the environment variable with a key for it
    examples: int = Field(3, ge=1)  # hard queries shown by the demo


class ReplicasConfig(Section):
    """How many replicas a deployment has. With `max_replicas` Serve adds some under load and takes them away again."""

    replicas: int = Field(1, ge=1)
    max_replicas: int | None = Field(None, ge=1)  # None: always `replicas`
    target_ongoing: int = Field(16, ge=1)  # requests of a replica beyond which another is started
    cpus: float = Field(1.0, gt=0)  # of the scheduler's count, for each replica
    gpus: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> "ReplicasConfig":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below replicas {self.replicas}")
        return self


class IngressConfig(ReplicasConfig):
    """The HTTP side."""

    cpus: float = Field(0.1, gt=0)


class ReasonerConfig(ReplicasConfig):
    """vLLM."""

    gpus: float | None = Field(None, ge=0)  # type: ignore[assignment]  # None: one where the cluster has any


class ShardConfig(ReplicasConfig):
    """Each shard. Its replicas share one folder, so they run on one machine."""

    cpus: float = Field(0.5, gt=0)


class ServeConfig(Section):
    """The Serve application."""

    host: str = "127.0.0.1"
    port: int = 8000
    keys_file: Path | None = None  # who may read and write; without it only loopback addresses are bound to
    shards: int = Field(1, ge=1)
    index_nodes: list[str] = Field(default_factory=list)  # addresses; shard i lives on the i-th; none: on this machine
    ingress: IngressConfig = IngressConfig()
    reasoner: ReasonerConfig = ReasonerConfig()
    embedder: ReplicasConfig = ReplicasConfig()
    shard: ShardConfig = ShardConfig()
    timeout_s: float = Field(60.0, gt=0)  # of one request
    reason_timeout_s: float = Field(10.0, gt=0)  # for thinking, then the query is embedded as it is
    search_timeout_s: float = Field(5.0, gt=0)  # for a shard, then the answer goes without it
    max_requests: int = Field(256, ge=1)  # that one ingress has under way; more are told to come back (429)
    think_below: float = Field(0.5, ge=0, le=1)  # `auto` thinks where the chance of an empty thought is below this
    max_body_mb: float = Field(8.0, gt=0)
    cache_size: int = Field(10_000, ge=0)  # queries whose thought and vector are kept; 0: none
    cache_ttl_s: float = Field(3600.0, gt=0)
    drain_s: float = Field(10.0, gt=0)  # how long a replaced index or model still answers what it was asked
    examples: list[str] = Field(default_factory=list)  # queries that the page offers

    @model_validator(mode="after")
    def _time_for_each(self) -> "ServeConfig":
        if self.reason_timeout_s + self.search_timeout_s >= self.timeout_s:
            raise ValueError(
                f"reason_timeout_s ({self.reason_timeout_s:g}) and search_timeout_s ({self.search_timeout_s:g}) leave "
                f"no time to answer without thinking in timeout_s ({self.timeout_s:g}): raise it, or lower the two"
            )
        return self
