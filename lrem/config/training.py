"""Settings of both training stages, of hard-negative mining and of the rollout pool."""

from typing import Literal

from pydantic import Field, model_validator

from lrem.config.section import Section


class OptimConfig(Section):
    """AdamW with cosine decay and warm-up."""

    lr: float = Field(1e-5, gt=0)
    """Peak learning rate."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of the steps spent warming up (paper)."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    clip: float = 1.0
    """Maximum norm of the gradient."""
    zero_stage: int = Field(2, ge=0, le=3)
    """DeepSpeed ZeRO stage."""
    bf16: bool = False
    """Train the weights in bfloat16."""


class LoraConfig(Section):
    """Low-rank adapters instead of full training. Rank 0 trains all parameters (paper)."""

    rank: int = Field(0, ge=0)
    """Rank of the adapters; 0 turns them off."""
    alpha: float = 32.0
    """Scale of the adapters: alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in front of the adapters."""
    targets: str | list[str] = "all-linear"
    """Names of the adapted modules, in peft's notation."""


class CheckpointConfig(Section):
    """Checkpoints, and how the dev set (`paths.dev`) is measured at each."""

    every: int = Field(500, ge=1)
    """Steps between checkpoints. The last step always writes one."""
    keep: int = Field(1, ge=1)
    """Number of checkpoints to keep: the best by the dev set's HitRate@k with the model's own thoughts, or without a
    dev set the newest."""
    k: int = Field(10, ge=1)
    """Cutoff of HitRate on the dev set."""
    candidates: int = Field(2000, ge=1)
    """Catalogue items to rank together with the dev set's own."""


class TrainConfig(Section):
    """Settings shared by both training stages."""

    workers: int = Field(2, ge=1)
    """Training workers (ranks)."""
    temperature: float = Field(0.03, gt=0)
    """τ of InfoNCE. Not stated in the paper; 0.02 to 0.05 is usual."""
    chunk_tokens: int = Field(16384, ge=1)
    """Padded tokens of one forward pass."""
    graph_tokens: int | None = Field(None, ge=1)
    """Tokens whose activations are kept at the same time. None: those of the whole step."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    freeze_layers: int = Field(0, ge=0)
    """Number of lowest layers to freeze. The token embeddings are frozen too, except those of `<think>`, `</think>` and
    `<emb>`."""
    autocast: Literal["never", "auto", "always"] = "never"
    """Compute in bfloat16 on weights in float32. auto: on a CPU with AVX512-BF16 or AMX, if a measurement at the start
    finds it at least 1.2 times as fast. On a GPU use optim.bf16."""
    compile: bool = False
    """Compile the model's layers with torch.compile, at the start and again for each new kind of batch. Needs a C++
    compiler on every training machine. `tokens_per_s` in the log shows whether it pays."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of a training worker. None: the cores of its machine divided by the training workers there."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    restarts: int = Field(3, ge=0)
    """How many times lost workers are replaced."""
    trackers: list[Literal["mlflow", "wandb"]] = Field(default_factory=list)
    """Trackers in addition to JSON lines and TensorBoard."""
    log_rows: bool = False
    """Each rank also logs the row ids of every step, so that consumed rows can be counted."""
    optim: OptimConfig = OptimConfig()

    @model_validator(mode="after")
    def _check_compile(self) -> "TrainConfig":
        if self.compile and self.optim.zero_stage == 3:
            raise ValueError("compile and optim.zero_stage=3 exclude each other: ZeRO-3 gathers weights layer by layer")
        return self

    @model_validator(mode="after")
    def _check_autocast(self) -> "TrainConfig":
        if self.autocast != "never" and self.optim.bf16:
            raise ValueError(
                f"autocast={self.autocast} keeps float32 weights, and optim.bf16 does not: set one of them"
            )
        return self


class ThoughtsConfig(Section):
    """Which thoughts the queries are embedded with: shares of the rows whose teacher wrote one. They sum to 1.

    The paper's is `teacher: 1` alone. But then the model never embeds what it will write itself (exposure bias).
    """

    teacher: float = Field(0.65, ge=0, le=1)
    """The teacher's, on which SFT trains too."""
    own: float = Field(0.25, ge=0, le=1)
    """Sampled from the model itself at temperature 1; the teacher's in the first `refresh` steps of the run."""
    empty: float = Field(0.0, ge=0, le=1)
    """No reasoning. With `empty_weight` every row is also embedded without reasoning, whatever its thought."""
    corrupted: float = Field(0.1, ge=0, le=1)
    """The teacher's with a phrase dropped or repeated, or that of another query."""
    refresh: int = Field(25, ge=1)
    """Own thoughts are sampled for this many steps at once, with the weights of the first of these steps."""

    @model_validator(mode="after")
    def _check_sum(self) -> "ThoughtsConfig":
        shares = [self.teacher, self.own, self.empty, self.corrupted]
        if abs(sum(shares) - 1) > 1e-6:
            raise ValueError(
                f"the shares teacher {shares[0]}, own {shares[1]}, empty {shares[2]} and corrupted {shares[3]} sum to "
                f"{sum(shares):.4g}: set them so that they sum to 1"
            )
        return self


