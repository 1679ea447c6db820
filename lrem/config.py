"""One typed tree of settings for every stage: YAML plus dotted overrides; an unknown key is an error.

Holds names, types, defaults and their reasons; does not know what the stages do with them.
"""

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key and the remedy."""


class Section(BaseModel):
    """A part of the tree: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class RayConfig(Section):
    """How to reach or start Ray."""

    address: str | None = None  # None: RAY_ADDRESS if set (as in a job), else a local Ray for this command
    num_cpus: int = Field(8, ge=4)  # a local Ray's logical CPUs: only a count, fewer and actors wait for ever
    object_store_mb: int = Field(512, ge=100)  # a local Ray's
    gpus: int | None = Field(None, ge=0)  # None: those the cluster has now; else what it can scale to
    start_timeout_s: float = 180.0  # for actors and replicas to come up


class WorldConfig(Section):
    """The demo world."""

    products: int = Field(6000, ge=200)
    train_queries: int = Field(7000, ge=50)
    test_queries: int = Field(600, ge=25)


class ModelConfig(Section):
    """`source` names a Hugging Face model or folder; without it a small Qwen2 of the sizes below is made."""

    source: str | None = None
    vocab_size: int = Field(2048, ge=300)
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 3
    heads: int = 4  # head size 32 is the smallest that vLLM's CPU attention supports
    kv_heads: int = 4
    max_positions: int = 256


class CurateConfig(Section):
    """From queries to triplets."""

    top_k: int = Field(30, ge=1)  # of both retrievals: a first page; the paper does not state it
    items_per_query: int = Field(4, ge=1)  # triplets kept of one query: breadth of queries teaches more
    rl_share: float = Field(0.25, gt=0, lt=1)  # of the queries; the paper gives 4 of 75 M triplets
    keep_easy: bool = True  # queries served without thinking teach an empty reasoning
    banned: list[str] = Field(default_factory=list)  # phrases that no reasoning may hold


class OptimConfig(Section):
    """AdamW with cosine decay and warm-up."""

    lr: float = Field(1e-5, gt=0)
    warmup: float = Field(0.03, ge=0, lt=1)  # share of the steps (paper)
    weight_decay: float = 0.0
    clip: float = 1.0
    zero_stage: Literal[0, 1, 2, 3] = 2
    bf16: bool = False


class ColdStartConfig(Section):
    """Stage 1. `objective: direct` means no reasoning and InfoNCE alone."""

    objective: Literal["joint", "direct"] = "joint"
    workers: int = Field(2, ge=1)
    batch_size: int = Field(128, ge=2)  # per worker (paper)
    epochs: int = Field(1, ge=1)
    temperature: float = Field(0.03, gt=0)  # τ; not stated in the paper, 0.02 to 0.05 is usual
    sft_weight: float = 0.1
    info_nce_weight: float = 1.0
    optim: OptimConfig = OptimConfig()


class DirectConfig(ColdStartConfig):
    """The baseline: the same trainer without reasoning."""

    objective: Literal["joint", "direct"] = "direct"


class ReinforceOptimConfig(OptimConfig):
    """A tenth of stage 1's learning rate (paper)."""

    lr: float = Field(1e-6, gt=0)


class RewardWeights(Section):
    """Weights of the reward's parts (paper)."""

    format: float = 0.5
    length: float = 0.2
    accuracy: float = 1.0


class ReinforceConfig(Section):
    """Stage 2."""

    workers: int = Field(2, ge=1)
    batch_size: int = Field(256, ge=1)  # queries per worker and step (paper)
    steps: int | None = Field(None, ge=1)  # None: one epoch over the pairs (paper)
    group_size: int = Field(8, ge=2)  # G
    temperature: float = Field(0.03, gt=0)  # τ of the joint InfoNCE, as in stage 1
    grpo_weight: float = 1.0
    info_nce_weight: float = 0.1
    rewards: RewardWeights = RewardWeights()
    extra_candidates: int = Field(1024, ge=0)  # random items a step: a small batch's rank has no resolution
    ratio: Literal["token", "sequence"] = "token"  # one long sample must not swing a step; paper: sequence
    clip_low: float = 0.2
    clip_high: float = 0.2
    optim: ReinforceOptimConfig = ReinforceOptimConfig()


class RolloutConfig(Section):
    """The vLLM actors."""

    actors: int = Field(1, ge=1)
    temperature: float = Field(1.0, gt=0)  # of training rollouts; 1 samples the policy itself
    slack: int = Field(8, ge=3)  # tokens beyond the budget before a sample is cut: r_length must be reachable
    dtype: Literal["float32", "bfloat16"] = "float32"  # as the trainer's, or the ratio is not 1 on-policy
    kv_cache_gib: int = Field(1, ge=1)
    max_model_len: int = 256
    timeout_s: float = 300.0  # for one call of an actor


