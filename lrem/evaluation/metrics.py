"""Measures of a run, query by query and by slice, through ir-measures. Source: paper, "Evaluation", and trec_eval.

Knows runs, judgements and columns of queries; does not know how a run was made, nor how far a mean can be trusted
(`lrem.evaluation.significance`).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import ir_measures
import numpy as np
from ir_measures import AP, RR, Judged, Measure, P, R, Success, nDCG

Run = Mapping[str, Sequence[tuple[str, float]]]  # query_id → (item_id, score), best first, an item once
Qrels = Mapping[str, Mapping[str, int]]  # query_id → item_id → grade
Scores = Mapping[str, Mapping[str, float]]  # query_id → name of the measure → value

HARD = ("question", "alternative", "negative", "knowledge")
DEPTH = 100  # of the deepest fixed cut-off: what a run should hold of each query, or k and precision_k if more
SLICED_BY = ("slice", "difficulty")  # columns of the queries, besides their category


def measures(k: int, precision_k: int, relevant_from: int = 1) -> dict[str, Measure]:
    """The measures of a report, by name, every one a share from 0 to 1.

    `hit_rate` is the paper's HitRate@k: the share of a query's relevant items within the top k, a recall.
    `precision` is Precision@precision_k: found relevant items over precision_k, however many there are to find.
    nDCG takes the grades themselves as gains, as trec_eval does, and so knows no `relevant_from`; every other
    measure counts an item as relevant from that grade on. AP reads as much of a run as there is.

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
    """query_id → name → value, for the `measures` and for every query of `qrels`, in its order.

    A query that the run lacks, or that has no relevant item, scores 0. Items of equal score count in the run's own
    order; trec_eval would take them by id, the last first. A file by `lrem.evaluation.trec.write_run` has no equal
    scores, so that trec_eval agrees with what is counted here.

    >>> scores = per_query({"q": [("a", 2.0), ("x", 1.0)]}, {"q": {"a": 1, "b": 1}}, 2, 1)
    >>> scores["q"]["hit_rate"], scores["q"]["precision"], scores["q"]["RR@10"]
    (0.5, 1.0, 1.0)
    """
    asked = measures(k, precision_k, relevant_from)
    found: dict[str, dict[Measure, float]] = {query_id: {} for query_id in qrels}
    for metric in ir_measures.iter_calc(set(asked.values()), _plain(qrels), _ranked(run, qrels)):
        found[metric.query_id][metric.measure] = float(metric.value)
    return {query_id: {name: values[measure] for name, measure in asked.items()} for query_id, values in found.items()}


def slices_of(queries: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Name of a slice → its query ids: `all`, `hard` (the paper's four categories), each category, and more.

    A value of the columns `slice` and `difficulty` makes a slice too, named by both, as `difficulty=hard`: its plain
    name could be a category's. A query without a category is `uncategorised`; one whose value of another column is
    null or empty is in no slice of that column. No slice is empty.

    Args:
        queries: query_id → its row.

    >>> slices_of({"1": {"category": "easy"}, "2": {"category": "negative", "slice": "composition"}})
    {'all': ['1', '2'], 'hard': ['2'], 'easy': ['1'], 'negative': ['2'], 'slice=composition': ['2']}
    """
    slices: dict[str, list[str]] = {"all": [], "hard": []}  # these come first
    for query_id, row in queries.items():
        category = row.get("category") or "uncategorised"
        names = ["all", category, *(f"{column}={row[column]}" for column in SLICED_BY if row.get(column))]
        if category in HARD:
            names.append("hard")
        for name in dict.fromkeys(names):  # a category may itself be called `hard`
            slices.setdefault(name, []).append(query_id)
    return {name: ids for name, ids in slices.items() if ids}


def summarise(scores: Scores, slices: Mapping[str, Collection[str]]) -> dict[str, dict[str, float]]:
    """Slice → name → mean over the queries of the slice, each counting alike.

    Queries without scores, which are those without judgements, are in no mean; a slice of such alone is left out.

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


def unjudged(run: Run, qrels: Qrels, k: int) -> float:
    """Mean share of the top k that nobody has judged, over the queries of `qrels` for which the run found anything.

    Where a query has fewer than k results, the share is of those; 0 where no query has any. A system that finds what
    its judges never saw is scored too low: above a few percent, compare with care.

    >>> unjudged({"q": [("a", 3.0), ("b", 2.0), ("c", 1.0)], "p": []}, {"q": {"a": 1, "c": 0}, "p": {"x": 1}}, 2)
    0.5
    """
    asked = {query_id: grades for query_id, grades in qrels.items() if run.get(query_id)}  # Judged divides by results
    judged = [metric.value for metric in ir_measures.iter_calc([Judged @ k], _plain(asked), _ranked(run, asked))]
    return float(np.mean(1 - np.array(judged))) if judged else 0.0


def _plain(qrels: Qrels) -> dict[str, dict[str, int]]:
    return {query_id: dict(grades) for query_id, grades in qrels.items()}


def _ranked(run: Run, qrels: Qrels) -> dict[str, dict[str, float]]:
    """The run of the queries of `qrels`, with scores that keep its own order, ties included."""
    return {
        query_id: {item_id: float(-place) for place, (item_id, _) in enumerate(run.get(query_id, ()))}
        for query_id in qrels
    }
