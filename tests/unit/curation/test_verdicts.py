"""Agreement of a judge with known relevance, verdicts, and precision."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrem.curation.verdicts import judge_agreement, judged_precision, parse_verdict


def kappa(table: np.ndarray) -> float:
    """Cohen's kappa of a 2 × 2 table of counts, by its definition."""
    shares = table / table.sum()
    chance = float(shares.sum(0) @ shares.sum(1))
    return (float(np.trace(shares)) - chance) / (1 - chance)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_agreement_by_its_definitions(pairs: list[tuple[bool, bool]]) -> None:
    judged, known = zip(*pairs, strict=True)
    table = np.array([[pairs.count((a, b)) for b in (True, False)] for a in (True, False)])
    figures = judge_agreement(judged, known)
    assert (figures["pairs"], figures["accepted"], figures["relevant"]) == (
        len(pairs),
        table[0].sum(),
        table[:, 0].sum(),
    )
    assert figures["accuracy"] == round(np.trace(table) / len(pairs), 4)
    assert figures.get("precision") == (round(table[0, 0] / table[0].sum(), 4) if table[0].sum() else None)
    assert figures.get("recall") == (round(table[0, 0] / table[:, 0].sum(), 4) if table[:, 0].sum() else None)
    if len(set(judged)) == len(set(known)) == 1 and judged[0] == known[0]:
        assert "kappa" not in figures  # both are constant and equal: chance agrees too
    else:
        assert figures["kappa"] == pytest.approx(kappa(table), abs=6e-5)


def test_without_pairs_there_are_only_counts() -> None:
    assert judge_agreement([], []) == {"pairs": 0, "accepted": 0, "relevant": 0}


def test_precision_and_verdicts() -> None:
    assert judged_precision([], 10) == 0
    assert judged_precision([[True] * 10, []], 10) == 0.5
    assert [parse_verdict(text, min_grade=1) for text in ("Grade: 1", "0", "", None)] == [True, False, None, None]
