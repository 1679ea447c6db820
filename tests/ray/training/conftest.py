"""What several test modules of training share, made once: a reference run of stage 1, a model for stage 2."""

from pathlib import Path

import pytest

from lrem.config import load_config
from ray_apps.training import cold_start
from tests.ray.training.cold_start_runs import SETTINGS, write_data
from tests.ray.training.reinforce_runs import train_model


@pytest.fixture(scope="session")
def reference_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of stage 1 with a dev set, and everything that it writes."""
    run = tmp_path_factory.mktemp("reference_run")
    write_data(run)
    config = load_config(None, [*SETTINGS, f"run_dir={run}", f"paths.dev={run}/dev.parquet"])
    cold_start.run(config, config.cold_start, config.path("cold_start"))
    return run


@pytest.fixture(scope="session")
def cold_start_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that runs of stage 2 start from."""
    folder = tmp_path_factory.mktemp("cold_start_model") / "model"
    train_model(folder)
    return folder
