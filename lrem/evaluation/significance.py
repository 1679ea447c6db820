"""Is a difference between two systems more than chance? Intervals, a paired test, and a correction for many tests.

Knows values per query; does not know which measure they are of. The queries are the sample: nothing here speaks of
other seeds of training or other judgements. Source: Smucker, Allan and Carterette 2007, "A Comparison of Statistical
Significance Tests for Information Retrieval Evaluation", which advises the randomisation test.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

from lrem.errors import DataError

RESAMPLES = 10_000
LEVEL = 0.95  # of the intervals
SAME = 1e-12  # values closer than this differ by rounding alone
NUMBERS_AT_ONCE = 1_000_000  # drawn in one batch: bounds the memory, and keeps to the cache


class Comparison(NamedTuple):
    """Mean difference of two systems, its 95 % interval, and the two-sided p-value; the unit is the measure's."""

    difference: float
    low: float
    high: float
    p: float


def compare(a: Mapping[str, float], b: Mapping[str, float], seed: int = 0) -> Comparison:
    """Is `a` better than `b` on the same queries? The difference is a - b.

    The p-value is of the paired randomisation test: under the null hypothesis each query's difference could as well
    have the other sign. Up to 13 queries that differ, all signs are tried and p is exact; beyond, 10,000 are drawn
    and p is at least 0.0002. The interval is as of `interval`, over the differences. The order of the queries
    changes nothing.

    Raises:
        DataError: there is no query, or one is scored for one system alone.

    >>> compare({"1": 0.5, "2": 0.5, "3": 1.0}, {"1": 0.25, "2": 0.25, "3": 0.75})
    Comparison(difference=0.25, low=0.25, high=0.25, p=0.25)
    >>> compare({"1": 0.5, "2": 1.0}, {"1": 0.5, "2": 1.0}).p
    1.0
    """
    if lonely := a.keys() ^ b.keys():
        raise DataError(f"query '{min(lonely)}' is scored for one of two systems: score both on the same queries")
    if not a:
        raise DataError("two systems without a scored query cannot be compared: score both on the same queries")
    differences = np.array([a[query_id] - b[query_id] for query_id in sorted(a)], float)  # [Q]
    low, high = interval(differences, seed)
    return Comparison(float(differences.mean()), low, high, _randomisation(differences, seed))


def interval(values: Iterable[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean over queries, by the percentile bootstrap; of a single value that value.

    The percentile bootstrap stays within the values' range, and unlike BCa it is defined for every sample. Under
    about twenty values it is somewhat too narrow.

    Raises:
        DataError: there is no value.

    >>> interval([0.5])
    (0.5, 0.5)
    >>> [round(end, 1) for end in interval([0.0, 1.0] * 50)]
    [0.4, 0.6]
    """
    sample = np.fromiter(values, float)  # [Q]
    if not sample.size:
        raise DataError("no value has no mean: score at least one query")
    if np.ptp(sample) < SAME:
        mean = float(sample.mean())
        return mean, mean
    found = stats.bootstrap(
        (sample,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=_batch(sample.size),
        vectorized=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust the p-values of several tests, in their order: all those below α hold together at the level α.

    Holm-Bonferroni: the i-th smallest of m is multiplied by m - i + 1 and is no smaller than the ones before it.
    Source: Holm 1979. It asks no independence of the tests.

    >>> holm({"nDCG@10": 0.01, "AP": 0.04, "RR@10": 0.03})
    {'nDCG@10': 0.03, 'AP': 0.06, 'RR@10': 0.06}
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, p_values[name] * (len(p_values) - place)))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def _randomisation(differences: np.ndarray, seed: int) -> float:
    """The two-sided p-value of differences [Q] under random signs. Those of 0 have no sign and are left out."""
    signed = differences[np.abs(differences) >= SAME]
    if signed.size < 2:  # one sign or the other: both are as extreme
        return 1.0
    if 2**signed.size <= RESAMPLES:
        return float(stats.permutation_test((signed,), np.mean, permutation_type="samples", vectorized=True).pvalue)
    rng = np.random.default_rng(seed)
    found = stats.monte_carlo_test(  # as permutation_test, which sorts random numbers for its signs: ten times slower
        signed,
        lambda size: signed * rng.choice((-1.0, 1.0), size),  # [batch, Q]
        np.mean,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_batch(signed.size),
    )
    return float(found.pvalue)


def _batch(size: int) -> int:
    return max(1, NUMBERS_AT_ONCE // size)
