"""Write docs/configuration.md from the settings' types, defaults and documentation strings.

python scripts/configuration.py
"""

import inspect
import json
import re
import types
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeGuard, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lrem.config import DEFAULT_PATHS, Config, PathsConfig

PAGE = Path(__file__).parent.parent / "docs/configuration.md"
WORDS = {int: "whole number", float: "number", str: "text", Path: "path", bool: "`true`, `false`", type(None): "`null`"}
INTRODUCTION = """\
# Configuration

    lrem cold-start --config configs/demo.yaml seed=7 cold_start.optim.lr=1e-3
    lrem cold-start --config configs/demo.yaml --dry-run    # print the resolved settings, run nothing

Each run has one YAML file. Overrides follow it on the command line as `dotted.key=value`.
The value is taken as it stands, also behind a `#`; lists and mappings are YAML: `curate.banned=[knife, gun]`.
Settings that are not given have their defaults. An unknown setting or an invalid value stops the command before it
starts; the message names the nearest known setting. Start from a file in `configs/`.

"Paper" means *Large Reasoning Embedding Models* (arXiv 2510.14321). `null` means that nothing is set.

`python scripts/configuration.py` generates this page from the classes in `lrem/config/`. Do not edit it by hand.
"""


class Setting(NamedTuple):
    """One row of the page."""

    path: str
    kind: str
    default: str
    meaning: str


def page() -> str:
    """Return the page as Markdown: settings outside any section first, then one table per section."""
    parts = [INTRODUCTION, "## The run", _table(_own(Config, ""))]
    for path, section in _sections(Config, ""):
        if rows := _own(section, f"{path}."):
            heading = f"{'##' if '.' not in path else '###'} `{path}`"
            parts += [heading, _markdown(inspect.getdoc(section) or ""), _table(rows)]
    return "\n".join(f"{part.strip()}\n" for part in parts)


def settings() -> list[Setting]:
    """Return every setting of the tree.

    >>> next(setting for setting in settings() if setting.path == "serve.max_requests")[:3]
    ('serve.max_requests', 'whole number ≥ 1', '`256`')
    """
    inner = (_own(section, f"{path}.") for path, section in _sections(Config, ""))
    return [*_own(Config, ""), *chain.from_iterable(inner)]


def _own(section: type[BaseModel], prefix: str) -> list[Setting]:
    """Return the settings of one section, without those of its sub-sections."""
    return [
        Setting(prefix + name, _kind(field), _default(section, name, field), _markdown(field.description or ""))
        for name, field in section.model_fields.items()
        if not _is_section(field.annotation)
    ]


def _sections(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in section.model_fields.items():
        if _is_section(inner := field.annotation):
            yield prefix + name, inner
            yield from _sections(inner, f"{prefix}{name}.")


def _is_section(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _kind(field: FieldInfo) -> str:
    return _bounded(field.annotation, tuple(field.metadata))


def in_words(kind: Any) -> str:
    """Return a type in plain words.

    >>> from pydantic import Field
    >>> in_words(Annotated[int, Field(ge=1, le=64)])
    'whole number, 1 ≤ … ≤ 64'
    >>> in_words(Annotated[float | None, Field(gt=0)])
    'number > 0, or `null`'
    >>> in_words(list[Literal["mlflow", "wandb"]])
    'list, each: `mlflow`, `wandb`'
    >>> in_words(dict[str, int])
    'map of names, each to: whole number'
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _bounded(inner[0], inner[1:])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin in (Union, types.UnionType):
        return _joined([in_words(one) for one in inner])
    if origin is list:
        return f"list, each: {in_words(inner[0])}"
    if origin is tuple:
        return f"list of {len(inner)}, each: {in_words(inner[0])}"
    if origin is dict:
        return f"map of names, each to: {in_words(inner[1])}"
    return WORDS[kind]


def _joined(words: list[str]) -> str:
    *first, last = words
    return f"{' or '.join(first)}, or {last}" if last == WORDS[type(None)] else " or ".join(words)


def _bounded(kind: Any, metadata: tuple[Any, ...]) -> str:
    inner = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType) and type(None) in inner:  # the bounds do not apply to null
        rest = [_bounded(one, metadata) for one in inner if one is not type(None)]
        return _joined([*rest, WORDS[type(None)]])
    marks = [one for entry in metadata for one in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]
    low = next((f"{m.ge} ≤" if isinstance(m, Ge) else f"{m.gt} <" for m in marks if isinstance(m, Ge | Gt)), "")
    high = next((f"≤ {m.le}" if isinstance(m, Le) else f"< {m.lt}" for m in marks if isinstance(m, Le | Lt)), "")
    if low and high:
        return f"{in_words(kind)}, {low} … {high}"
    if low:
        bound, _, sign = low.partition(" ")
        return f"{in_words(kind)} {'≥' if sign == '≤' else '>'} {bound}"
    return f"{in_words(kind)} {high}".strip()


def _default(section: type[BaseModel], name: str, field: FieldInfo) -> str:
    if section is PathsConfig:
        return f"`{DEFAULT_PATHS[name]}` in `run_dir`"
    value = field.get_default(call_default_factory=True)
    return f"`{value if isinstance(value, str | Path) else json.dumps(value, ensure_ascii=False)}`"


def _markdown(text: str) -> str:
    """Escape text for a Markdown table, outside of code; Python's None becomes YAML's null.

    >>> _markdown("None: a | b, <emb> and `<emb>`")
    '`null`: a \\\\| b, &lt;emb> and `<emb>`'
    """
    parts = " ".join(re.sub(r"\bNone\b", "`null`", text).replace("|", "\\|").split()).split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)


def _table(rows: list[Setting]) -> str:
    lines = [f"| `{row.path}` | {row.kind} | {row.default} | {row.meaning} |" for row in rows]
    return "\n".join(["| setting | type | default | meaning |", "| --- | --- | --- | --- |", *lines])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
