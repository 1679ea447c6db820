"""Measures of a run, per query and per slice, through ir-measures. Source: paper, "Evaluation", and trec_eval.

How far a mean can be trusted is the subject of `lrem.evaluation.significance`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import ir_measures
import numpy as np
from ir_measures import AP, RR, Judged, Measure, P, R, Success, nDCG

Run = Mapping[str, Sequence[tuple[str, float]]]  # query_id → (item_id, score), best first, each item once
Qrels = Mapping[str, Mapping[str, int]]  # query_id → item_id → grade
Scores = Mapping[str, Mapping[str, float]]  # query_id → name of the measure → value

HARD = ("question", "alternative", "negative", "knowledge")
DEPTH = 100  # the deepest fixed cut-off; a run should hold max(DEPTH, k, precision_k) items per query
MAX_VALUES = 20  # numbers of a column that slices the queries
SLICED_BY = ("slice", "difficulty")  # columns of the queries, besides their category


def measures(k: int, precision_k: int, relevant_from: int = 1) -> dict[str, Measure]:
    """Return the measures of a report by name; each is a share from 0 to 1.

    `hit_rate` is the paper's HitRate@k: the share of a query's relevant items within the top k, a recall.
    `precision` is Precision@precision_k: relevant items within the top precision_k, divided by precision_k even if
    the query has fewer relevant items. nDCG uses the grades as gains, as trec_eval does, and ignores `relevant_from`;
    for every other measure an item is relevant from that grade upwards. AP reads the whole run.

    >>> [str(measure) for measure in measures(30, 5, relevant_from=2).values()][:3]
    ['R(rel=2)@30', 'P(rel=2)@5', 'nDCG@10']
    """
    return {
        "hit_rate": R(rel=relevant_from) @ k,
        "precision": P(rel=relevant_from) @ precision_k,
        "nDCG@10": nDCG @ 10,
        "RR@10": RR(rel=relevant_from) @ 10,
        f"R@{DEPTH}": R(rel=relevant_from) @ DEPTH,
        f"P@{DEPTH}": P(rel=relevant_from) @ DEPTH,
        "Success@1": Success(rel=relevant_from) @ 1,
        "Success@10": Success(rel=relevant_from) @ 10,
        "AP": AP(rel=relevant_from),
    }


def per_query(run: Run, qrels: Qrels, k: int, precision_k: int, relevant_from: int = 1) -> dict[str, dict[str, float]]:
    """Score a run: query_id → measure name → value, for every query of `qrels`, in the order of `qrels`.

    A query that is missing from the run, or that has no relevant item, scores 0. Items with equal scores keep the
    run's order, whereas trec_eval sorts them by id, descending. Files written by `lrem.evaluation.trec.write_run`
    contain no equal scores, so trec_eval agrees with these values.

    >>> scores = per_query({"q": [("a", 2.0), ("x", 1.0)]}, {"q": {"a": 1, "b": 1}}, 2, 1)
    >>> scores["q"]["hit_rate"], scores["q"]["precision"], scores["q"]["RR@10"]
    (0.5, 1.0, 1.0)
    """
    requested = measures(k, precision_k, relevant_from)
    scores: dict[str, dict[Measure, float]] = {query_id: {} for query_id in qrels}
    for metric in ir_measures.iter_calc(set(requested.values()), _plain(qrels), _ranked(run, qrels)):
        scores[metric.query_id][metric.measure] = float(metric.value)
    return {
        query_id: {name: values[measure] for name, measure in requested.items()} for query_id, values in scores.items()
    }


def slices_of(queries: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Group the queries into slices: slice name → query ids.

    The slices are `all`, `hard` (the paper's four categories), each category, and each value of the columns `slice`
    and `difficulty`. A slice of a column is named by column and value, e.g. `difficulty=hard`, because the value alone
    could be the name of a category. A query without a category is `uncategorised`; a query with a null or empty `slice`
    or `difficulty` belongs to no slice of that column. A column of fractions, or of more than MAX_VALUES numbers, is a
    measure and makes no slices. No slice is empty.

    Args:
        queries: query_id → its row.

    >>> slices_of({"1": {"category": "easy"}, "2": {"category": "negative", "slice": "composition"}})
    {'all': ['1', '2'], 'hard': ['2'], 'easy': ['1'], 'negative': ['2'], 'slice=composition': ['2']}
    """
    columns = [column for column in SLICED_BY if _is_label([row.get(column) for row in queries.values()])]
    slices: dict[str, list[str]] = {"all": [], "hard": []}  # these two come first
    for query_id, row in queries.items():
        category = row.get("category") or "uncategorised"
        names = ["all", category, *(f"{column}={row[column]}" for column in columns if row.get(column))]
        if category in HARD:
            names.append("hard")
        for name in dict.fromkeys(names):  # a category may be called `hard` too
            slices.setdefault(name, []).append(query_id)
    return {name: ids for name, ids in slices.items() if ids}


def _is_label(values: list[Any]) -> bool:
    """Return False for a column of fractions or of many numbers, which measures the queries and does not name them."""
    numbers = {value for value in values if isinstance(value, int | float)}
    return len(numbers) <= MAX_VALUES and all(value == int(value) for value in numbers)


def summarise(scores: Scores, slices: Mapping[str, Collection[str]]) -> dict[str, dict[str, float]]:
    """Average the scores: slice → measure name → unweighted mean over the queries of the slice.

    Queries without scores (they have no judgements) are ignored; a slice that consists of such queries is left out.

    >>> summarise({"1": {"AP": 1.0}, "2": {"AP": 0.5}}, {"all": ["1", "2", "3"], "hard": {"2"}, "none": ["3"]})
    {'all': {'AP': 0.75}, 'hard': {'AP': 0.5}}
    """
    means = {}
    for name, ids in slices.items():
        chosen = set(ids)
        rows = [values for query_id, values in scores.items() if query_id in chosen]
        if rows:
            table = np.array([list(values.values()) for values in rows])  # [Q, M]
            means[name] = dict(zip(rows[0], table.mean(axis=0).tolist(), strict=True))
    return means


def unjudged_share(run: Run, qrels: Qrels, k: int) -> float:
    """Return the mean share of unjudged items in the top k, over the queries of `qrels` that have results in the run.

    A query with fewer than k results contributes the share of those; without any results the share is 0. A system
    that returns items the judges never saw is scored too low: above a few percent, compare with care.

    >>> unjudged_share({"q": [("a", 3.0), ("b", 2.0), ("c", 1.0)], "p": []}, {"q": {"a": 1, "c": 0}, "p": {"x": 1}}, 2)
    0.5
    """
    # Judged divides by the number of results, so queries without results are left out.
    answered = {query_id: grades for query_id, grades in qrels.items() if run.get(query_id)}
    judged = [metric.value for metric in ir_measures.iter_calc([Judged @ k], _plain(answered), _ranked(run, answered))]
    return float(np.mean(1 - np.array(judged))) if judged else 0.0


def _plain(qrels: Qrels) -> dict[str, dict[str, int]]:
    return {query_id: dict(grades) for query_id, grades in qrels.items()}


def _ranked(run: Run, qrels: Qrels) -> dict[str, dict[str, float]]:
    """Replace the scores by negative ranks, so that equal scores keep the run's order; only queries of `qrels`."""
    return {
        query_id: {item_id: float(-rank) for rank, (item_id, _) in enumerate(run.get(query_id, ()))}
        for query_id in qrels
    }
