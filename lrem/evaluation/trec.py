"""Runs and judgements as files in TREC's formats, which trec_eval, pyserini, ranx and ir-measures read."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from lrem.data.files import atomic_file
from lrem.errors import DataError
from lrem.evaluation.metrics import Qrels, Run

LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).tiny)  # the smallest positive normal number
RUN_COLUMNS = ("query_id", "Q0", "item_id", "rank", "score", "tag")
QRELS_COLUMNS = ("query_id", "0", "item_id", "grade")

Number = TypeVar("Number", int, float)
Value = TypeVar("Value")


def write_run(run: Run, path: Path, tag: str) -> Path:
    """Write lines of `query_id Q0 item_id rank score tag`, with ranks from 1, atomically; returns `path`.

    trec_eval ignores the rank, sorts by the score as float32, and breaks ties by id. Therefore the written scores
    decrease strictly, as float32, in the order of the run: a score below its predecessor is written unchanged, any
    other is replaced by the next float32 below its predecessor. A query without results has no line.

    Raises:
        DataError: an id or the tag is empty or contains whitespace, an item appears twice for a query, or a score is
            not a finite float32.
    """
    _check_name(tag, "tag", path)
    with atomic_file(path) as part, part.open("w", encoding="utf-8", newline="\n") as out:
        for query_id, hits in run.items():
            _check_ids(query_id, [item_id for item_id, _ in hits], path)
            scores = _strictly_decreasing([score for _, score in hits], f"{path}: query '{query_id}'")
            for rank, ((item_id, _), score) in enumerate(zip(hits, scores, strict=True), 1):
                out.write(f"{query_id} Q0 {item_id} {rank} {score!r} {tag}\n")
    return path


def read_run(path: Path) -> dict[str, list[tuple[str, float]]]:
    """Read a run of any program: query_id → (item_id, score), best first, equal scores by rank; skips blank lines.

    Raises:
        DataError: the file is missing or not UTF-8, a line does not have six columns, a rank is not an integer, a
            score is not a finite number, or an item appears twice for a query.
    """
    rows: dict[str, dict[str, tuple[float, int]]] = {}
    for location, (query_id, _, item_id, rank, score, _) in _lines(path, RUN_COLUMNS):
        value = _number(float, score, "score", location)
        if not math.isfinite(value):
            raise DataError(f"{location}: score '{score}' is not finite: write a finite number")
        _add(rows.setdefault(query_id, {}), item_id, (-value, _number(int, rank, "rank", location)), query_id, location)
    return {
        query_id: [(item_id, -negated) for item_id, (negated, _) in sorted(hits.items(), key=lambda row: row[1])]
        for query_id, hits in rows.items()
    }


def write_qrels(qrels: Qrels, path: Path) -> Path:
    """Write lines of `query_id 0 item_id grade`, atomically; returns `path`. A query without judgements has no line.

    Raises:
        DataError: an id is empty or contains whitespace.
    """
    with atomic_file(path) as part, part.open("w", encoding="utf-8", newline="\n") as out:
        for query_id, grades in qrels.items():
            _check_ids(query_id, list(grades), path)
            out.writelines(f"{query_id} 0 {item_id} {int(grade)}\n" for item_id, grade in grades.items())
    return path


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Read judgements: query_id → item_id → grade, in the file's order; skips blank lines.

    Raises:
        DataError: the file is missing or not UTF-8, a line does not have four columns, a grade is not an integer, or
            an item is judged twice for a query.
    """
    qrels: dict[str, dict[str, int]] = {}
    for location, (query_id, _, item_id, grade) in _lines(path, QRELS_COLUMNS):
        _add(qrels.setdefault(query_id, {}), item_id, _number(int, grade, "grade", location), query_id, location)
    return qrels


def _strictly_decreasing(scores: Sequence[float], location: str) -> list[float]:
    """Lower each score that is not below its predecessor as float32, and leave the others unchanged.

    A lowered score is never subnormal, because some programs read subnormal numbers as 0.

    >>> _strictly_decreasing([2.0, 1.0, 1.0, 0.5], "run")
    [2.0, 1.0, 0.9999999403953552, 0.5]
    """
    lowered: list[float] = []
    above = math.inf
    for score in map(float, scores):
        if not abs(score) <= LARGEST:  # also catches NaN
            raise DataError(f"{location} has the score {score}, which is not a finite float32: scale or drop it")
        if float(np.float32(score)) >= above:
            score = min(float(np.nextafter(np.float32(above), np.float32(-np.inf))), above - SMALLEST)
        above = float(np.float32(score))
        lowered.append(score)
    return lowered


def _check_ids(query_id: str, item_ids: Sequence[str], path: Path) -> None:
    _check_name(query_id, "query_id", path)
    seen: set[str] = set()
    for item_id in item_ids:
        _check_name(item_id, "item_id", path)
        if item_id in seen:
            raise DataError(
                f"{path}: item '{item_id}' appears twice for query '{query_id}': keep the one with the best rank"
            )
        seen.add(item_id)


def _check_name(name: str, column: str, path: Path) -> None:
    if name.split() != [name]:
        raise DataError(
            f"{path}: {column} '{name}' is empty or contains whitespace, which separates TREC's columns: "
            "replace it, e.g. by '_', in the catalogue, the queries and the judgements"
        )


def _lines(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield `file:line` and the values of each line that is not blank."""
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                values = line.split()
                if values and len(values) != len(columns):
                    counts = f"{len(values)} columns, not {len(columns)}"
                    raise DataError(f"{path}:{number} has {counts}: write '{' '.join(columns)}'")
                if values:
                    yield f"{path}:{number}", values
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: run the stage that writes it, or pass another path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}): convert it, or unpack it if it is compressed") from error


def _number(kind: type[Number], text: str, column: str, location: str) -> Number:
    try:
        return kind(text)
    except ValueError as error:
        expected = "an integer" if kind is int else "a number"
        raise DataError(
            f"{location}: {column} '{text}' is not {expected}: correct it, or the order of the columns"
        ) from error


def _add(hits: dict[str, Value], item_id: str, value: Value, query_id: str, location: str) -> None:
    if item_id in hits:
        raise DataError(f"{location}: item '{item_id}' appears twice for query '{query_id}': keep one of the lines")
    hits[item_id] = value