class ColdStartConfig(TrainConfig):
    """Stage 1. `objective: direct` trains without reasoning, on InfoNCE alone."""

    objective: Literal["joint", "direct"] = "joint"
    """joint: SFT + InfoNCE. direct: InfoNCE alone."""
    batch_size: int = Field(128, ge=2)
    """Rows per worker and step (paper)."""
    sft_epochs: int = Field(0, ge=0)
    """Epochs of SFT alone, without items, before the joint ones. `objective: direct` has none."""
    epochs: int = Field(1, ge=1)
    """How many times each query is trained on, or each row with `rows_per_query: null`; `sft_epochs` come on top."""
    rows_per_query: int | None = Field(1, ge=1)
    """Rows of each query in an epoch, the next ones in the next epoch. null: all of them in every epoch."""
    sft_weight: float = 1.0
    """Weight of the SFT loss, a mean over tokens. The paper's 0.1 weighs a sum over a sequence of about ten tokens."""
    sft_mean: Literal["token", "sequence"] = "token"
    """token: the mean over tokens. sequence: the sum over each sequence, and the mean over sequences (paper)."""
    info_nce_weight: float = 1.0
    """Weight of the InfoNCE loss."""
    max_negatives: int = Field(7, ge=0)
    """Maximum hard negatives per triplet."""
    thoughts: ThoughtsConfig = ThoughtsConfig()
    empty_weight: float = Field(0.5, ge=0)
    """Weight of a second InfoNCE term, in which the same queries are embedded without reasoning. 0: none (paper).
    `objective: direct` does not use it."""
    thought_positives: bool = False
    """`objective: direct` only: the teacher's reasoning, embedded as an item, is a further positive of its query."""
    rl_pairs: bool = False
    """Train InfoNCE on the RL pairs too, without a thought. `objective: direct` always does."""
    matryoshka: list[int] = Field(default_factory=list)
    """Shorter embeddings to train as well, such as [64, 32]."""
    too_long: Literal["error", "cut"] = "error"
    """What to do with a query beyond its limit or a reasoning beyond the budget. A reasoning is cut at a comma."""
    lora: LoraConfig = LoraConfig()
    peak_tflops: float | None = Field(None, gt=0)
    """Peak TFLOPS of a worker's device, for MFU. None: looked up for known GPUs."""

    @property
    def total_epochs(self) -> int:
        """Return the epochs of the whole run, those of SFT alone included."""
        return self.epochs + (self.sft_epochs if self.objective == "joint" else 0)

    @model_validator(mode="after")
    def _check_positives(self) -> "ColdStartConfig":
        if self.thought_positives and self.objective == "joint":
            raise ValueError(
                "thought_positives needs objective: direct; with objective: joint the model writes thoughts"
            )
        return self

    @model_validator(mode="after")
    def _check_frozen(self) -> "ColdStartConfig":
        if self.freeze_layers and self.lora.rank:
            raise ValueError(
                "freeze_layers and lora.rank exclude each other: adapters sit in the layers that are frozen"
            )
        return self


class MineConfig(Section):
    """Hard negatives for triplets."""

    window: tuple[int, int] = (1, 100)
    """First and last rank to consider, counted from 1."""
    margin: float = Field(0.05, ge=0)
    """A negative's cosine must be this far below the positive's: closer items are often unlabelled positives."""
    count: int = Field(7, ge=1)
    """Negatives per triplet."""

    @model_validator(mode="after")
    def _check_window(self) -> "MineConfig":
        if not 1 <= self.window[0] <= self.window[1]:
            raise ValueError(f"window {list(self.window)} must be [first, last] with 1 ≤ first ≤ last")
        return self


class DirectConfig(ColdStartConfig):
    """The direct baseline: the same trainer without reasoning."""

    objective: Literal["joint", "direct"] = "direct"
    """joint: SFT + InfoNCE. direct: InfoNCE alone."""


class ReinforceOptimConfig(OptimConfig):
    """A tenth of stage 1's learning rate (paper)."""

    lr: float = Field(1e-6, gt=0)
    """Peak learning rate."""


