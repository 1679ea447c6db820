"""What the driver of a training run hands to every rank."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ray import ObjectRef
from ray.actor import ActorHandle

from lrem.config import ColdStartConfig, Config, ReinforceConfig
from lrem.training.batching import EpochRows

StageConfig = TypeVar("StageConfig", ColdStartConfig, ReinforceConfig)
RunSignature = dict[str, Any]  # JSON values that a resumed run must share with the run it continues


@dataclass(frozen=True)
class TrainingJob(Generic[StageConfig]):
    """A training run as its ranks see it; it travels inside Ray Train's `train_loop_config`."""

    name: str  # of the Ray Train run, the progress bar and the logs
    config: Config
    stage: StageConfig
    base_model: Path  # the model folder that training starts from
    rows: EpochRows  # that an epoch visits
    known_positives: ObjectRef  # → KnownPositives
    dev_set: ObjectRef  # → DevSet | None
    checkpoints: Path
    signature: RunSignature


@dataclass(frozen=True)
class ColdStartJob(TrainingJob[ColdStartConfig]):
    """A run of stage 1, or of the direct baseline."""

    out: Path  # the model folder to write


@dataclass(frozen=True)
class ReinforceJob(TrainingJob[ReinforceConfig]):
    """A run of stage 2."""

    pool: ActorHandle  # the rollout pool