class EmbedConfig(Section):
    """Offline embedding of a catalogue."""

    actors: int = Field(1, ge=1)
    batch_size: int = Field(256, ge=1)


class IndexConfig(Section):
    """The Faiss index."""

    factory: str = "Flat"  # exact; any Faiss factory string


class EvaluateConfig(Section):
    """Metrics; k is chosen so that no system is saturated."""

    k: int = Field(30, ge=1)
    precision_k: int = Field(10, ge=1)
    examples: int = Field(3, ge=1)  # hard queries shown by the demo


class ServeConfig(Section):
    """The Serve application."""

    host: str = "127.0.0.1"
    port: int = 8000
    shards: int = Field(1, ge=1)
    timeout_s: float = 60.0  # of one request
    examples: list[str] = Field(default_factory=list)  # queries that the page offers


class PathsConfig(Section):
    """Where each artefact lies; what is not given lies under `run_dir`."""

    items: Path | None = None
    queries: Path | None = None
    qrels: Path | None = None
    teacher: Path | None = None
    triplets: Path | None = None
    rl_pairs: Path | None = None
    cold_start: Path | None = None
    direct: Path | None = None
    model: Path | None = None
    vectors: Path | None = None
    index: Path | None = None


DEFAULT_PATHS = {
    "items": "world/items.parquet",
    "queries": "world/queries.parquet",
    "qrels": "world/qrels.parquet",
    "teacher": "world/teacher.parquet",
    "triplets": "curated/triplets.parquet",
    "rl_pairs": "curated/rl_pairs.parquet",
    "cold_start": "cold_start",
    "direct": "direct",
    "model": "model",
    "vectors": "vectors",
    "index": "index",
}


class Config(Section):
    """Everything a run is told."""

    seed: int = Field(0, ge=0)
    run_dir: Path = Path("runs/demo")
    paths: PathsConfig = PathsConfig()
    ray: RayConfig = RayConfig()
    world: WorldConfig = WorldConfig()
    model: ModelConfig = ModelConfig()
    curate: CurateConfig = CurateConfig()
    cold_start: ColdStartConfig = ColdStartConfig()
    direct: DirectConfig = DirectConfig()
    reinforce: ReinforceConfig = ReinforceConfig()
    rollout: RolloutConfig = RolloutConfig()
    embed: EmbedConfig = EmbedConfig()
    index: IndexConfig = IndexConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    serve: ServeConfig = ServeConfig()

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, tree: dict[str, Any]) -> dict[str, Any]:
        """Absolute paths: a Ray worker's working directory is not the caller's."""
        run_dir = Path(tree.get("run_dir") or "runs/demo").absolute()
        given = {key: Path(value).absolute() for key, value in (tree.get("paths") or {}).items() if value}
        paths = {name: run_dir / path for name, path in DEFAULT_PATHS.items()} | given
        return tree | {"run_dir": run_dir, "paths": paths}

    def path(self, name: str) -> Path:
        """The resolved path of one artefact, a key of `paths`."""
        return Path(getattr(self.paths, name))


def load_config(file: Path | None, overrides: list[str]) -> Config:
    """Read YAML, then apply `dotted.key=value` overrides (values are YAML).

    Raises:
        ConfigError: no such file, bad YAML, an unknown key (with the nearest known one), a bad value.
    """
    tree = _read(file) if file else {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"'{override}' is not an override: write dotted.key=value, as seed=7")
        _assign(tree, key.split("."), _parse(value, f"the value of '{override}'"), override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(dict(problem)) for problem in error.errors())) from error


def to_yaml(config: Config) -> str:
    """The resolved tree, as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def known_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the tree."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise ConfigError(f"no configuration file {file}: the ones that ship lie in configs/")
    tree = _parse(file.read_text(encoding="utf-8"), str(file)) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} must hold a mapping of settings, not a {type(tree).__name__}")
    return tree


def _parse(text: str, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{what} is not YAML: {error}") from error


def _assign(tree: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"'{override}': '{key}' is a value, not a section")
    tree[keys[-1]] = value


def _explain(problem: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"{key}: {problem['msg']} (got {problem['input']!r})"
    known = known_keys()
    leaf = {name: name.split(".")[-1] for name in known}
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    near = near or [name for name in known if difflib.get_close_matches(key.split(".")[-1], [leaf[name]], 1)][:1]
    return f"unknown setting '{key}'" + (f": did you mean '{near[0]}'?" if near else "")
