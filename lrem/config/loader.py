"""Read the configuration: YAML plus dotted overrides; an unknown key is an error."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from lrem.config.cluster import PlacementConfig, RayConfig
from lrem.config.curation import BootstrapConfig, CurateConfig, SourcesConfig
from lrem.config.evaluation import EvaluateConfig
from lrem.config.model import ModelConfig
from lrem.config.paths import DEFAULT_PATHS, PathsConfig, home
from lrem.config.section import Section
from lrem.config.serving import EmbedConfig, IndexConfig, ServeConfig
from lrem.config.training import ColdStartConfig, DirectConfig, MineConfig, ReinforceConfig, RolloutConfig
from lrem.config.world import WorldConfig
from lrem.errors import ConfigError


class Config(Section):
    """All settings of a run."""

    seed: int = Field(0, ge=0)
    """Seed of everything random."""
    run_dir: Path = Path("runs/demo")
    """Folder of everything a run writes."""
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
        """Put all paths that are not given under `run_dir`, which becomes absolute."""
        run_dir, given = tree.get("run_dir") or "runs/demo", tree.get("paths") or {}
        if not isinstance(run_dir, str | Path):
            raise ValueError(f"run_dir={run_dir} must be one path")
        if not isinstance(given, dict):
            raise ValueError(f"paths={given} must be a mapping of names to paths")
        run_dir = home(run_dir).absolute()
        paths = {name: run_dir / path for name, path in DEFAULT_PATHS.items()}
        return tree | {"run_dir": run_dir, "paths": paths | {key: value for key, value in given.items() if value}}

    def path(self, name: str) -> Path:
        """Return the absolute path of an artefact, a key of `paths`."""
        return Path(getattr(self.paths, name))

    def default_path(self, name: str) -> Path:
        """Return the path that an artefact has if none is configured."""
        return self.run_dir / DEFAULT_PATHS[name]

    def uri(self, name: str) -> str:
        """Return the location of an artefact as a string: an absolute path, or the configured URI."""
        return str(getattr(self.paths, name))


class _TextLoader(yaml.SafeLoader):
    """YAML whose scalars are text or null: the setting decides the type, so that `No`, 2026 and 1.10 can be names."""


_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

_TextLoader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\.(inf|nan)", re.I), list("-+."))


def load_config(file: Path | None, overrides: list[str], paths: Mapping[str, Path | str] | None = None) -> Config:
    """Read YAML, then apply `dotted.key=value` overrides.

    The value of a list, a mapping or a section is YAML. Any other is taken as it stands: `null` or nothing for None,
    and a value in quotes loses them.

    Args:
        file: YAML; None for the defaults.
        overrides: settings to change.
        paths: values for keys of `paths`, taken as they stand.

    Raises:
        ConfigError: the file is missing or is not YAML, a key is unknown, or a value is invalid.
    """
    tree = _read(home(file)) if file else {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"'{override}' is not an override: write dotted.key=value, such as seed=7")
        keys = key.split(".")
        _assign(tree, keys, _value(keys, value, f"the value of '{override}'"), override)
    for name, path in (paths or {}).items():
        _assign(tree, ["paths", name], path, f"--{name}={path}")
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(dict(problem)) for problem in error.errors())) from error


def to_yaml(config: Config) -> str:
    """Return the resolved settings as YAML that `load_config` can read."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def public(value: Any) -> Any:
    """Return settings that are safe to print: URLs without user, password and parameters.

    >>> public({"url": "https://me:secret@shop.example/v1?key=1", "k": 3})
    {'url': 'https://shop.example/v1', 'k': 3}
    """
    if isinstance(value, dict):
        return {key: public(one) for key, one in value.items()}
    if isinstance(value, list):
        return [public(one) for one in value]
    return re.sub(r"(://)[^/@\s]*@|\?.*$", r"\1", value) if isinstance(value, str) and "://" in value else value


def known_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Return every dotted key of the tree."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if _is_section(field.annotation):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise ConfigError(f"no configuration file {file}: see configs/ for examples")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {file} cannot be read ({error}): pass a YAML file in UTF-8") from error
    tree = _parse(text, str(file)) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} must contain a mapping of settings, not a {type(tree).__name__}")
    return tree


def _value(keys: list[str], text: str, what: str) -> Any:
    """Return the value of an override: YAML if the setting is a collection, otherwise the text itself."""
    annotation: Any = Config
    for key in keys:
        if _is_section(annotation) and key in annotation.model_fields:
            annotation = annotation.model_fields[key].annotation
        else:
            annotation = get_args(annotation)[1] if get_origin(annotation) is dict else dict
    quoted = len(text) > 1 and text[0] in "'\"" and text.find(text[0], 1) == len(text) - 1
    return _parse(text, what) if _is_collection(annotation) or quoted or text in ("", "null") else text


def _is_collection(annotation: Any) -> bool:
    """Return True if a setting of this type may be a list, a mapping or a section."""
    is_one = {annotation if isinstance(annotation, type) else None, get_origin(annotation)} & {dict, list, tuple}
    return bool(is_one) or _is_section(annotation) or any(map(_is_collection, get_args(annotation)))


def _is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _parse(text: str, what: str) -> Any:
    try:
        return yaml.load(text, _TextLoader)
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
