"""Settings: one typed tree for every stage, read from YAML and dotted overrides."""

from lrem.config.cluster import PlacementConfig, RayConfig
from lrem.config.curation import BootstrapConfig, CurateConfig, DifficultyConfig, SourcesConfig, TeacherLlmConfig
from lrem.config.evaluation import EvaluateConfig
from lrem.config.llm import JudgeLlmConfig, LlmConfig
from lrem.config.loader import Config, known_keys, load_config, public, to_yaml
from lrem.config.model import ModelConfig
from lrem.config.paths import DEFAULT_PATHS, PathsConfig
from lrem.config.section import Section
from lrem.config.serving import EmbedConfig, IndexConfig, ReplicasConfig, ServeConfig
from lrem.config.training import (
    CheckpointConfig,
    ColdStartConfig,
    DirectConfig,
    LoraConfig,
    MineConfig,
    OptimConfig,
    ReinforceConfig,
    RewardWeights,
    RolloutConfig,
    ThoughtsConfig,
    TrainConfig,
)
from lrem.config.world import WorldConfig

__all__ = [
    "DEFAULT_PATHS",
    "BootstrapConfig",
    "CheckpointConfig",
    "ColdStartConfig",
    "Config",
    "CurateConfig",
    "DifficultyConfig",
    "DirectConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "IndexConfig",
    "JudgeLlmConfig",
    "LlmConfig",
    "LoraConfig",
    "MineConfig",
    "ModelConfig",
    "OptimConfig",
    "PathsConfig",
    "PlacementConfig",
    "RayConfig",
    "ReinforceConfig",
    "ReplicasConfig",
    "RewardWeights",
    "RolloutConfig",
    "Section",
    "ServeConfig",
    "SourcesConfig",
    "TeacherLlmConfig",
    "ThoughtsConfig",
    "TrainConfig",
    "WorldConfig",
    "known_keys",
    "load_config",
    "public",
    "to_yaml",
]
