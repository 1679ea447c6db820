"""Verdicts of a judge: read from an answer, compared with known grades, averaged to a precision. Pure functions."""

from collections.abc import Sequence

from lrem.curation.answer_parsing import parse_grade


def judge_agreement(judged: Sequence[bool], known: Sequence[bool]) -> dict[str, float | int]:
    """Compare a judge's verdicts with known relevance: counts, accuracy, precision, recall, Cohen's kappa.

    An undefined figure (no pair, or a judge that accepts nothing) is left out.

    >>> judge_agreement([True, True, False, False], [True, False, False, False])
    {'pairs': 4, 'accepted': 2, 'relevant': 1, 'accuracy': 0.75, 'precision': 0.5, 'recall': 1.0, 'kappa': 0.5}
    """
    pairs = len(judged)
    both = sum(a and b for a, b in zip(judged, known, strict=True))
    accepted, relevant = sum(judged), sum(known)
    figures: dict[str, float | int] = {"pairs": pairs, "accepted": accepted, "relevant": relevant}
    if not pairs:
        return figures
    accuracy = (pairs - accepted - relevant + 2 * both) / pairs
    figures["accuracy"] = round(accuracy, 4)
    if accepted:
        figures["precision"] = round(both / accepted, 4)
    if relevant:
        figures["recall"] = round(both / relevant, 4)
    chance = (accepted * relevant + (pairs - accepted) * (pairs - relevant)) / pairs**2
    if chance < 1:
        figures["kappa"] = round((accuracy - chance) / (1 - chance), 4)
    return figures


def parse_verdict(answer: str | None, min_grade: int = 2) -> bool | None:
    """Return whether a judge's written grade, 0 to 3, is at least `min_grade`; None if there is no grade to read.

    >>> parse_verdict("3"), parse_verdict("Grade: 1"), parse_verdict("who knows"), parse_verdict(None)
    (True, False, None, None)
    """
    try:
        return None if answer is None else parse_grade(answer) >= min_grade
    except ValueError:
        return None


def judged_precision(verdicts: Sequence[Sequence[bool | None]], k: int) -> float:
    """Return the mean over queries of precision@k by a judge; a result without a verdict counts as not relevant.

    >>> judged_precision([[True, None], [True, True]], 2)
    0.75
    """
    return round(sum(sum(map(bool, top[:k])) / k for top in verdicts) / max(1, len(verdicts)), 4)
