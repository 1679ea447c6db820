"""One tree of settings: overrides, unknown keys, paths."""

import importlib
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from lrem.config import Config, known_keys, load_config, to_yaml
from lrem.errors import ConfigError

SERVE = Path("configs/serve.yaml")  # Ray Serve's own format
SHIPPED = sorted(set(Path("configs").glob("*.yaml")) - {SERVE})


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_files_load_and_come_back(file: Path, tmp_path: Path) -> None:
    config = load_config(file, [])
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(config))
    assert load_config(copy, []) == config


def test_the_file_for_serve_deploy_is_valid() -> None:
    deployed = ServeDeploySchema.model_validate(yaml.safe_load(SERVE.read_text()))
    [application] = deployed.applications
    module, _, function = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    config = load_config(Path(application.args["config"]), application.args["settings"])
    assert config.serve.embedder.max_replicas == 2
    assert deployed.http_options.host == "127.0.0.1"  # there are no keys in it


def test_overrides_win_and_are_typed() -> None:
    config = load_config(Path("configs/demo.yaml"), ["seed=7", "cold_start.optim.lr=1e-3", "curate.banned=[knife]"])
    assert (config.seed, config.cold_start.optim.lr, config.curate.banned) == (7, 1e-3, ["knife"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cold_start.temprature=1", "did you mean 'cold_start.temperature'"),
        ("lr=1", "did you mean 'cold_start.optim.lr'"),
        ("cold_start.epochs=none", "cold_start.epochs"),
        ("cold_start.optim.zero_stage=4", "zero_stage"),
        ("direct={compile: true, optim: {zero_stage: 3}}", "compile"),
        ("seed", "dotted.key=value"),
        ("seed.deeper.still=1", "seed"),
        ("a=[1", "not YAML"),
        ("world.bridged_test=5", "set bridged_train too"),
    ],
)
def test_what_is_wrong_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Path("configs/demo.yaml"), [override])


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="configs/"):
        load_config(tmp_path / "none.yaml", [])
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="mapping"):
        load_config(tmp_path / "list.yaml", [])


def test_a_partial_override_keeps_the_sections_defaults() -> None:
    config = load_config(None, ["direct.batch_size=32", "reinforce.optim.clip=2"])
    assert (config.direct.objective, config.direct.batch_size) == ("direct", 32)
    assert (config.reinforce.optim.lr, config.reinforce.optim.clip) == (1e-6, 2.0)


def test_paths_lie_under_the_run_unless_given(tmp_path: Path) -> None:
    config = load_config(None, [f"run_dir={tmp_path}", "paths.items=shop.parquet"])
    assert config.path("model") == tmp_path / "model"
    assert config.path("items") == Path.cwd() / "shop.parquet"
    assert yaml.safe_load(to_yaml(config))["paths"]["model"] == str(tmp_path / "model")


def test_every_key_is_known() -> None:
    assert {"seed", "reinforce.optim.lr", "serve.port"} <= set(known_keys())
    assert load_config(None, []) == Config.model_validate({})
