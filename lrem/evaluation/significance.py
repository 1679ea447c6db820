"""Whether a difference between two systems is more than chance: intervals, a paired test, a multiple-test correction.

The queries are the sample: nothing here accounts for other training seeds or other judgements. Source: Smucker, Allan
and Carterette 2007, "A Comparison of Statistical Significance Tests for Information Retrieval Evaluation", which
recommends the randomisation test.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

from lrem.errors import DataError

RESAMPLES = 10_000
LEVEL = 0.95  # of the intervals
EPSILON = 1e-12  # values closer than this differ by rounding alone
MAX_BATCH_NUMBERS = 1_000_000  # drawn in one batch: bounds the memory, and fits the cache


class Comparison(NamedTuple):
    """Mean difference of two systems and its 95 % interval, in units of the measure, and the two-sided p-value."""

    difference: float
    low: float
    high: float
    p: float


def compare(a: Mapping[str, float], b: Mapping[str, float], seed: int = 0) -> Comparison:
    """Compare two systems on the same queries; the difference is a - b.

    The p-value is that of the paired randomisation test: under the null hypothesis the sign of each query's
    difference is random. If at most 13 queries differ, all sign patterns are enumerated and p is exact; otherwise
    10,000 patterns are drawn and p is at least 0.0002. The interval is `interval` over the differences. The order of
    the queries does not matter.

    Raises:
        DataError: there is no query, or a query is scored for only one of the systems.

    >>> compare({"1": 0.5, "2": 0.5, "3": 1.0}, {"1": 0.25, "2": 0.25, "3": 0.75})
    Comparison(difference=0.25, low=0.25, high=0.25, p=0.25)
    >>> compare({"1": 0.5, "2": 1.0}, {"1": 0.5, "2": 1.0}).p
    1.0
    """
    if unpaired := a.keys() ^ b.keys():
        raise DataError(f"query '{min(unpaired)}' is scored for only one system: score both on the same queries")
    if not a:
        raise DataError("systems without a scored query cannot be compared: score both on the same queries")
    differences = np.array([a[query_id] - b[query_id] for query_id in sorted(a)], float)  # [Q]
    low, high = interval(differences, seed)
    return Comparison(float(differences.mean()), low, high, _randomisation_test(differences, seed))


def interval(values: Iterable[float], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of a mean over queries, by the percentile bootstrap.

    The percentile bootstrap stays within the range of the values and, unlike BCa, is defined for every sample. Below
    about twenty values it is somewhat too narrow.

    Raises:
        DataError: there are no values.

    >>> interval([0.5])
    (0.5, 0.5)
    >>> [round(end, 1) for end in interval([0.0, 1.0] * 50)]
    [0.4, 0.6]
    """
    sample = np.fromiter(values, float)  # [Q]
    if not sample.size:
        raise DataError("there are no values to average: score at least one query")
    if np.ptp(sample) < EPSILON:
        mean = float(sample.mean())
        return mean, mean
    ends = stats.bootstrap(
        (sample,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=_batch(sample.size),
        vectorized=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(ends.low), float(ends.high)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust the p-values of several tests, so that all adjusted values below α are significant at level α together.

    Holm-Bonferroni: the i-th smallest of m p-values is multiplied by m - i + 1, and never falls below the adjusted
    values before it. The tests need not be independent. Source: Holm 1979.

    >>> holm({"nDCG@10": 0.01, "AP": 0.04, "RR@10": 0.03})
    {'nDCG@10': 0.03, 'AP': 0.06, 'RR@10': 0.06}
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, p_values[name] * (len(p_values) - rank)))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def _randomisation_test(differences: np.ndarray, seed: int) -> float:
    """Return the two-sided p-value of differences [Q] under random signs; zero differences are left out."""
    signed = differences[np.abs(differences) >= EPSILON]
    if signed.size < 2:  # either sign is equally extreme
        return 1.0
    if 2**signed.size <= RESAMPLES:
        return float(stats.permutation_test((signed,), np.mean, permutation_type="samples", vectorized=True).pvalue)
    rng = np.random.default_rng(seed)
    # The same as permutation_test, which sorts random numbers to draw signs and takes ten times as long.
    result = stats.monte_carlo_test(
        signed,
        lambda size: signed * rng.choice((-1.0, 1.0), size),  # [batch, Q]
        np.mean,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_batch(signed.size),
    )
    return float(result.pvalue)


def _batch(size: int) -> int:
    return max(1, MAX_BATCH_NUMBERS // size)