class RewardWeights(Section):
    """Weights of the rewards in lrem/training/rewards.py. The first three are the paper's."""

    format: float = 0.5
    """1 for a well-formed output."""
    length: float = 0.2
    """1 for a reasoning within the budget."""
    accuracy: float = 1.0
    """1 at rank 1 of the candidates, 0 at the last rank."""
    top_ranks: float = 0.0
    """A linear alternative to accuracy: 1 to ½ over ranks 1 to 10, ½ to 0 over ranks 11 to 100 (ConvSearch-R1)."""
    margin: float = 0.0
    """Grows with the positive's cosine minus the best other candidate's."""
    exclusivity: float = 0.0
    """Share of the reasoning's words that the query does not contain (Retrieval-GRPO)."""
    literals: float = 0.0
    """1 unless the reasoning contains a word with a digit that the query does not contain (PROSPER)."""
    own: dict[str, float] = Field(default_factory=dict)
    """Your own rewards: package.module:function → weight."""

    @model_validator(mode="after")
    def _check_own(self) -> "RewardWeights":
        wrong = [name for name in self.own if ":" not in name]
        if wrong:
            raise ValueError(f"own reward '{wrong[0]}' must be written as package.module:function")
        return self

    def weights(self) -> dict[str, float]:
        """Return name → weight, your own rewards included."""
        return self.model_dump(exclude={"own"}) | self.own


class ReinforceConfig(TrainConfig):
    """Stage 2."""

    batch_size: int = Field(256, ge=1)
    """Queries per worker and step (paper)."""
    steps: int | None = Field(None, ge=1)
    """None: one epoch over the pairs (paper)."""
    group_size: int = Field(8, ge=2)
    """G, the rollouts per query."""
    grpo_weight: float = 1.0
    """Weight of the GRPO loss."""
    info_nce_weight: float = 0.1
    """Weight of the InfoNCE loss."""
    kl_weight: float = Field(0.0, ge=0)
    """Weight of the KL to the cold start. The paper has none; it costs one more forward pass."""
    rewards: RewardWeights = RewardWeights()
    extra_candidates: int = Field(1024, ge=0)
    """Random items per step that take part in the ranking: the rank within a small batch is too coarse."""
    hard_candidates: int = Field(0, ge=0)
    """Number of nearest items, per query and worker's part of the catalogue, added to the ranking. Above 0 the
    catalogue is embedded every `refresh` steps."""
    refresh: int = Field(50, ge=1)
    """Steps between two embeddings of the catalogue, for hard_candidates."""
    advantage: Literal["std", "mean", "leave_one_out"] = "std"
    """How rewards of a group become advantages. Paper: std."""
    zero_variance: Literal["keep", "drop"] = "keep"
    """Whether groups of equal rewards count in the mean of the loss."""
    ratio: Literal["token", "sequence"] = "token"
    """The importance ratio. token: one long sample cannot dominate a step. Paper: sequence."""
    aggregate: Literal["token", "sequence", "constant"] = "token"
    """token: every token weighs the same. sequence: every sequence does. constant: a token weighs 1 / (sequences ×
    maximum length), as in Dr. GRPO."""
    clip_low: float = Field(0.2, ge=0)
    """Lower clip of the ratio: 1 - clip_low."""
    clip_high: float = Field(0.2, ge=0)
    """Upper clip of the ratio: 1 + clip_high."""
    staleness: int = Field(0, ge=0, le=1)
    """Steps by which rollouts may lag behind the policy. 1: sample while the previous step trains."""
    correction: Literal["none", "token", "sequence"] = "none"
    """Importance correction of stale rollouts. none: only the clipped ratio."""
    correction_cap: float = Field(3.0, gt=0)
    """Maximum correction weight."""
    samples: int = Field(2, ge=0)
    """Groups per step and worker that are logged to logs/reinforce.rollouts-RANK.jsonl."""
    optim: ReinforceOptimConfig = ReinforceOptimConfig()


class RolloutConfig(Section):
    """The actors that sample reasonings."""

    engine: str = "vllm"
    """vllm, or transformers (slower, for machines without vLLM), or package.module:Class of your own."""
    actors: int = Field(1, ge=1)
    """Engines, each in one actor."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs per actor."""
    batch_size: int = Field(256, ge=1)
    """Queries per call. A lost actor's call is sampled again."""
    queue: int = Field(64, ge=1)
    """Maximum calls waiting or running; further callers wait."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature of training rollouts; 1 samples from the policy itself."""
    slack: int = Field(8, ge=3)
    """Tokens beyond the budget before a sample is cut, so that a too long reasoning can occur and be penalised."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Use the trainer's type, otherwise the on-policy ratio is not 1."""
    kv_cache_gib: int = Field(1, ge=1)
    """vLLM's KV cache on a CPU, in GiB."""
    max_model_len: int = 256
    """Longest sequence in tokens."""
    timeout_s: float = Field(300.0, gt=0)
    """Seconds for one call of an actor; a slower actor is considered hung and is replaced."""
    sync_timeout_s: float = Field(120.0, gt=0)
    """Seconds for an actor to load new weights."""
    restarts: int = Field(20, ge=0)
    """How many lost or hung actors are replaced per run."""
    probe_tolerance: float = Field(0.01, gt=0)
    """Largest difference in nats between actor and trainer after a weight sync. For bfloat16 set 0.2."""
