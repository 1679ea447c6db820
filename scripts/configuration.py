"""Writes docs/configuration.md from the settings' own types, defaults and comments.

    python scripts/configuration.py

What a setting means stands as a comment in the sources, behind the field or above it; a field without one takes its
base class's. Knows pydantic's fields and Python's tokens; does not know what any setting does.
"""

import ast
import inspect
import io
import json
import re
import tokenize
import types
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeGuard, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lrem.config.loader import DEFAULT_PATHS, Config, PathsConfig

PAGE = Path(__file__).parent.parent / "docs/configuration.md"
WORDS = {int: "whole number", float: "number", str: "text", Path: "path", bool: "`true`, `false`", type(None): "`null`"}
INTRODUCTION = """\
# Configuration

    lrem cold-start --config configs/demo.yaml seed=7 cold_start.optim.lr=1e-3
    lrem cold-start --config configs/demo.yaml --dry-run    # print it resolved, run nothing

One YAML file a run; any setting can be overridden behind it by its dotted path, and the value is read as YAML. What is
not given has the default. An unknown key ends the command before it starts, with the nearest known one, and so does a
value that does not fit its type. The files in `configs/` are to start from.

"Paper" is *Large Reasoning Embedding Models* (arXiv 2510.14321). `null` means that nothing is given.

This page is made from the types in `lrem/`, by `python scripts/configuration.py`; do not edit it.
"""


class Setting(NamedTuple):
    """A row of the page."""

    path: str
    kind: str
    default: str
    meaning: str  # empty where the sources say nothing


def page() -> str:
    """The whole page, as Markdown: first what stands in no section, then a table for each section."""
    parts = [INTRODUCTION, "## The run", _table(_own(Config, ""))]
    for path, section in _sections(Config, ""):
        heading, said = f"{'##' if '.' not in path else '###'} `{path}`", _plain(inspect.getdoc(section) or "")
        if rows := _own(section, f"{path}."):
            parts += [heading, said, _table(rows)]
    return "\n".join(f"{part.strip()}\n" for part in parts)


def settings() -> list[Setting]:
    """Every setting of the tree.

    >>> next(setting for setting in settings() if setting.path == "serve.max_requests")[:3]
    ('serve.max_requests', 'whole number ≥ 1', '`256`')
    """
    inner = (_own(section, f"{path}.") for path, section in _sections(Config, ""))
    return [*_own(Config, ""), *chain.from_iterable(inner)]


def _own(section: type[BaseModel], prefix: str) -> list[Setting]:
    """The settings of one section, without those of sections within it."""
    return [
        Setting(prefix + name, _kind(field), _default(section, name, field), meaning(section, name))
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
    """A type in plain words.

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
    if get_origin(kind) in (Union, types.UnionType) and type(None) in inner:  # a bound is not one of null's
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


def meaning(section: type[BaseModel], name: str) -> str:
    """What the sources say of a field: the comment of the nearest class that has one, else nothing."""
    for owner in section.__mro__:
        if owner is BaseModel:
            break
        if comment := _comments(owner).get(name):
            return _plain(comment)
    return ""


@cache
def _comments(owner: type) -> dict[str, str]:
    """The fields of one class with their comments."""
    return comments_of(inspect.getsource(owner))


def comments_of(source: str) -> dict[str, str]:
    """Fields of the first class of `source` → their comments: those behind the field, else the lines just above it.

    >>> comments_of('''
    ... class Some:
    ...     # how many,
    ...     # at most
    ...     count: int = 3
    ...     rate: float = (
    ...         0.5  # of all
    ...     )
    ...     name: str = "a"  # type: ignore[assignment]  # as it is shown
    ...     size: int
    ... ''')
    {'count': 'how many, at most', 'rate': 'of all', 'name': 'as it is shown'}
    """
    lines, comments = source.splitlines(), {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = re.sub(r"^#\s*(type: ignore\S*\s*#?\s*)?", "", token.string)
    found = {}
    body = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)).body
    for node in body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        above = node.lineno - 1
        while above in comments and lines[above - 1].lstrip().startswith("#"):
            above -= 1
        behind = [comments.get(line, "") for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)]
        said = [text for text in behind if text] or [comments[line] for line in range(above + 1, node.lineno)]
        if said:
            found[node.target.id] = " ".join(said)
    return found


def _plain(text: str) -> str:
    """For the page: Python's None is YAML's null, and what Markdown would take for its own is escaped outside of code.

    >>> _plain("None: a | b, <emb> and `<emb>`")
    '`null`: a \\\\| b, &lt;emb> and `<emb>`'
    """
    parts = re.sub(r"\bNone\b", "`null`", text).replace("|", "\\|").split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)


def _table(rows: list[Setting]) -> str:
    lines = [f"| `{row.path}` | {row.kind} | {row.default} | {row.meaning} |" for row in rows]
    return "\n".join(["| setting | type | default | meaning |", "| --- | --- | --- | --- |", *lines])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
