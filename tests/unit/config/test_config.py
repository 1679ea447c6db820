"""One tree of settings: overrides, unknown keys, paths."""

import importlib
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
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
        ("paths.items=s3://bucket/items", "paths.items=s3://bucket/items must be a local path"),
        ("paths.items=file://data/items.parquet", "names the host data: write file:///path"),
        ("paths=[a]", "must be a mapping"),
        ("paths=a", "must be a mapping"),
        ("paths={items: [a]}", "must be one path"),
        ("seed", "dotted.key=value"),
        ("seed.deeper.still=1", "seed"),
        ("a=[1", "not YAML"),
        ("world.bridged_test=5", "set bridged_train too"),
    ],
)
def test_what_is_wrong_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Path("configs/demo.yaml"), [override])


@pytest.mark.parametrize(
    ("override", "setting", "value"),
    [
        ("run_dir=2026-11-30", "run_dir", Path.cwd() / "2026-11-30"),
        ("run_dir=2026", "run_dir", Path.cwd() / "2026"),
        ("run_dir=~/shop #2", "run_dir", Path.home() / "shop #2"),
        ("paths.model=1e5: no", "paths.model", Path.cwd() / "1e5: no"),
        ("paths.gold=~/gold.parquet", "paths.gold", Path.home() / "gold.parquet"),
        ("paths.items=file:///a%20b/items.parquet", "paths.items", Path("/a b/items.parquet")),
        ("serve.keys_file=~/keys", "serve.keys_file", Path.home() / "keys"),
        ("curate.retriever=~/minilm", "curate.retriever", str(Path.home() / "minilm")),
        ("model.source=~/backbone", "model.source", str(Path.home() / "backbone")),
        ("sources.columns={item_id: No, brand: 007}", "sources.columns", {"item_id": "No", "brand": "007"}),
        ("sources.columns.item_id=sku #", "sources.columns", {"item_id": "sku #"}),
        ("sources.grades={2: 1, yes: 3}", "sources.grades", {"2": 1, "yes": 3}),
        ("evaluate.runs={2024: ~/a.txt}", "evaluate.runs", {"2024": Path.home() / "a.txt"}),
        ("sources.locale=no", "sources.locale", "no"),
        ("sources.locale=null", "sources.locale", None),
        ("sources.locale=", "sources.locale", None),
        ("sources.delimiter='|'", "sources.delimiter", "|"),
        ("sources.delimiter=;", "sources.delimiter", ";"),
        ("curate.banned=[1.10, on]", "curate.banned", ["1.10", "on"]),
        ("curate.only_helpful=true", "curate.only_helpful", True),
        ("curate.test_share=null", "curate.test_share", None),
        ("paths.items=file://localhost/a#b?/items.parquet", "paths.items", Path("/a#b?/items.parquet")),
        ("paths.items=~nosuchuser/x", "paths.items", Path.cwd() / "~nosuchuser/x"),
        ("cold_start.optim.clip=inf", "cold_start.optim.clip", float("inf")),
        ("run_dir='a' x 'b'", "run_dir", Path.cwd() / "'a' x 'b'"),
        ("mine.window=[2, 30]", "mine.window", (2, 30)),
    ],
)
def test_values_are_taken_as_they_stand(tmp_path: Path, override: str, setting: str, value: object) -> None:
    config = load_config(None, [override])
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(config))
    assert load_config(copy, []) == config
    read: object = config
    for key in setting.split("."):
        read = getattr(read, key)
    assert read == value


def test_the_same_holds_for_files_and_for_options(tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text("\ufeffrun_dir: 2026-11-30\nsources: {locale: no, grades: {2: 1}}\nseed: 7\npaths: {gold: ~}\n")
    config = load_config(file, [], {"model": "shop #2", "items": "file:///tmp/items"})
    assert (config.run_dir, config.sources.locale) == (Path.cwd() / "2026-11-30", "no")
    assert (config.sources.grades, config.seed, config.path("gold")) == ({"2": 1}, 7, config.default_path("gold"))
    assert (config.path("model"), config.path("items")) == (Path.cwd() / "shop #2", Path("/tmp/items"))


@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1))
def test_any_text_is_a_value(text: str) -> None:
    assume(text not in ("null", "~") and text[0] not in "'\"~")
    assert load_config(None, [f"sources.folder={text}"]).sources.folder == text


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
