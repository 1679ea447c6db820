"""The house rules: which room may import which, `lrem` without engines, short files and functions."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
ENGINES = {"ray", "vllm", "deepspeed", "ray_apps"}

# Room: the rooms of lrem and the rooms of ray_apps that it may import; lowest room first. A room is a package or a
# module directly below lrem/ or ray_apps/. Rooms only import rooms that are listed before them, so there are no cycles.
# Add an arrow only if neither moving the function to a lower room nor passing its result as an argument makes sense.
ROOMS = {
    "lrem.errors": ("", ""),
    "lrem.config": ("errors", ""),
    "lrem.data": ("errors", ""),
    "lrem.modeling": ("errors config data", ""),
    "lrem.index": ("errors data", ""),
    "lrem.training": ("errors config data modeling", ""),
    "lrem.retrieval": ("errors data modeling index", ""),
    "lrem.world": ("data", ""),
    "lrem.curation": ("errors config data retrieval", ""),
    "lrem.evaluation": ("errors config data modeling", ""),
    "lrem.capacity": ("errors config index", ""),
    "lrem": ("errors config modeling index", ""),  # the public API
    "ray_apps.cluster": ("errors config", ""),
    "ray_apps.llm": ("errors config curation", "cluster"),
    "ray_apps.rollouts": ("errors config modeling training", "cluster"),
    "ray_apps.indexing": ("errors config data modeling index retrieval curation", "cluster"),
    "ray_apps.curation": ("errors config data retrieval curation", "cluster llm indexing"),
    "ray_apps.training": ("errors config data modeling training evaluation", "cluster rollouts"),
    "ray_apps.serving": ("lrem errors config data modeling index training", "cluster rollouts"),
    "ray_apps.evaluation": (
        "errors config data modeling index retrieval curation evaluation",
        "cluster llm rollouts indexing serving",
    ),
    "ray_apps.local_stages": ("config data index world curation", "indexing"),
    "ray_apps.pipeline": ("config data", "cluster indexing curation training evaluation local_stages"),
    "ray_apps.demo": ("config data modeling evaluation", "cluster serving pipeline"),
    "ray_apps.cli": (
        "errors config data modeling evaluation capacity",
        "cluster indexing curation training serving pipeline demo",
    ),
}
SOURCES = sorted([*ROOT.glob("lrem/**/*.py"), *ROOT.glob("ray_apps/**/*.py")])
FILES = sorted([*SOURCES, *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")])


class Import(NamedTuple):
    """One import, or one "module:function" string."""

    module: str
    line: int


def imports(tree: ast.AST) -> Iterator[Import]:
    """Yield what a module imports anywhere, also in functions and type-checking blocks.

    >>> [module for module, _ in imports(ast.parse("import a.b; from c.d import e; from lrem import data"))]
    ['a.b', 'c.d', 'lrem.data']
    >>> [module for module, _ in imports(ast.parse("stage = 'ray_apps.training.reinforce:run'"))]
    ['ray_apps.training.reinforce']
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module in ("lrem", "ray_apps"):
            yield from (Import(f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield Import(node.module, node.lineno)
        elif isinstance(node, ast.Constant) and re.fullmatch(r"(lrem|ray_apps)(\.\w+)+:\w+", str(node.value)):
            yield Import(str(node.value).partition(":")[0], node.lineno)


def room_of(module: str) -> str | None:
    """Return the room of a module of ours; names that `lrem/__init__.py` defines itself belong to the room `lrem`.

    >>> room_of("lrem.index.ann"), room_of("ray_apps.demo"), room_of("lrem.__version__"), room_of("numpy")
    ('lrem.index', 'ray_apps.demo', 'lrem', None)
    """
    top, *rest = module.split(".")
    if top not in ("lrem", "ray_apps"):
        return None
    name = rest[0] if rest else ""
    is_room = (ROOT / top / name).is_dir() or (ROOT / top / f"{name}.py").exists()
    return f"{top}.{name}" if name and is_room and name != "__init__" else top


def allowed(room: str) -> set[str]:
    """Return the full names of the rooms that a room may import.

    >>> sorted(allowed("ray_apps.cluster")), sorted(allowed("lrem.data"))
    (['lrem.config', 'lrem.errors'], ['lrem.errors'])
    """
    return {
        package if name == package else f"{package}.{name}"
        for package, names in zip(("lrem", "ray_apps"), ROOMS[room], strict=True)
        for name in names.split()
    }


def arrows() -> Iterator[tuple[str, str, str]]:
    """Yield room, imported room and place of every import between rooms."""
    for path in SOURCES:
        room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for module, line in imports(ast.parse(path.read_text())):
            target = room_of(module)
            if room and target not in (None, room, "ray_apps"):
                yield room, str(target), f"{path.relative_to(ROOT)}:{line}"


def test_rooms_import_only_what_the_table_allows() -> None:
    problems = []
    for room, target, place in arrows():
        if room in ROOMS and target not in allowed(room):
            shared = sorted(allowed(room) & allowed(target)) if target in ROOMS else []
            problems.append(
                f"{place} imports {target}, which {room} may not import. Move the code that {room} needs to a room "
                f"that both may import ({', '.join(shared) or 'a new lower room'}), or pass its result as an argument."
            )
    assert not problems, "\n".join(problems)


def test_the_table_has_every_room_and_no_arrow_that_is_not_used() -> None:
    rooms = {room_of(".".join(path.relative_to(ROOT).with_suffix("").parts)) for path in SOURCES}
    assert rooms - {"ray_apps"} == {*ROOMS}, "add the new room to ROOMS, or remove the old one"
    used = {(room, target) for room, target, _ in arrows()}
    unused = [f"{room} → {target}" for room in ROOMS for target in allowed(room) if (room, target) not in used]
    assert not unused, "remove these arrows from ROOMS: nothing imports along them"


def test_rooms_import_downwards_only() -> None:
    order = list(ROOMS)
    for room in ROOMS:
        above = [target for target in allowed(room) if order.index(target) >= order.index(room)]
        assert not above, f"{room} may not import {above}: they are above it in ROOMS"


def test_functions_named_in_strings_exist() -> None:
    """As "ray_apps.training.reinforce:run" of the registry of stages."""
    for path in SOURCES:
        for module, name in re.findall(r'"((?:lrem|ray_apps)(?:\.\w+)+):(\w+)"', path.read_text()):
            tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
            names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
            assigned = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
            names |= {target.id for target in assigned if isinstance(target, ast.Name)}
            assert name in names, f"{path.relative_to(ROOT)} names {module}:{name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    lines = len(text.splitlines())
    assert lines <= 350, "split the file by subject"
    long = {name: length for name, length in functions(ast.parse(text)) if length > 60}
    assert not long, "split these functions"


@pytest.mark.parametrize("path", sorted(ROOT.glob("lrem/**/*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_lrem_imports_no_engine(path: Path) -> None:
    engines = {module.split(".")[0] for module, _ in imports(ast.parse(path.read_text()))} & ENGINES
    assert not engines, "lrem/ has to run without them: move this to ray_apps/"


def test_most_files_and_functions_are_much_shorter() -> None:
    files = [len(path.read_text().splitlines()) for path in SOURCES if path.name != "__init__.py"]
    lengths = [lines for path in SOURCES for _, lines in functions(ast.parse(path.read_text()))]
    assert median(files) <= 120
    assert quantiles(lengths, n=10)[-1] <= 25


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield name and number of lines of every function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or 0) - node.lineno + 1
