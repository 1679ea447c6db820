"""One typed tree of settings for every stage: YAML plus dotted overrides; an unknown key is an error.

Knows where settings and artefacts come from; what each setting means stands in lrem.config.settings.
"""

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from lrem.config.cluster import PlacementConfig, RayConfig
from lrem.config.curation import BootstrapConfig, CurateConfig, SourcesConfig
from lrem.config.settings import (
    ColdStartConfig,
    DirectConfig,
    EmbedConfig,
    EvaluateConfig,
    IndexConfig,
    MineConfig,
    ModelConfig,
    ReinforceConfig,
    RolloutConfig,
    Section,
    ServeConfig,
    WorldConfig,
)
from lrem.errors import ConfigError


class PathsConfig(Section):
    """Where each artefact lies; what is not given lies under `run_dir`. Triplets may lie anywhere pyarrow opens."""

    items: Path | None = None
    queries: Path | None = None
    qrels: Path | None = None
    teacher: Path | None = None
    test: Path | None = (
        None  # what curation kept for the test; evaluation asks these, else the queries of the split test
    )
    gold: Path | None = None  # reasonings of test queries by someone who knows, for a probe of evaluation
    triplets: Path | str | None = None  # a file, a folder of files, or a URI as s3://bucket/triplets
    dev: Path | None = None  # triplets of queries kept out of training, to choose checkpoints by
    mined: Path | None = None  # triplets with hard negatives
    rl_pairs: Path | str | None = None
    cold_start: Path | None = None
    direct: Path | None = None
    model: Path | None = None
    vectors: Path | None = None
    index: Path | str | None = (
        None  # the snapshot that serving starts from: a folder, or an address as s3://bucket/name
    )
    live: Path | None = None  # what is served, with everything written to it since; a disk of the index machines


DEFAULT_PATHS = {
    "items": "world/items.parquet",
    "queries": "world/queries.parquet",
    "qrels": "world/qrels.parquet",
    "teacher": "world/teacher.parquet",
    "test": "curated/test.parquet",
    "gold": "world/gold.parquet",
    "triplets": "curated/triplets.parquet",
    "dev": "curated/dev.parquet",
    "mined": "curated/mined.parquet",
    "rl_pairs": "curated/rl_pairs.parquet",
    "cold_start": "cold_start",
    "direct": "direct",
    "model": "model",
    "vectors": "vectors",
    "index": "index",
    "live": "live",
}


class Config(Section):
    """Everything a run is told."""

    seed: int = Field(0, ge=0)
    run_dir: Path = Path("runs/demo")
    paths: PathsConfig = PathsConfig()
    ray: RayConfig = RayConfig()
    placement: PlacementConfig = PlacementConfig()
    world: WorldConfig = WorldConfig()
    sources: SourcesConfig = SourcesConfig()
    bootstrap: BootstrapConfig = BootstrapConfig()
    model: ModelConfig = ModelConfig()
    curate: CurateConfig = CurateConfig()
    cold_start: ColdStartConfig = ColdStartConfig()
    direct: DirectConfig = DirectConfig()
    mine: MineConfig = MineConfig()
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
        given = {key: _located(value) for key, value in (tree.get("paths") or {}).items() if value}
        paths = {name: run_dir / path for name, path in DEFAULT_PATHS.items()} | given
        return tree | {"run_dir": run_dir, "paths": paths}

    def path(self, name: str) -> Path:
        """The resolved path of one artefact, a key of `paths`."""
        return Path(getattr(self.paths, name))

    def default_path(self, name: str) -> Path:
        """Where an artefact lies if no path is given."""
        return self.run_dir / DEFAULT_PATHS[name]

    def uri(self, name: str) -> str:
        """The same as a string: an absolute path, or a URI as it was given."""
        return str(getattr(self.paths, name))


def _located(value: str | Path) -> str | Path:
    return value if "://" in str(value) else Path(value).absolute()


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


def public(value: Any) -> Any:
    """Settings to be shown: addresses without user, password and parameters.

    >>> public({"url": "https://me:secret@shop.example/v1?key=1", "k": 3})
    {'url': 'https://shop.example/v1', 'k': 3}
    """
    if isinstance(value, dict):
        return {key: public(one) for key, one in value.items()}
    if isinstance(value, list):
        return [public(one) for one in value]
    return re.sub(r"(://)[^/@\s]*@|\?.*$", r"\1", value) if isinstance(value, str) and "://" in value else value


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
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near:  # another section's key: the last part decides
        last = {name: name.split(".")[-1] for name in reversed(known)}
        leaf = difflib.get_close_matches(key.split(".")[-1], list(last.values()), n=1)
        near = [name for name in known if [last[name]] == leaf][:1]
    return f"unknown setting '{key}'" + (f": did you mean '{near[0]}'?" if near else "")
