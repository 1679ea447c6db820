"""The two floors: lrem/ is science without engines; files and functions stay short enough to read."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGINES = {"ray", "vllm", "deepspeed", "ray_apps"}
SOURCES = sorted([*ROOT.glob("lrem/**/*.py"), *ROOT.glob("ray_apps/**/*.py")])


def imported(tree: ast.AST) -> set[str]:
    """The top-level packages a module imports anywhere, inside functions and type-checking blocks too.

    >>> sorted(imported(ast.parse("import a.b; from c.d import e; from . import f")))
    ['a', 'c']
    """
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def long_functions(tree: ast.AST, limit: int) -> list[str]:
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > limit]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_house_rules(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    if path.is_relative_to(ROOT / "lrem"):
        assert not imported(tree) & ENGINES
    assert len(text.splitlines()) <= 350
    assert not long_functions(tree, limit=60)


def test_both_floors_were_found() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == {"lrem", "ray_apps"}
