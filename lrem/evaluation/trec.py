"""Runs and judgements as files in TREC's formats, which trec_eval, pyserini, ranx and ir-measures read.

Knows the two formats; does not know what is measured.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrem.data.files import atomic_file
from lrem.errors import DataError
from lrem.evaluation.metrics import Qrels, Run

LARGEST, SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)  # tiny: the least normal one
RUN_COLUMNS = ("query_id", "Q0", "item_id", "rank", "score", "tag")
QRELS_COLUMNS = ("query_id", "0", "item_id", "grade")


def write_run(run: Run, path: Path, tag: str) -> Path:
    """Write `query_id Q0 item_id rank score tag`, ranks from 1, atomically; returns `path`.

    trec_eval ignores the rank, sorts by the score as a float32, and takes equal scores by id. So the written scores
    fall strictly, as float32, in the order of the run: a score that is below the one before it is written unchanged,
    and one that is not is written as the next float32 below it. A query without results has no line.

    Raises:
        DataError: an id or the tag is empty or holds whitespace, an item appears twice for a query, or a score is
            not finite as float32.
    """
    _check_name(tag, "tag", path)
    with atomic_file(path) as part, part.open("w", encoding="utf-8", newline="\n") as out:
        for query_id, hits in run.items():
            _check_ids(query_id, [item_id for item_id, _ in hits], path)
            scores = _falling([score for _, score in hits], f"{path}: query '{query_id}'")
            for rank, ((item_id, _), score) in enumerate(zip(hits, scores, strict=True), 1):
                out.write(f"{query_id} Q0 {item_id} {rank} {score!r} {tag}\n")
    return path


def read_run(path: Path) -> dict[str, list[tuple[str, float]]]:
    """Read a run, whoever wrote it: by query, best first, equal scores by rank. Blank lines count for nothing.

    Raises:
        DataError: the file is missing or not UTF-8, a line has not six columns, a rank is no whole number, a score
            is no finite number, or an item appears twice for a query.
    """
    rows: dict[str, dict[str, tuple[float, int]]] = {}
    for place, (query_id, _, item_id, rank, score, _) in _lines(path, RUN_COLUMNS):
        value = _number(float, score, "score", place)
        if not math.isfinite(value):
            raise DataError(f"{place}: score '{score}' is not finite: write a number")
        _add(rows.setdefault(query_id, {}), item_id, (-value, _number(int, rank, "rank", place)), query_id, place)
    return {
        query_id: [(item_id, -fallen) for item_id, (fallen, _) in sorted(found.items(), key=lambda row: row[1])]
        for query_id, found in rows.items()
    }


def write_qrels(qrels: Qrels, path: Path) -> Path:
    """Write `query_id 0 item_id grade`, atomically; returns `path`. A query without judgements has no line.

    Raises:
        DataError: an id is empty or holds whitespace.
    """
    with atomic_file(path) as part, part.open("w", encoding="utf-8", newline="\n") as out:
        for query_id, grades in qrels.items():
            _check_ids(query_id, list(grades), path)
            out.writelines(f"{query_id} 0 {item_id} {int(grade)}\n" for item_id, grade in grades.items())
    return path


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Read judgements: query_id → item_id → grade, in the file's order. Blank lines count for nothing.

    Raises:
        DataError: the file is missing or not UTF-8, a line has not four columns, a grade is no whole number, or an
            item is judged twice for a query.
    """
    qrels: dict[str, dict[str, int]] = {}
    for place, (query_id, _, item_id, grade) in _lines(path, QRELS_COLUMNS):
        _add(qrels.setdefault(query_id, {}), item_id, _number(int, grade, "grade", place), query_id, place)
    return qrels


def _falling(scores: Sequence[float], place: str) -> list[float]:
    """The scores, those lowered that are not below the one before them as float32.

    The step down is never a denormal: some programs take those for 0.

    >>> _falling([2.0, 1.0, 1.0, 0.5], "run")
    [2.0, 1.0, 0.9999999403953552, 0.5]
    """
    fallen: list[float] = []
    above = math.inf
    for score in map(float, scores):
        if not abs(score) <= LARGEST:  # nor is nan
            raise DataError(f"{place} has the score {score}, which is no finite float32: scale or drop it")
        if float(np.float32(score)) >= above:
            score = min(float(np.nextafter(np.float32(above), np.float32(-np.inf))), above - SMALLEST)
        above = float(np.float32(score))
        fallen.append(score)
    return fallen


def _check_ids(query_id: str, item_ids: Sequence[str], path: Path) -> None:
    _check_name(query_id, "query_id", path)
    seen: set[str] = set()
    for item_id in item_ids:
        _check_name(item_id, "item_id", path)
        if item_id in seen:
            raise DataError(f"{path}: item '{item_id}' appears twice for query '{query_id}': keep its best rank")
        seen.add(item_id)


def _check_name(name: str, column: str, path: Path) -> None:
    if name.split() != [name]:
        raise DataError(
            f"{path}: {column} '{name}' is empty or holds whitespace, which parts TREC's columns: "
            "replace it, as by '_', in the catalogue, the queries and the judgements alike"
        )


def _lines(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """`file:line` and the values of each line that is not blank."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                values = line.split()
                if values and len(values) != len(columns):
                    wanted = " ".join(columns)
                    raise DataError(f"{path}:{number} has {len(values)} columns, not {len(columns)}: write '{wanted}'")
                if values:
                    yield f"{path}:{number}", values
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: run the stage that writes it, or pass another path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}): convert it, or unpack it if it is compressed") from error


def _number(kind: type[Any], text: str, column: str, place: str) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        wanted = "whole number" if kind is int else "number"
        raise DataError(
            f"{place}: {column} '{text}' is no {wanted}: write one, or mend the order of columns"
        ) from error


def _add(found: dict[str, Any], item_id: str, value: Any, query_id: str, place: str) -> None:
    if item_id in found:
        raise DataError(f"{place}: item '{item_id}' appears twice for query '{query_id}': keep one of the lines")
    found[item_id] = value
