"""Intervals, paired tests and Holm's correction against closed forms and SciPy."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lrem.errors import DataError
from lrem.evaluation.significance import Comparison, compare, holm, interval

VALUES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 2 / 3, 1.0])
PAIRS = st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=25)
IDS = st.text("abcdef", min_size=1, max_size=2)


def named(values: list[float]) -> dict[str, float]:
    return {str(number): value for number, value in enumerate(values)}


def test_p_of_few_queries_is_exact() -> None:
    """The reference enumerates all 2^8 sign patterns."""
    a, b = [0.9, 0.5, 1.0, 0.3, 0.2, 0.7, 0.6, 0.45], [0.2, 0.6, 0.1, 0.0, 0.25, 0.3, 0.58, 0.1]
    differences = np.subtract(a, b)
    means = np.array([np.mean(differences * signs) for signs in itertools.product((1, -1), repeat=8)])
    expected = np.mean(np.abs(means) >= abs(differences.mean()) - 1e-12)
    result = compare(named(a), named(b))
    assert result.difference == pytest.approx(differences.mean())
    assert result.p == pytest.approx(expected)
    assert result.low < result.difference < result.high


def test_p_and_interval_of_many_queries_agree_with_the_t_test() -> None:
    rng = np.random.default_rng(5)
    b = rng.normal(0.5, 0.1, 400)
    a = b + rng.normal(0.011, 0.1, 400)
    t = stats.ttest_rel(a, b)
    result = compare(named(a.tolist()), named(b.tolist()))
    assert 0.005 < result.p < 0.2
    assert result.p == pytest.approx(t.pvalue, abs=0.01)
    low, high = t.confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((low, high), abs=0.001)


def test_the_test_is_paired() -> None:
    """Queries differ far more than systems do, so an unpaired test of the same values would find nothing."""
    level = np.linspace(0, 0.9, 40)
    a, b = level + np.tile([0.01, 0.03], 20), level
    assert stats.ttest_ind(a, b).pvalue > 0.5
    result = compare(named(a.tolist()), named(b.tolist()))
    assert result.p == pytest.approx(2 / 10_001)
    assert 0.015 < result.low < 0.02 < result.high < 0.025


def test_a_seed_is_reproducible_and_the_order_does_not_matter() -> None:
    rng = np.random.default_rng(8)
    a, b = named(rng.random(60).tolist()), named(rng.random(60).tolist())
    assert compare(a, b, seed=3) == compare(a, b, seed=3)
    assert compare(dict(reversed(a.items())), b) == compare(a, b)
    assert compare(a, b, seed=3) != compare(a, b, seed=4)


@given(PAIRS)
def test_swapping_the_systems_negates_the_difference(pairs: list[tuple[float, float]]) -> None:
    a, b = named([left for left, _ in pairs]), named([right for _, right in pairs])
    forth, back = compare(a, b), compare(b, a)
    assert (back.difference, back.low, back.high) == pytest.approx(
        (-forth.difference, -forth.high, -forth.low), abs=1e-9
    )
    assert back.p == pytest.approx(forth.p)
    assert 0 < forth.p <= 1
    assert forth.low - 1e-9 <= forth.difference <= forth.high + 1e-9


def test_samples_without_variance() -> None:
    assert compare(named([0.5, 0.25, 1.0]), named([0.5, 0.25, 1.0])) == Comparison(0.0, 0.0, 0.0, 1.0)
    assert compare(named([0.75]), named([0.5])) == Comparison(0.25, 0.25, 0.25, 1.0)
    one_of_many = compare(named([0.5] * 30 + [1.0]), named([0.5] * 31))
    assert one_of_many.p == 1.0
    assert one_of_many.low == 0.0 < one_of_many.difference < one_of_many.high
    same_gain = compare(named([0.5 + 0.1, 0.3 + 0.1, 0.7 + 0.1]), named([0.5, 0.3, 0.7]))  # equal except for rounding
    assert same_gain == pytest.approx((0.1, 0.1, 0.1, 0.25))


def test_queries_must_be_the_same() -> None:
    with pytest.raises(DataError, match="query '2'"):
        compare({"1": 0.5}, {"1": 0.5, "2": 0.5})
    with pytest.raises(DataError, match="without a scored query"):
        compare({}, {})
    with pytest.raises(DataError, match="at least one query"):
        interval([])


def test_interval_covers_the_true_mean_in_95_of_100_samples() -> None:
    rng = np.random.default_rng(2)
    ends = [interval(rng.binomial(4, 0.3, 60) / 4) for _ in range(300)]
    covered = np.mean([low <= 0.3 <= high for low, high in ends])
    assert 0.91 <= covered <= 0.98


def test_a_true_null_hypothesis_is_rejected_in_5_of_100_samples() -> None:
    rng = np.random.default_rng(9)
    p_values = [compare(named(rng.random(40).tolist()), named(rng.random(40).tolist())).p for _ in range(300)]
    assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.08


def test_holm() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}  # the textbook example: b is raised to c
    )
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({"a": 0.04}) == {"a": 0.04}
    assert holm({}) == {}


@given(st.dictionaries(IDS, st.floats(0, 1), min_size=1, max_size=9))
def test_holm_lies_between_no_correction_and_bonferroni(p_values: dict[str, float]) -> None:
    adjusted = holm(p_values)
    assert list(adjusted) == list(p_values)
    for name, p in p_values.items():
        assert p <= adjusted[name] <= min(1.0, len(p_values) * p)
    order = sorted(p_values, key=lambda name: p_values[name])
    assert [adjusted[name] for name in order] == sorted(adjusted.values())


def test_drawn_signs_agree_with_scipys_permutation_test() -> None:
    """Drawing signs is faster than scipy's permutation_test, and gives the same result, also with tied means."""
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 5, 50) / 10, rng.integers(0, 5, 50) / 10
    theirs = stats.permutation_test((a - b,), np.mean, permutation_type="samples", vectorized=True, rng=rng)
    assert 0.1 < theirs.pvalue < 0.9
    assert compare(named(a.tolist()), named(b.tolist())).p == pytest.approx(theirs.pvalue, abs=0.02)


def test_a_report_takes_seconds() -> None:
    """Two measures of eight systems over 600 queries that all differ; CPU time, since the machine is shared."""
    scores = [
        [named(values) for values in systems] for systems in np.random.default_rng(1).random((2, 8, 600)).tolist()
    ]
    started = time.process_time()
    for first, *others in scores:
        for system in others:
            compare(system, first)
    assert time.process_time() - started < 6.6
