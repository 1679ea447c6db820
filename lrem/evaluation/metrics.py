"""HitRate@k and Precision@k of a run, by category, through ir-measures. Source: paper, "Evaluation"."""

from collections.abc import Mapping, Sequence

import ir_measures
import numpy as np
from ir_measures import P, R

Run = Mapping[str, Sequence[tuple[str, float]]]  # query_id → (item_id, score), best first
Qrels = Mapping[str, Mapping[str, int]]  # query_id → item_id → grade
HARD = ("question", "alternative", "negative", "knowledge")


def per_query(run: Run, qrels: Qrels, k: int, precision_k: int) -> dict[str, tuple[float, float]]:
    """query_id → (HitRate@k, Precision@precision_k), for every query of `qrels`.

    HitRate@k is the paper's: the share of a query's relevant items within the top k, a recall. A query
    that the run lacks scores 0.

    >>> per_query({"q": [("a", 2.0), ("x", 1.0)]}, {"q": {"a": 1, "b": 1}}, 2, 2)
    {'q': (0.5, 0.5)}
    """
    scored = {query_id: _ranked(run.get(query_id, ())) for query_id in qrels}
    hit, precision = R @ k, P @ precision_k
    values: dict[str, dict[str, float]] = {query_id: {} for query_id in qrels}
    for metric in ir_measures.iter_calc([hit, precision], {q: dict(g) for q, g in qrels.items()}, scored):
        values[metric.query_id][str(metric.measure)] = metric.value
    return {q: (v.get(str(hit), 0.0), v.get(str(precision), 0.0)) for q, v in values.items()}


def summarise(scores: Mapping[str, tuple[float, float]], categories: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Mean of each metric over `all` queries, over the `hard` ones (the paper's four) and by category.

    >>> summarise({"1": (1., 1.), "2": (0., .5)}, {"1": "easy", "2": "negative"})["hard"]
    {'hit_rate': 0.0, 'precision': 0.5}
    """
    groups: dict[str, list[tuple[float, float]]] = {"all": list(scores.values()), "hard": []}
    for query_id, value in scores.items():
        groups.setdefault(categories[query_id], []).append(value)
        if categories[query_id] in HARD:
            groups["hard"].append(value)
    return {
        name: dict(zip(("hit_rate", "precision"), np.mean(values, axis=0).tolist(), strict=True))
        for name, values in groups.items()
        if values
    }


def _ranked(hits: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Scores that keep the run's own order, ties included: trec_eval would break ties by id."""
    return {item_id: float(-position) for position, (item_id, _) in enumerate(hits)}
