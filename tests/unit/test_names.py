"""One class name, one class; and no public name that is a bare participle or a riddle."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("lrem/**/*.py"), *ROOT.glob("ray_apps/**/*.py")])
WORDS = """
asked asker away been called come dealt desk done door drawn ended filled found given gone got gotten held
here kept known laid left lost made meant mine more needs now own owned reckon reckoned refused said see
seen shown some such taken taught tell thing thought told took tried wanted went written wrote
"""
RIDDLES = {*re.findall(r"\w+", WORDS)}


class Definition(NamedTuple):
    """A public class or function of a module, or a public method."""

    name: str
    place: str
    is_class: bool


def definitions() -> Iterator[Definition]:
    """Yield all public classes, functions and methods of lrem and ray_apps."""
    for path in SOURCES:
        nodes = [*ast.parse(path.read_text()).body]
        for node in nodes:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                nodes += [method for method in node.body if not isinstance(method, ast.ClassDef)]
            named = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if named and not node.name.startswith("_"):
                yield Definition(node.name, f"{path.relative_to(ROOT)}:{node.lineno}", isinstance(node, ast.ClassDef))


def test_a_class_name_names_one_class() -> None:
    places = defaultdict(list)
    for name, place, is_class in definitions():
        if is_class:
            places[name].append(place)
    repeated = {name: where for name, where in places.items() if len(where) > 1}
    assert not repeated, "give each the name of what it is, such as SearchItem or GrpoBatch"


def test_public_names_say_what_they_do() -> None:
    """A name such as `asked` or `told` says neither what it returns nor what it does."""
    riddles = [f"{place}: {name}" for name, place, _ in definitions() if name.lower() in RIDDLES]
    assert not riddles, "use the term of the field (CONTRIBUTING.md, Glossary)"
